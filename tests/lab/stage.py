"""A stage for faults: two nodes behind two routers, a direct path between them, and a download that runs all the time.

`Stage` builds it, `quiet_s()` is the longest silence the reader had since a moment, and the `wait_*` functions have
the conditions that scenarios are made of.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interop.lab import LabError
from interop.process import until
from tests.lab.cell import Reader
from tests.lab.inet import PAIRS, Inet, Node
from tests.lab.rules import Nat
from tests.lab.site import Families, Site

RATE = 200_000
LONG_S = 1800.0
DIRECT_S = 40.0
LOOK_S = 0.05
V4 = Families()
BOTH = Families(v4=True, v6=True)
_stages = itertools.count()


@dataclass
class Stage:
    """`here` reads what `there` sends. Faults happen at `sites[0]`, the router of `here`."""

    inet: Inet
    pair: str
    nats: tuple[Nat, Nat] = (Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED)
    families: Families = V4
    rate: int = RATE
    v6: bool = False
    """Read from the node's IPv6 address in the tailnet."""

    def __enter__(self) -> Stage:
        name = f"s{next(_stages)}"
        lab = self.inet.lab
        self.sites = [
            Site(lab, f"{name}{side}", nat, families=self.families).build()
            for side, nat in zip("ab", self.nats, strict=True)
        ]
        self.nodes: list[Node] = []
        try:
            for make, site, side in zip(PAIRS[self.pair], self.sites, "xy", strict=True):
                self.nodes.append(self.inet.node(make, site.host(f"{name}{side}")))
            outside = {n.name: s.wan for n, s in zip(self.nodes, self.sites, strict=True) if s.nat in _WITH_UDP}
            self.inet.settle(self.here, self.there, outside)
            self.reader = self.read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.inet.forget(*self.nodes)
        for site in self.sites:
            site.remove()

    @property
    def here(self) -> Node:
        return self.nodes[0]

    @property
    def there(self) -> Node:
        return self.nodes[1]

    @property
    def site(self) -> Site:
        """Where faults happen."""
        return self.sites[0]

    def read(self, seconds: float = LONG_S, rate: int = 0) -> Reader:
        """Start a download; its first bytes have come."""
        reader = Reader(self.here, self.there, rate or self.rate, seconds, v6=self.v6)
        reader.wait("first", 30.0)
        return reader

    # ---- what is seen ---------------------------------------------------------------------------

    def is_direct(self) -> bool:
        """Both ends send directly."""
        return all(_is_direct(a, b) for a, b in ((self.here, self.there), (self.there, self.here)))

    def wait_direct(self, timeout_s: float = DIRECT_S) -> float | None:
        """Seconds until both ends send directly, None if they did not."""
        return _seconds(self.is_direct, timeout_s)

    def wait_relayed(self, timeout_s: float = DIRECT_S) -> float | None:
        """Seconds until neither end sends directly."""
        pairs = ((self.here, self.there), (self.there, self.here))
        return _seconds(lambda: not any(_is_direct(a, b) for a, b in pairs), timeout_s)

    def quiet_s(self, since: float) -> float:
        """The longest silence that ended after `since`, or goes on."""
        gaps = [line["gap"] for line in self.reader.lines() if "gap" in line and line["at"] > since]
        last = self.reader.totals()[-1][0]
        return float(max([*gaps, time.monotonic() - last if time.monotonic() - last > _STATUS_S else 0.0, 0.0]))

    def wait_bytes(self, timeout_s: float) -> bool:
        """Whether the download goes on within this time: for half a second bytes come again."""
        begun = len(self.reader.totals())
        try:
            return bool(until(lambda: len(self.reader.totals()) >= begun + 5, timeout_s, "bytes", interval_s=0.1))
        except LabError:
            return False

    def is_intact(self) -> bool:
        """The flow lives and every byte so far was the right one."""
        return self.reader.process.running and not any("wrong" in line for line in self.reader.lines())

    def reasons(self) -> list[str]:
        """What our nodes say of the path."""
        found = []
        for a, b in ((self.here, self.there), (self.there, self.here)):
            peer: dict[str, Any] = a.peer(b) or {}
            found += [str(peer.get("Why"))] if a.make == "ours" else []
        return found


_WITH_UDP = (Nat.ONE_TO_ONE, Nat.FULL_CONE, Nat.ADDRESS_RESTRICTED, Nat.PORT_RESTRICTED, Nat.SYMMETRIC)
_STATUS_S = 0.5
"""The reader tells of bytes every 100 ms; a silence shorter than this may be a slow machine."""


def _is_direct(here: Node, there: Node) -> bool:
    peer = here.peer(there)
    return bool(peer and peer["CurAddr"] and peer.get("PathState", "direct") == "direct")


def pass_time(seconds: float) -> None:
    """Let time pass, where that is what is measured."""
    time.sleep(seconds)


def _seconds(condition: Callable[[], bool], timeout_s: float) -> float | None:
    begun = time.monotonic()
    try:
        until(condition, timeout_s, "a path", interval_s=LOOK_S)
    except LabError:
        return None
    return time.monotonic() - begun
