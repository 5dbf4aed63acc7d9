"""Scenarios of relays that die and of nodes that sleep; as in faults.py each returns its rounds.

Source: docs/nat.md.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

from interop.lab import LabError
from interop.process import until
from tests.lab.cell import Reader
from tests.lab.faults import Round
from tests.lab.inet import REGIONS, Inet, Node
from tests.lab.rules import Nat
from tests.lab.stage import Stage, pass_time

RELAY_CODES = {f"lab{region}": number for number, region in enumerate(REGIONS)}
PATIENCE_S = 90.0
ASLEEP_S = 60.0
BY_RELAY = (Nat.UDP_BLOCKED, Nat.PORT_RESTRICTED)


def relay_stopped(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The home relay of a node without UDP is stopped by SIGSTOP: its sockets stay open and nothing answers."""
    for _ in range(rounds):
        with Stage(inet, pair, BY_RELAY) as stage:
            relay = inet.relays[RELAY_CODES[home(stage.here)]].process
            assert relay is not None
            begun = time.monotonic()
            relay.signal(signal.SIGSTOP)
            try:
                found = _moved(stage, begun)
            finally:
                relay.signal(signal.SIGCONT)
            yield found


def relay_half_dead(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The home relay's STUN answers, its TCP does not: packets to it vanish."""
    for _ in range(rounds):
        with Stage(inet, pair, (Nat.SYMMETRIC, Nat.SYMMETRIC)) as stage:
            relay = inet.relays[RELAY_CODES[home(stage.here)]].host
            begun = time.monotonic()
            relay.nft("table inet half {\nchain in {\ntype filter hook input priority 0\ntcp dport 443 drop\n}\n}")
            try:
                found = _moved(stage, begun)
            finally:
                relay.nft("delete table inet half")
            yield found


def _moved(stage: Stage, begun: float) -> Round:
    """Until the home of `here` is another and the same download goes on, or a new one does."""
    before = home(stage.here)
    moved: float | None = None
    try:
        until(lambda: home(stage.here) not in ("", before), PATIENCE_S, "another home", interval_s=0.2)
        moved = time.monotonic() - begun
    except LabError:
        pass
    flows = stage.wait_bytes(max(10.0, PATIENCE_S - (time.monotonic() - begun)))
    stall = stage.quiet_s(begun)
    return {"stall_s": stall, "moved_s": moved, "flows": flows, "intact": stage.is_intact()}


def home(node: Node) -> str:
    """The code of its home region."""
    return str(node.status()["Self"]["Relay"])


def suspend(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """A node is stopped for a minute, UDP mappings time out meanwhile; woken, it opens a connection."""
    with Stage(inet, pair) as stage:
        stage.reader.process.kill()
        stage.site.forget_after(10)
        for _ in range(rounds):
            stage.here.process.signal(signal.SIGSTOP)
            pass_time(ASLEEP_S)
            stage.here.process.signal(signal.SIGCONT)
            begun = time.monotonic()
            reader = Reader(stage.here, stage.there, stage.rate, 1.0)
            first = reader.wait("first", 60.0)["first"]
            yield {"first_s": first - begun, "healed_s": stage.wait_direct()}
            reader.process.kill()
