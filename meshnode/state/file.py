"""One JSON file, mode 0600 in a directory of mode 0700, replaced atomically, locked by flock.

A save writes a temporary file beside it, syncs it, renames it over the old one and syncs the
directory: a crash at any instant leaves the old state or the new one, never half. The lock is held
by an open file, so the kernel drops it when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from meshnode.base.errors import StateError
from meshnode.state.store import State, emit_state, parse_state

STATE_NAME: Final = "state.json"
LOCK_NAME: Final = "lock"
SOCKET_NAME: Final = "meshnode.sock"
"""The running node's door, made by local/api in this directory."""
OWN_NAMES: Final = {STATE_NAME, STATE_NAME + ".new", LOCK_NAME, SOCKET_NAME}
STATE_MAX: Final = 1 << 20
"""A state file is about 1 KiB; anything this large is not ours."""


def default_state_dir(environment: Mapping[str, str], network: str = "default") -> Path:
    """$XDG_STATE_HOME/meshnode/NETWORK, or ~/.local/state/meshnode/NETWORK."""
    base = environment.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        home = environment.get("HOME") or os.path.expanduser("~")
        base = os.path.join(home, ".local", "state")
    return Path(base) / "meshnode" / network


class FileStore:
    """A State in `directory`/state.json."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).expanduser()
        self.path = self.directory / STATE_NAME
        self._lock_fd = -1

    def lock(self) -> None:
        """Make the directory if need be and claim it. StateError if that fails or another has it."""
        self._make_directory()
        path = self.directory / LOCK_NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"cannot write in the state directory {self.directory}: {_why(error)}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(fd)
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StateError(f"cannot lock the state directory {self.directory}: {_why(error)}") from None
            raise StateError(
                f"the state directory {self.directory} is in use by {holder}; "
                "stop it, or give this node a directory of its own"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def _make_directory(self) -> None:
        try:
            if not self.directory.is_dir():
                self.directory.parent.mkdir(parents=True, exist_ok=True)
                self.directory.mkdir(mode=0o700, exist_ok=True)
            if self._is_ours_alone() and stat.S_IMODE(self.directory.stat().st_mode) & 0o077:
                self.directory.chmod(0o700)
        except OSError as error:
            raise StateError(f"cannot use {self.directory} as the state directory: {_why(error)}") from None

    def _is_ours_alone(self) -> bool:
        """Whether nothing of anybody else's lies here: such a directory may be closed to others."""
        ours = self.directory.stat().st_uid == os.geteuid()
        return ours and all(name in OWN_NAMES for name in os.listdir(self.directory))

    def load(self) -> State | None:
        """The saved state; None if there is none yet."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                raw = os.read(fd, STATE_MAX + 1)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"cannot read the state file {self.path}: {_why(error)}") from None
        if len(raw) > STATE_MAX:
            raise StateError(f"{self.path} is no state file of meshnode: larger than {STATE_MAX} bytes")
        return parse_state(raw.decode(errors="replace"), str(self.path))

    def save(self, state: State) -> None:
        """Write, sync, rename, sync the directory."""
        # The lock is ours alone, so one fixed name cannot collide; a leftover of a crash is replaced.
        temporary = self.directory / (STATE_NAME + ".new")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(emit_state(state).encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self.path)
            self._sync_directory()
        except OSError as error:
            raise StateError(f"cannot write the state file {self.path}: {_why(error)}") from None

    def erase(self) -> None:
        """Remove the state file; the directory and the lock stay."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
                self._sync_directory()
        except OSError as error:
            raise StateError(f"cannot remove the state file {self.path}: {_why(error)}") from None

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Release the lock. The lock file stays: removing it would let two processes lock two files."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


def _why(error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return "not a directory"
    return (error.strerror or str(error)).lower()


def _holder(fd: int) -> str:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return f"another meshnode, process {text}" if text.isdigit() else "another meshnode"
