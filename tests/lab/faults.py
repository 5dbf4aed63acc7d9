"""What happens to a running download when its path breaks: scenarios, each a function of a stage's internet and a pair.

A scenario returns a list of rounds, each a flat JSON object: `stall_s` is the longest silence at the reader, `intact`
that the same connection went on and every byte was right; the rest is the scenario's own.
Source: docs/nat.md; the figures asked for are there too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tests.lab import rules
from tests.lab.inet import Inet
from tests.lab.rules import Nat
from tests.lab.site import Families, Site
from tests.lab.stage import BOTH, Stage, pass_time

Round = dict[str, Any]

HOLD_MIN_S, HOLD_MAX_S = 4.0, 40.0
"""A cut lasts until the download goes on and both ends have given the path up, within these bounds."""
HEALED_S = 70.0
STEADY_S = 15.0
"""How long a path has been in use when it is cut: a fresh one is doubled by the relay."""
REBIND_EVERY_S = 20.0
MIB = 1 << 20


def cut(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """UDP stops at one router, both ways; healed again by itself, and every second time after a ping."""
    with Stage(inet, pair) as stage:
        for number in range(rounds):
            yield _cut(stage, rules.BOTH, is_triggered=number % 2 == 1)


def cut_out(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """UDP that leaves the reader's router is lost."""
    with Stage(inet, pair) as stage:
        for _ in range(rounds):
            yield _cut(stage, rules.OUT)


def cut_in(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """UDP that arrives at the reader's router is lost."""
    with Stage(inet, pair) as stage:
        for _ in range(rounds):
            yield _cut(stage, rules.IN)


def _cut(stage: Stage, way: str, *, is_triggered: bool = False) -> Round:
    if stage.wait_direct() is None:
        return {"note": "no direct path to begin with", **_state(stage)}
    pass_time(STEADY_S)
    begun = time.monotonic()
    stage.site.cut_udp(way)
    relayed_s = stage.wait_relayed(HOLD_MAX_S)
    while time.monotonic() - begun < HOLD_MIN_S:
        stage.wait_bytes(HOLD_MIN_S)
    flows = stage.wait_bytes(HOLD_MAX_S)
    found: Round = {"stall_s": stage.quiet_s(begun), "relayed_s": relayed_s, "flows": flows}
    stage.site.heal_udp()
    healed = time.monotonic()
    if is_triggered:
        stage.here.program.ping(stage.there.name)
    is_healed = stage.wait_direct(HEALED_S) is not None
    found["healed_s"] = time.monotonic() - healed if is_healed else None
    return found | {"triggered": is_triggered, **_state(stage)}


def scrub(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """WireGuard data is dropped at one router; DISCO and handshakes pass."""
    yield from _scrub(inet, pair, rounds, rules.BOTH)


def scrub_out(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The same for what leaves the reader's router."""
    yield from _scrub(inet, pair, rounds, rules.OUT)


def scrub_in(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The same for what arrives there."""
    yield from _scrub(inet, pair, rounds, rules.IN)


def _scrub(inet: Inet, pair: str, rounds: int, way: str) -> Iterator[Round]:
    for _ in range(rounds):
        with Stage(inet, pair) as stage:
            if stage.wait_direct() is None:
                yield {"note": "no direct path to begin with", **_state(stage)}
                continue
            pass_time(STEADY_S)
            begun = time.monotonic()
            stage.site.scrub(way=way)
            yield _aftermath(stage, begun, 45.0)


def _aftermath(stage: Stage, begun: float, patience_s: float) -> Round:
    """Once the fault is there: until the stall is over for good, or patience is."""
    flows = stage.wait_bytes(10.0)
    while time.monotonic() - begun < patience_s / 3 or (not flows and time.monotonic() - begun < patience_s):
        flows = stage.wait_bytes(10.0)
    return {"stall_s": stage.quiet_s(begun), "flows": flows, **_state(stage)}


def hole_1280(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """IPv4 packets above 1280 bytes vanish."""
    yield from _hole(inet, pair, rounds, 1280)


def hole_1124(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """IPv4 packets above 1124 bytes vanish."""
    yield from _hole(inet, pair, rounds, 1124)


def _hole(inet: Inet, pair: str, rounds: int, limit: int) -> Iterator[Round]:
    """A slow download runs when the hole opens; then 10 MiB at once each way."""
    for _ in range(rounds):
        with Stage(inet, pair) as stage:
            stage.wait_direct()
            begun = time.monotonic()
            stage.site.hole(limit)
            found = _aftermath(stage, begun, 30.0)
            stage.reader.process.kill()
            for name in ("down", "up"):
                reader = stage.read(4.0, rate=10 * MIB // 4)
                end = reader.wait("whole", 90.0)
                found[f"{name}_mbit"] = 8 * 10 * MIB / 1e6 / (end["end"] - reader.lines()[0]["start"])
                stage.nodes.reverse()
            yield found


def rebinding(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """Every 20 s the reader's router forgets all mappings of UDP and gives others."""
    with Stage(inet, pair) as stage:
        stage.wait_direct()
        for _ in range(rounds):
            begun = time.monotonic()
            stage.site.rebind()
            direct = _direct_again(stage, begun)
            while time.monotonic() - begun < REBIND_EVERY_S:
                stage.wait_bytes(REBIND_EVERY_S)
            yield {"stall_s": stage.quiet_s(begun), "healed_s": direct, **_state(stage)}


def _direct_again(stage: Stage, begun: float) -> float | None:
    """Seconds since `begun` until both ends are direct and stay so for two seconds."""
    since: float | None = None
    while (now := time.monotonic()) - begun < REBIND_EVERY_S:
        since = (since or now) if stage.is_direct() else None
        if since is not None and now - since > 2.0:
            return since - begun
        stage.wait_bytes(0.3)
    return None


def roaming(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The reader leaves a network of both families and comes back in one that has IPv6 only."""
    for _ in range(rounds):
        with Stage(inet, pair, families=BOTH) as stage:
            stage.wait_direct()
            name = f"{stage.site.name}six"
            six = Site(inet.lab, name, Nat.PORT_RESTRICTED, families=Families(v4=False, v6=True)).build()
            begun = time.monotonic()
            stage.site.unplug(stage.here.host)
            six.plug(stage.here.host)
            yield _aftermath(stage, begun, 60.0)
            stage.sites.append(six)


def replugged(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """The reader's link is deleted, and made again half a second later."""
    with Stage(inet, pair) as stage:
        for _ in range(rounds):
            stage.wait_direct()
            begun = time.monotonic()
            stage.site.unplug(stage.here.host)
            stage.wait_bytes(0.5)
            stage.site.plug(stage.here.host)
            yield _aftermath(stage, begun, 45.0)


def _state(stage: Stage) -> Round:
    return {"intact": stage.is_intact(), "reasons": stage.reasons()}
