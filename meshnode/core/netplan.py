"""Which relays a netcheck asks by STUN, over which family, and when: the plan of one report.

A full plan asks every region, three tries 100 ms apart over its nodes. An incremental one asks the three fastest
regions of the last report and the home, in steps of their latency. What is planned need not be sent: a check skips
what it has learned meanwhile.
Source: docs/protocol/paths.md 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from meshnode.base.addr import RegionId, parse_ip
from meshnode.core.report import NetReport
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion

FULL_TRIES: Final = 3
FULL_STEP_S: Final = 0.1
FASTEST: Final = 3
"""Regions an incremental plan asks besides the home."""
FASTEST_TRIES: Final = 2
HOME_TRIES: Final = 4
UNKNOWN_STEP_S: Final = 0.2
STEP_FACTOR: Final = 1.2
LATE_STEP_S: Final = 0.05
SECOND_TARGETS: Final = 2
"""Nodes asked for their view of our address only, where the map has too few to compare."""
REGIONS_MAX: Final = 64
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Probe:
    """One STUN request to be sent."""

    after_s: float
    """Since the report began."""
    region: RegionId
    node: RelayNode
    family: int
    """4 or 6."""
    is_measure: bool = True
    """Its latency counts; else it is sent for the address it will tell."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one report asks."""

    is_full: bool
    probes: tuple[Probe, ...]
    """In the order of their times."""
    regions: tuple[RelayRegion, ...]
    """What to measure by other means if STUN is silent."""


def full_plan(relays: RelayMap, *, has_v4: bool, has_v6: bool) -> Plan:
    """Every region that may be measured."""
    regions = measured(relays)
    delays = [number * FULL_STEP_S for number in range(FULL_TRIES)]
    probes: list[Probe] = []
    for region in regions:
        for family in _families(has_v4, has_v6):
            probes += _tries(region, family, delays)
    return Plan(True, _in_order([*probes, *_second_targets(relays, probes)]), regions)


def incremental_plan(relays: RelayMap, last: NetReport, home: RegionId, *, has_v4: bool, has_v6: bool) -> Plan:
    """The fastest regions of the last report, and the home with more care."""
    had_both = has_v6 and last.ipv4 and last.ipv6
    probes: list[Probe] = []
    regions = []
    for rank, region in enumerate(_by_latency(measured(relays), last)):
        is_home = region.id == home
        if rank >= FASTEST and not is_home:
            continue
        regions.append(region)
        is_fastest = rank < FASTEST_TRIES
        with_v4, with_v6 = has_v4, has_v6 and (is_fastest or last.ipv6)
        if had_both and not is_fastest and not is_home:
            with_v4, with_v6 = has_v4 and rank % 2 == 0, rank % 2 == 1
        tries = HOME_TRIES if is_home else FASTEST_TRIES if is_fastest else 1
        latency = _latency(last, region.id)
        step = STEP_FACTOR * latency if latency else UNKNOWN_STEP_S
        delays = [number * step + (number * LATE_STEP_S if number > 1 else 0.0) for number in range(tries)]
        for family in _families(with_v4, with_v6):
            probes += _tries(region, family, delays)
    return Plan(False, _in_order([*probes, *_second_targets(relays, probes)]), tuple(regions))


def measured(relays: RelayMap) -> tuple[RelayRegion, ...]:
    """The regions whose latency anybody wants to know, by number, bounded."""
    wanted = [r for r in relays.regions.values() if not r.no_home and r.nodes]
    return tuple(sorted(wanted, key=lambda r: r.id)[:REGIONS_MAX])


def answers_stun(node: RelayNode, family: int) -> bool:
    """Whether a node can be asked over a family, as far as its map entry says."""
    if node.stun_port <= 0:
        return False
    text = node.stun_test_ip or (node.ipv4 if family == 4 else node.ipv6)
    if text in ("", NONE):
        return text == ""
    try:
        return parse_ip(text).version == family
    except ValueError:
        return False


def _tries(region: RelayRegion, family: int, delays: list[float]) -> Iterator[Probe]:
    """One for each delay, over the nodes in turn."""
    nodes = [n for n in region.nodes if answers_stun(n, family)]
    for number, delay in enumerate(delays if nodes else ()):
        yield Probe(delay, region.id, nodes[number % len(nodes)], family)


def _second_targets(relays: RelayMap, planned: list[Probe]) -> Iterator[Probe]:
    """One server alone cannot tell what kind of NAT this is; nodes nobody measures may help."""
    asked = {p.node.name for p in planned if p.family == 4}
    if len(asked) != 1:
        return
    others = [n for r in relays.regions.values() for n in r.nodes if n.name not in asked and answers_stun(n, 4)]
    for number, node in enumerate(others[:SECOND_TARGETS]):
        yield Probe(number * FULL_STEP_S, node.region, node, 4, is_measure=False)


def _families(has_v4: bool, has_v6: bool) -> tuple[int, ...]:
    return tuple(family for family, has in ((4, has_v4), (6, has_v6)) if has)


def _latency(report: NetReport, region: RegionId) -> float | None:
    reading = report.regions.get(region)
    return reading.best_s if reading is not None else None


def _by_latency(regions: tuple[RelayRegion, ...], last: NetReport) -> list[RelayRegion]:
    def key(region: RelayRegion) -> tuple[bool, float, int]:
        latency = _latency(last, region.id)
        return latency is None, latency or 0.0, region.id

    return sorted(regions, key=key)


def _in_order(probes: list[Probe]) -> tuple[Probe, ...]:
    return tuple(sorted(probes, key=lambda probe: probe.after_s))
