"""Scenarios of relays that die and of nodes that sleep; as in faults.py each returns its rounds.

Source: docs/nat.md.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress

from interop.lab import LabError
from interop.peers.derper import Derper
from interop.process import until
from tests.lab.cell import Reader
from tests.lab.faults import Round
from tests.lab.inet import Inet, Node
from tests.lab.rules import Nat
from tests.lab.stage import Stage, pass_time

PATIENCE_S = 90.0
ASLEEP_S = 60.0
BY_RELAY = (Nat.UDP_BLOCKED, Nat.PORT_RESTRICTED)
HARD = (Nat.SYMMETRIC, Nat.SYMMETRIC)


def relay_stopped(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The relay that carries a download is stopped by SIGSTOP: its sockets stay open and nothing answers."""
    for _ in range(rounds):
        with Stage(inet, pair, BY_RELAY) as stage:
            relay = carrying(inet)
            assert relay.process is not None
            relay.process.signal(signal.SIGSTOP)
            try:
                yield _aftermath(stage, relay)
            finally:
                relay.process.signal(signal.SIGCONT)


def relay_half_dead(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The STUN server of the relay that carries a download answers, its TCP does not: packets to it vanish."""
    for _ in range(rounds):
        with Stage(inet, pair, HARD) as stage:
            relay = carrying(inet)
            relay.host.nft("table inet half {\nchain in {\ntype filter hook input priority 0\ntcp dport 443 drop\n}\n}")
            try:
                yield _aftermath(stage, relay)
            finally:
                relay.host.nft("delete table inet half")


def carrying(inet: Inet) -> Derper:
    """The relay that sends most just now."""

    def sent(relay: Derper) -> int:
        return int(relay.host.run("cat", "/sys/class/net/eth0/statistics/tx_bytes").stdout)

    before = [sent(relay) for relay in inet.relays]
    pass_time(1.0)
    return max(zip(inet.relays, before, strict=True), key=lambda pair: sent(pair[0]) - pair[1])[0]


def _aftermath(stage: Stage, relay: Derper) -> Round:
    """Until those whose home the relay was have another, and the same download goes on."""
    begun, code = time.monotonic(), relay.code
    moved: float | None = None
    with suppress(LabError):
        until(lambda: code not in (home(stage.here), home(stage.there)), PATIENCE_S, "another home", interval_s=0.2)
        moved = time.monotonic() - begun
    flows = stage.wait_bytes(max(10.0, PATIENCE_S - (time.monotonic() - begun)))
    return {"stall_s": stage.quiet_s(begun), "moved_s": moved, "flows": flows, "intact": stage.is_intact()}


def home(node: Node) -> str:
    """The code of its home region."""
    return str(node.status()["Self"]["Relay"])


def suspended(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
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
            yield {"first_s": first - begun}
            reader.process.kill()
