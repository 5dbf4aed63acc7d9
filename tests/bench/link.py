"""Link: two namespaces with the impairment box (`native/tests/box.c`) between them.

Needs root. Each end is a TUN device without offloads, so whatever crosses is one packet of at most one
MTU when the box draws lots. Many links can exist at once; all use the same addresses.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

A, B = "10.78.0.1", "10.78.0.2"
OUTER_MTU = 1500
QUEUE = 10000
KERNEL_MTU = 1280
"""What the route allows kernel TCP: the MTU inside our tunnel, so that both cut their data alike."""
WIREGUARD_OVERHEAD = 60
"""IPv4 20, UDP 8, WireGuard 32: what one packet of 1280 bytes grows by in the tunnel."""
ROOT = Path(__file__).resolve().parents[2]
_count = itertools.count()


@functools.cache
def box_program() -> Path:
    """Build the box if need be; CalledProcessError shows why it does not build."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "native/tests"), "box"], check=True)
    return ROOT / "native/tests/build/plain/box"


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"`{' '.join(words)}` failed: {done.stderr.strip()} (root is needed)")


class Link:
    """Use as a context manager. `set(loss=0.01, delay_us=20000)` takes effect on the next packet.

    inside: two namespaces to link, whose owner removes them; else two of its own are made. devices and addresses: of
    each side.
    """

    def __init__(
        self,
        inside: tuple[str, str] | None = None,
        devices: tuple[str, str] = ("e0", "e0"),
        addresses: tuple[str, str] = (A, B),
    ) -> None:
        prefix = f"mnbox{os.getpid()}x{next(_count)}"
        self.is_owner = inside is None
        self.names = inside or (f"{prefix}a", f"{prefix}b")
        self.devices = devices
        self.addresses = addresses
        self.box: subprocess.Popen[str] | None = None

    def __enter__(self) -> Link:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def name(self, side: str) -> str:
        return self.names["ab".index(side)]

    def device(self, side: str) -> str:
        return self.devices["ab".index(side)]

    def enter(self, side: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on side "a" or "b"; it dies with this process."""
        return ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.name(side), *argv]

    def _build(self) -> None:
        program = str(box_program())
        if self.is_owner:
            for name in self.names:
                _run("ip", "netns", "add", name)
        ends = [f"{self.name(side)}:{self.device(side)}" for side in "ab"]
        words = ["setpriv", "--pdeathsig", "KILL", program, *ends]
        self.box = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.box.stdout is not None
        if self.box.stdout.readline() != "ready\n":
            raise OSError("the impairment box did not start; its error is above")
        for side, mine, other in (("a", *self.addresses), ("b", *reversed(self.addresses))):
            ip, device = ["ip", "-n", self.name(side)], self.device(side)
            _run(*ip, "link", "set", "dev", "lo", "up")
            _run(*ip, "link", "set", "dev", device, "mtu", str(OUTER_MTU), "txqueuelen", str(QUEUE), "up")
            _run(*ip, "address", "add", mine, "peer", other, "dev", device)
            for key, value in (("no_metrics_save", "1"), ("recovery", "1"), ("sack", "1")):
                _run(*self.enter(side, ["sysctl", "-qw", f"net.ipv4.tcp_{key}={value}"]))

    def limit_mtu(self, mtu: int) -> None:
        """The kernels send no larger packet to each other."""
        for side in "ab":
            _run("ip", "-n", self.name(side), "link", "set", "dev", self.device(side), "mtu", str(mtu))

    def ask(self, line: str) -> str:
        assert self.box is not None and self.box.stdin is not None and self.box.stdout is not None
        self.box.stdin.write(line + "\n")
        self.box.stdin.flush()
        answer = self.box.stdout.readline().strip()
        if not answer or answer.startswith("error"):
            raise OSError(f"the box answered {answer!r} to {line!r}")
        return answer

    def set(self, **keys: float) -> None:
        self.ask("set " + " ".join(f"{key}={value:.9g}" for key, value in keys.items()))

    def clear(self) -> None:
        """Drop what is under way, zero the counters."""
        self.ask("clear")

    def stats(self) -> dict[str, Any]:
        """The box's counters; `missed` of a side: what its device dropped because the box did not read in time."""
        counters = dict(json.loads(self.ask("stats")))
        for side in "ab":
            words = ["ip", "-n", self.name(side), "-s", "-j", "link", "show", "dev", self.device(side)]
            shown = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            counters[side]["missed"] = shown[0]["stats64"]["tx"]["dropped"]
        return counters

    def close(self) -> None:
        if self.box is not None:
            with contextlib.suppress(OSError):
                self.box.communicate(timeout=5)
        if self.is_owner:
            for name in self.names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
