"""Which relays are asked, how often, and when: counts and delays of full and incremental plans."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.base.addr import RegionId
from meshnode.core.netplan import Plan, full_plan, incremental_plan
from meshnode.core.report import NetReport, RegionReading
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion


def node(region: int, letter: str = "a", **fields: Any) -> RelayNode:
    return RelayNode(f"{region}{letter}", RegionId(region), f"{region}{letter}.test", **fields)


def region(number: int, letters: str = "a", *, no_home: bool = False, **fields: Any) -> RelayRegion:
    nodes = tuple(node(number, letter, **fields) for letter in letters)
    return RelayRegion(RegionId(number), f"r{number}", "", nodes, no_home=no_home)


def relays(*regions: RelayRegion) -> RelayMap:
    return RelayMap({r.id: r for r in regions})


def shape(plan: Plan) -> list[tuple[str, int, float]]:
    return [(p.node.name, p.family, round(p.after_s, 3)) for p in plan.probes]


def measured(*ms: float | None, ipv6: bool = False) -> NetReport:
    """Regions 1, 2, … with these latencies."""
    readings = {
        RegionId(number): RegionReading(v4_s=value / 1000) for number, value in enumerate(ms, 1) if value is not None
    }
    return NetReport(regions=readings, ipv4=True, ipv6=ipv6)


def test_a_full_plan_tries_each_region_thrice_over_its_nodes() -> None:
    plan = full_plan(relays(region(1, "abcd"), region(2)), has_v4=True, has_v6=False)
    assert plan.is_full
    assert sorted(shape(plan)) == [
        ("1a", 4, 0.0), ("1b", 4, 0.1), ("1c", 4, 0.2), ("2a", 4, 0.0), ("2a", 4, 0.1), ("2a", 4, 0.2),
    ]  # fmt: skip
    assert [p.after_s for p in plan.probes] == sorted(p.after_s for p in plan.probes)


def test_a_full_plan_asks_over_both_families_there_are() -> None:
    both = relays(region(1), region(2, ipv6="none"), region(3, ipv4="none"))
    plan = full_plan(both, has_v4=True, has_v6=True)
    assert {(p.region, p.family) for p in plan.probes} == {(1, 4), (1, 6), (2, 4), (3, 6)}
    assert {p.family for p in full_plan(both, has_v4=False, has_v6=True).probes} == {6}
    assert full_plan(both, has_v4=False, has_v6=False).probes == ()


@pytest.mark.parametrize(
    ("fields", "families"),
    [
        ({"ipv4": "192.0.2.1"}, {4, 6}),
        ({"ipv4": "192.0.2.1", "ipv6": "none"}, {4}),
        ({"stun_port": -1}, set()),
        ({"stun_test_ip": "192.0.2.9", "ipv6": "2001:db8::1"}, {4}),
        ({"stun_test_ip": "2001:db8::9"}, {6}),
        ({"ipv4": "nonsense"}, {6}),
    ],
)
def test_what_a_map_entry_allows(fields: dict[str, Any], families: set[int]) -> None:
    plan = full_plan(relays(region(1, **fields)), has_v4=True, has_v6=True)
    assert {p.family for p in plan.probes} == families


def test_regions_that_cannot_be_home_are_not_measured() -> None:
    plan = full_plan(relays(region(1, "ab"), region(2, no_home=True)), has_v4=True, has_v6=False)
    assert {p.region for p in plan.probes} == {1}
    assert [r.id for r in plan.regions] == [1]


def test_a_single_server_gets_a_second_target_for_the_kind_of_nat() -> None:
    plan = full_plan(relays(region(1), region(2, "abc", no_home=True)), has_v4=True, has_v6=False)
    extra = [p for p in plan.probes if not p.is_measure]
    assert [(p.node.name, p.family) for p in extra] == [("2a", 4), ("2b", 4)]
    two_nodes = full_plan(relays(region(1, "ab"), region(2, no_home=True)), has_v4=True, has_v6=False)
    assert all(p.is_measure for p in two_nodes.probes)
    alone = full_plan(relays(region(1)), has_v4=True, has_v6=False)
    assert {p.node.name for p in alone.probes} == {"1a"}


def test_an_incremental_plan_asks_the_three_fastest_and_the_home() -> None:
    five = relays(*(region(number) for number in range(1, 6)))
    last = measured(50, 10, 20, 40, 30)
    plan = incremental_plan(five, last, RegionId(1), has_v4=True, has_v6=False)
    assert not plan.is_full
    tries = {r: [round(p.after_s, 4) for p in plan.probes if p.region == r] for r in range(1, 6)}
    assert tries[2] == [0.0, 0.012]
    assert tries[3] == [0.0, 0.024]
    assert tries[5] == [0.0]
    assert tries[1] == [0.0, 0.06, 0.22, 0.33]  # 1.2 × 50 ms each, and 50 ms more a try from the third on
    assert tries[4] == []


def test_the_home_is_asked_four_times_even_without_history() -> None:
    plan = incremental_plan(relays(region(1), region(2)), NetReport(), RegionId(2), has_v4=True, has_v6=False)
    assert [round(p.after_s, 3) for p in plan.probes if p.region == 2] == [0.0, 0.2, 0.5, 0.75]


def test_slower_regions_alternate_families_on_a_dual_stack() -> None:
    four = relays(*(region(number) for number in range(1, 5)))
    plan = incremental_plan(four, measured(10, 20, 30, 40, ipv6=True), RegionId(1), has_v4=True, has_v6=True)
    families = {r: {p.family for p in plan.probes if p.region == r} for r in range(1, 5)}
    assert families == {1: {4, 6}, 2: {4, 6}, 3: {4}, 4: set()}
    at_home = incremental_plan(four, measured(10, 20, 30, 40, ipv6=True), RegionId(4), has_v4=True, has_v6=True)
    assert {p.family for p in at_home.probes if p.region == 4} == {4, 6}
    without_v6 = incremental_plan(four, measured(10, 20, 30, 40), RegionId(1), has_v4=True, has_v6=True)
    assert {p.family for p in without_v6.probes if p.region == 3} == {4}


def test_a_plan_is_bounded() -> None:
    many = relays(*(region(number) for number in range(1, 500)))
    assert len(full_plan(many, has_v4=True, has_v6=True).probes) == 64 * 3 * 2
