"""Runs one command: no shell, its own process group, its own directory, bounded time and output.

The directory is private, the working directory and $TMPDIR of the command, and gone afterwards. The
group is killed when the time is up, when the caller leaves, or when something of it still holds our
pipes after the command ended. Output beyond its limit is read and dropped, and said to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from meshnode.run.scope import Scope

TERM_S: Final = 2.0
"""Between SIGTERM and SIGKILL."""
DRAIN_S: Final = 1.0
"""How long pipes may stay open after the command ended."""
CHUNK: Final = 64 * 1024
KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ")
"""All that a command sees of our environment: keys and tokens live there too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    exit_code: int
    """Negative: the signal that ended it."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    duration_ms: int
    timed_out: bool = False


async def run_command(argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, output_max: int) -> Outcome:
    """Run to the end, or to the end of the time. OSError: it cannot be started."""
    # Not in a thread: cancelled there, it would leave a directory that nobody knows of.
    folder = tempfile.mkdtemp(prefix="meshnode-job-")
    try:
        return await _run_in(folder, argv, env, timeout_s, output_max)
    finally:
        # Shielded: a cancelled caller must not leave the directory behind.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, _remove, folder))


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


async def _run_in(
    folder: str, argv: Sequence[str], env: Mapping[str, str], timeout_s: float, output_max: int
) -> Outcome:
    inherited = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd=folder,
        env=inherited | {"HOME": folder, "TMPDIR": folder} | dict(env),
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    out, err = _Kept(output_max), _Kept(output_max)
    timed_out = False
    async with Scope("job") as scope:
        try:
            readers = {scope.spawn(out.fill(process.stdout), "stdout"), scope.spawn(err.fill(process.stderr), "stderr")}
            timed_out = not await _ends_in(process, timeout_s)
            if timed_out:
                await _stop(process)
            _, open_pipes = await asyncio.wait(readers, timeout=DRAIN_S)
            if open_pipes:
                _signal_group(process, signal.SIGKILL)
        except BaseException:
            _signal_group(process, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.wait()), TERM_S)
            raise
    duration_ms = round((time.monotonic() - started) * 1000)
    return Outcome(
        process.returncode if process.returncode is not None else -signal.SIGKILL,
        bytes(out.data),
        bytes(err.data),
        out.dropped or err.dropped,
        duration_ms,
        timed_out,
    )


class _Kept:
    """The first bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.dropped = False
        self._limit = limit

    async def fill(self, stream: asyncio.StreamReader) -> None:
        """Read to the end, keeping what there is room for."""
        while chunk := await stream.read(CHUNK):
            room = self._limit - len(self.data)
            self.data += chunk[:room]
            self.dropped = self.dropped or len(chunk) > room


async def _ends_in(process: Process, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def _stop(process: Process) -> None:
    _signal_group(process, signal.SIGTERM)
    if not await _ends_in(process, TERM_S):
        _signal_group(process, signal.SIGKILL)
        await _ends_in(process, TERM_S)


def _signal_group(process: Process, number: signal.Signals) -> None:
    # start_new_session made the command the leader of a group of its own number.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
