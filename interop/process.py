"""A program in a namespace of the lab, its output in two files, and waits that have a condition and a bound."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from interop.lab import Host

POLL_S = 0.03

T = TypeVar("T")


class LabError(AssertionError):
    """Something in the lab did not happen in time; the message carries the log's end."""


def until(condition: Callable[[], T | None], timeout_s: float, what: str, *, interval_s: float = POLL_S) -> T:
    """Wait until `condition()` is truthy and return it; LabError names `what` when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise LabError(f"not within {timeout_s:g} s: {what}")
        time.sleep(interval_s)


class Process:
    """A program in a namespace, its output in two files."""

    def __init__(self, host: Host, label: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.host = host
        self.label = f"{host.name}/{label}"
        self.out_path = host.lab.folder / f"{host.name}-{label}.out"
        self.err_path = host.lab.folder / f"{host.name}-{label}.err"
        self._out_from = self.out_path.stat().st_size if self.out_path.exists() else 0
        self._err_from = self.err_path.stat().st_size if self.err_path.exists() else 0
        with self.out_path.open("ab") as out, self.err_path.open("ab") as err:
            self.popen = subprocess.Popen(
                # pdeathsig: if this interpreter is killed, what it started dies with it.
                ["setpriv", "--pdeathsig", "KILL", *host.enter(argv)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **host.lab.environment, **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def out(self) -> str:
        """Standard output of this start (a label started again appends to the same file)."""
        return self.out_path.read_bytes()[self._out_from :].decode(errors="replace")

    def err(self) -> str:
        return self.err_path.read_bytes()[self._err_from :].decode(errors="replace")

    def log_tail(self, lines: int = 25) -> str:
        tail = (self.out() + self.err()).splitlines()[-lines:]
        return f"--- {self.label} ---\n" + "\n".join(tail)

    def wait_until(self, condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
        """Like `until`, but ends at once when the process dies, and shows its log on failure."""

        def check() -> T | None:
            value = condition()
            if not value and not self.running:
                code = self.popen.returncode
                raise LabError(f"{self.label} ended with {code} before: {what}\n{self.log_tail()}")
            return value

        try:
            return until(check, timeout_s, what)
        except LabError as error:
            if "ended with" in str(error):
                raise
            raise LabError(f"{error}\n{self.log_tail()}") from None

    def signal(self, number: int) -> None:
        if self.running:
            self.popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code; LabError when it lives on."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.label} did not end within {timeout_s:g} s\n{self.log_tail()}") from None

    def survives(self, seconds: float) -> bool:
        """True if it is still running after this long, False as soon as it ends."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def stop(self, timeout_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL to the whole group; returns the exit code."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout_s)
        return self.kill()

    def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.popen.wait(5.0)
