"""Where a running node's socket is, and how a command finds it.

The socket lies in the state directory. A node without one (`mem:`), or with a path too long for a
unix socket, has it in a private runtime directory instead: $XDG_RUNTIME_DIR/meshnode or
/tmp/meshnode-UID, mode 0700, ours.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from meshnode.base.errors import NoRunningNode, StateError
from meshnode.config.model import MEMORY
from meshnode.state.file import SOCKET_NAME, default_state_dir

SUN_PATH_MAX: Final = 107
"""Bytes of a unix socket's path on Linux, its terminator not counted."""


def runtime_dir(environment: Mapping[str, str]) -> Path:
    """The private directory for sockets that have no state directory. Not created."""
    base = environment.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and os.path.isdir(base):
        return Path(base) / "meshnode"
    return Path(f"/tmp/meshnode-{os.geteuid()}")


def make_runtime_dir(environment: Mapping[str, str]) -> Path:
    """Create it 0700. StateError if it is somebody else's: /tmp is shared."""
    path = runtime_dir(environment)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise StateError(f"cannot make {path} for the node's socket: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StateError(f"{path} belongs to somebody else; set XDG_RUNTIME_DIR to a directory of your own")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def socket_path(state_dir: str, environment: Mapping[str, str]) -> Path:
    """Where the node with this state directory has its socket; `mem:` nodes are told apart by pid."""
    if state_dir == MEMORY:
        return runtime_dir(environment) / f"mem-{os.getpid()}.sock"
    path = Path(state_dir).expanduser().absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return runtime_dir(environment) / f"{digest}.sock"


def find_socket(state_dir: str, environment: Mapping[str, str]) -> Path:
    """The socket a command should use. NoRunningNode says where it looked."""
    if state_dir and state_dir != MEMORY:
        return socket_path(state_dir, environment)
    usual = socket_path(str(default_state_dir(environment)), environment)
    if not state_dir and usual.exists():
        return usual
    alive = [path for path in sorted(runtime_dir(environment).glob("mem-*.sock")) if _is_alive(path)]
    if len(alive) == 1:
        return alive[0]
    if len(alive) > 1:
        pids = ", ".join(path.stem.removeprefix("mem-") for path in alive)
        raise NoRunningNode(f"several nodes without a state directory run here (processes {pids}); give them one")
    if state_dir:
        raise NoRunningNode("no node with --state-dir mem: runs here as this user")
    return usual


def _is_alive(path: Path) -> bool:
    pid = path.stem.removeprefix("mem-")
    return pid.isdigit() and os.path.exists(f"/proc/{pid}")
