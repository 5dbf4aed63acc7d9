"""One cell of the NAT matrix: two nodes behind two routers, up and idle, and then a first packet.

`Cell.round()` makes fresh nodes, waits until control has told each of the other, lets the one in the row open a
stream to the other, and watches both `status --json` until both ends send directly or PATIENCE_S have passed.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from interop.lab import LabError
from interop.process import Process, until
from tests.lab import status
from tests.lab.inet import FLOW_PORT, PAIRS, Inet, Node
from tests.lab.rules import Nat
from tests.lab.site import Site, forget_flows

PATIENCE_S = 10.0
LOOK_S = 0.03
RATE = 20_000
_cells = itertools.count()


@dataclass
class Outcome:
    """What a round showed. Seconds count from just before the first packet."""

    way: str
    """direct, relay or unreachable."""
    direct_s: float | None = None
    """Until both ends showed a direct address."""
    first_byte_s: float | None = None
    reasons: list[str] = field(default_factory=list)
    """Of our nodes: why there is no direct path."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, "", [])}


class Reader:
    """`flow read` from one node to another, and what it printed."""

    def __init__(self, here: Node, there: Node, rate: int, seconds: float, *, v6: bool = False, seed: int = 1) -> None:
        target = there.address(v6=v6)
        numbers = [str(FLOW_PORT), str(seed), str(rate), str(int(seconds * 1000))]
        argv = [sys.executable, "-m", "tests.lab.flow", "read", here.door, target, *numbers]
        self.process: Process = here.host.start(f"read-{here.name}", argv, PYTHONPATH=status.SEARCH)

    def lines(self) -> list[dict[str, Any]]:
        said = self.process.out().splitlines(keepends=True)
        return [json.loads(line) for line in said if line.endswith("\n")]

    def find(self, key: str) -> dict[str, Any] | None:
        """The first line that has this."""
        return next((line for line in self.lines() if key in line), None)

    def wait(self, key: str, timeout_s: float) -> dict[str, Any]:
        return self.process.wait_until(lambda: self.find(key), timeout_s, f"the reader says {key}")

    def totals(self) -> list[tuple[float, int]]:
        return [(line["at"], line["total"]) for line in self.lines() if "total" in line and "at" in line]


@dataclass
class Cell:
    """Routers of two kinds on one internet; `with` builds and removes them."""

    inet: Inet
    row: Nat
    column: Nat
    patience_s: float = PATIENCE_S

    def __enter__(self) -> Cell:
        number = next(_cells)
        self.sites = [
            Site(self.inet.lab, f"c{number}{side}", nat).build() for side, nat in (("a", self.row), ("b", self.column))
        ]
        self.hosts = [site.host(f"c{number}{side}") for side, site in zip("xy", self.sites, strict=True)]
        return self

    def __exit__(self, *_: object) -> None:
        for site in self.sites:
            site.remove()

    def round(self, pair: str) -> Outcome:
        """One measurement with fresh nodes."""
        for site in self.sites:
            forget_flows(site.router)
        nodes: list[Node] = []
        try:
            for make, host in zip(PAIRS[pair], self.hosts, strict=True):
                nodes.append(self.inet.node(make, host))
            outside = {node.name: _outside(site) for node, site in zip(nodes, self.sites, strict=True)}
            settled = self.inet.settle(nodes[0], nodes[1], outside)
            outcome = first_packet(nodes[0], nodes[1], self.patience_s)
            outcome.note += "" if settled else " its outer address was never told"
            return outcome
        finally:
            self.inet.forget(*nodes)


def _outside(site: Site) -> str:
    return "" if site.nat in (Nat.UDP_BLOCKED, Nat.ONLY_TCP_443, Nat.ONLY_UDP_53) else site.wan


def first_packet(here: Node, there: Node, patience_s: float) -> Outcome:
    """Open a stream between two idle nodes and see which way it takes."""
    reader = Reader(here, there, RATE, patience_s + 2)
    start = reader.wait("start", 10.0)["start"]
    direct_s = None
    while direct_s is None and time.monotonic() - start < patience_s:
        if all(_is_direct(a, b) for a, b in ((here, there), (there, here))):
            direct_s = time.monotonic() - start
        else:
            time.sleep(LOOK_S)  # nothing tells us: both kinds are asked
    first = reader.find("first")
    outcome = Outcome("direct" if direct_s is not None else "relay", direct_s)
    if first is not None:
        outcome.first_byte_s = first["first"] - start
    if direct_s is None:
        outcome.reasons = [_reason(a, b) for a, b in ((here, there), (there, here)) if a.make == "ours"]
    if not _flows(reader):
        outcome.way, outcome.note = (
            "unreachable" if first is None else f"{outcome.way}, no bytes",
            str(reader.lines()[-3:]),
        )
    reader.process.kill()
    return outcome


def _is_direct(here: Node, there: Node) -> bool:
    peer = here.peer(there)
    return bool(peer and peer["CurAddr"])


def _flows(reader: Reader) -> bool:
    """Whether more bytes come, now."""
    totals = reader.totals()
    had = totals[-1][1] if totals else 0
    with suppress(LabError):
        return bool(until(lambda: (reader.totals() or [(0.0, 0)])[-1][1] > had or reader.find("end"), 5.0, "bytes"))
    return False


def _reason(here: Node, there: Node) -> str:
    peer = here.peer(there) or {}
    return str(peer.get("Why", ""))
