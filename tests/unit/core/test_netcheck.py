"""One check in virtual time: who is asked, when it ends, what it concludes. `World` answers as a network would."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from typing import Any

import pytest

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core import netcheck
from meshnode.core.netcheck import AskHttps, AskPortal, AskStun, Check, Stage
from meshnode.core.netplan import Plan, Probe, full_plan, incremental_plan
from meshnode.core.report import NetReport, RegionReading
from meshnode.netmap.model import RelayMap
from tests.unit.core.test_netplan import region, relays

START = 100.0
OURS = Endpoint(IPv4Address("203.0.113.5"), 50000)


def server(probe: Probe) -> Endpoint:
    """Every node and family is a server of its own."""
    letter = ord(probe.node.name[-1])
    if probe.family == 6:
        return Endpoint(IPv6Address(f"2001:db8:{probe.region}::{letter}"), 3478)
    return Endpoint(IPv4Address(f"192.0.{probe.region}.{letter}"), 3478)


class World:
    """Plays a check against servers. ms: round trip to a node's server by its name; absent: silence."""

    def __init__(
        self,
        plan: Plan,
        ms: dict[str, float],
        *,
        mapped: Callable[[Endpoint], Endpoint] = lambda to: OURS,
        https: dict[int, float] | None = None,
        icmp: dict[int, float] | None = None,
        no_v6: bool = False,
        lost: int = 0,
        portal: tuple[float, bool | None] = (0.0, None),
    ) -> None:
        numbers = count()
        self.check = Check(plan, Seconds(START), lambda: next(numbers).to_bytes(12, "big"))
        self.ms, self.mapped, self.https, self.icmp, self.no_v6, self.lost = ms, mapped, https, icmp, no_v6, lost
        self.portal, self.portal_asked = portal, list[float]()
        self.sent: list[tuple[float, str, int]] = []
        self.now = Seconds(START)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def run(self) -> NetReport:
        while True:
            for ask in self.check.asks(self.now):
                self._perform(ask)
            if self.check.is_done:
                return self.check.report(self.now, os_has_ipv6=True)
            deadline = self.check.next_deadline()
            if self._events and self._events[0][0] <= deadline:
                at, _, act = heapq.heappop(self._events)
                self.now = Seconds(at)
                act()
            else:
                assert deadline > self.now or self.check.asks(deadline) or self.check.is_done
                self.now = Seconds(max(deadline, self.now))

    def later(self, seconds: float, act: Callable[[], Any]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), act))

    def _perform(self, ask: netcheck.Ask) -> None:
        if isinstance(ask, AskStun):
            self._send(ask)
        elif isinstance(ask, AskPortal):
            self.portal_asked.append(round(self.now - START, 3))
            after_s, verdict = self.portal
            self.later(after_s, lambda: self.check.take_portal(verdict))
        elif isinstance(ask, AskHttps):
            if self.https is not None:
                ms, number = self.https.get(ask.region.id), ask.region.id
                took = None if ms is None else ms / 1000
                self.later(took or 0.0, lambda: self.check.take_https(number, took))
        elif self.icmp is not None:
            ms, number = self.icmp.get(ask.region.id), ask.region.id
            took = None if ms is None else ms / 1000
            self.later(took or 1.0, lambda: self.check.take_icmp(number, took))

    def _send(self, ask: AskStun) -> None:
        to = server(ask.probe)
        if self.no_v6 and to.ip.version == 6:
            self.check.note_unsendable(ask.txid)
            return
        self.sent.append((round(self.now - START, 4), ask.probe.node.name, ask.probe.family))
        self.check.note_sent(ask.txid, to, self.now)
        ms = self.ms.get(ask.probe.node.name)
        if self.lost:
            self.lost -= 1
        elif ms is not None:
            at = self.now + ms / 1000
            self.later(ms / 1000, lambda: self.check.take_answer(ask.txid, self.mapped(to), Seconds(at)))


def full(map_: RelayMap, *, v6: bool = False) -> Plan:
    return full_plan(map_, has_v4=True, has_v6=v6)


def test_all_answer_and_it_ends_with_the_last_that_helps() -> None:
    world = World(full(relays(region(1), region(2))), {"1a": 20, "2a": 50})
    report = world.run()
    assert world.sent == [(0.0, "1a", 4), (0.0, "2a", 4)]
    assert {r: reading.v4_s for r, reading in report.regions.items()} == pytest.approx({1: 0.020, 2: 0.050})
    assert (report.udp, report.ipv4, report.ipv6, report.stun_sent) == (True, True, False, 2)
    assert report.duration_s == pytest.approx(0.050)
    assert report.global_v4 == OURS and report.global_v6 is None and report.seen == {OURS: 2}


def test_a_round_trip_is_that_of_the_try_that_was_answered() -> None:
    world = World(full(relays(region(1), region(2))), {"1a": 150, "2a": 150}, lost=1)
    report = world.run()
    assert [at for at, name, _ in world.sent if name == "1a"] == [0.0, 0.1, 0.2]
    assert report.regions[RegionId(1)].v4_s == pytest.approx(0.150)


def test_duplicates_and_strangers_change_nothing() -> None:
    world = World(full(relays(region(1), region(2))), {"1a": 20, "2a": 90})
    other = Endpoint(IPv4Address("198.51.100.9"), 1)
    txid = (0).to_bytes(12, "big")
    world.later(0.030, lambda: world.check.take_answer(txid, other, Seconds(START + 0.030)))
    world.later(0.031, lambda: world.check.take_answer(b"x" * 12, other, Seconds(START + 0.031)))
    report = world.run()
    assert report.seen == {OURS: 2} and report.regions[RegionId(1)].v4_s == pytest.approx(0.020)
    assert world.check.duplicates == 1
    assert not world.check.take_answer(b"x" * 12, other, Seconds(START + 1))


@pytest.mark.parametrize("text", ["0.0.0.0:5", "203.0.113.5:0", "224.0.0.1:5", "[2001:db8::1]:5"])
def test_an_address_that_cannot_be_ours_is_no_answer(text: str) -> None:
    world = World(full(relays(region(1))), {"1a": 20}, mapped=lambda to: Endpoint.parse(text), https={}, icmp={})
    report = world.run()
    assert not report.udp and report.seen == {} and report.regions == {}


def test_three_regions_that_answered_are_enough() -> None:
    map_ = relays(*(region(number) for number in range(1, 7)))
    report = World(full(map_), {"1a": 10, "2a": 20, "3a": 40, "4a": 100, "5a": 2000}).run()
    assert sorted(report.regions) == [1, 2, 3, 4]  # a full report waits 2 × 40 ms more
    assert report.duration_s == pytest.approx(0.120)
    last = NetReport(ipv4=True, regions={RegionId(n): RegionReading(v4_s=n / 100) for n in range(1, 7)})
    plan = incremental_plan(map_, last, RegionId(6), has_v4=True, has_v6=False)
    report = World(plan, {"1a": 10, "2a": 20, "3a": 40, "6a": 2000}).run()
    assert report.duration_s == pytest.approx(0.080)  # an incremental one once as long


def test_silence_ends_after_three_seconds_and_then_other_means_are_tried() -> None:
    world = World(full(relays(region(1), region(2))), {}, https={1: 80, 2: 30}, icmp={1: 70})
    report = world.run()
    assert len(world.sent) == 6
    assert report.udp is False and report.ipv4 is False and report.ipv4_can_send is True and report.icmpv4 is True
    assert report.regions[RegionId(1)] == RegionReading(https_s=0.080, icmp_s=0.070)
    assert report.regions[RegionId(1)].best_s == 0.070
    assert report.regions[RegionId(2)] == RegionReading(https_s=0.030)
    assert report.duration_s == pytest.approx(netcheck.STUN_S + netcheck.ICMP_S)


def test_the_whole_is_over_after_five_seconds_whatever_hangs() -> None:
    report = World(full(relays(region(1), region(2)), v6=True), {}).run()
    assert report.duration_s == pytest.approx(netcheck.TOTAL_S)
    assert report.regions == {} and report.icmpv4 is None


def test_a_captive_portal_is_looked_for_once_when_udp_is_silent() -> None:
    plan = full_plan(relays(region(1), region(2)), has_v4=True, has_v6=False)
    world = World(plan, {}, https={}, icmp={}, portal=(1.0, True))
    assert world.run().captive_portal is True and world.portal_asked == [0.2]
    assert World(plan, {}, https={}, icmp={}, portal=(1.0, False)).run().captive_portal is False
    assert World(plan, {}, https={}, icmp={}, portal=(99.0, True)).run().captive_portal is None


def test_who_is_answered_by_stun_in_time_looks_for_no_portal() -> None:
    plan = full_plan(relays(region(1), region(2)), has_v4=True, has_v6=False)
    world = World(plan, {"1a": 50.0, "2a": 900.0}, portal=(0.0, True))
    assert world.run().captive_portal is None and not world.portal_asked
    late = World(plan, {"1a": 250.0, "2a": 260.0}, portal=(2.0, True))
    assert late.run().captive_portal is None and late.portal_asked == [0.2]
    assert late.now - START < 1.0


def test_an_incremental_report_looks_for_no_portal() -> None:
    last = NetReport(regions={RegionId(1): RegionReading(0.01)})
    plan = incremental_plan(relays(region(1)), last, RegionId(1), has_v4=True, has_v6=False)
    world = World(plan, {}, https={}, icmp={}, portal=(0.0, True))
    assert world.run().captive_portal is None and not world.portal_asked


def test_without_any_stun_server_other_means_are_tried_at_once() -> None:
    world = World(full(relays(region(1, stun_port=-1))), {}, https={1: 30}, icmp={})
    report = world.run()
    assert world.sent == [] and report.stun_sent == 0
    assert report.regions == {RegionId(1): RegionReading(https_s=0.030)}
    assert report.duration_s == pytest.approx(1.0)


def test_a_map_without_regions_is_done_at_once() -> None:
    world = World(full(relays()), {})
    report = world.run()
    assert (report.duration_s, report.regions) == (0.0, {})


def test_relays_that_answer_no_stun_beside_ones_that_do_are_left_out() -> None:
    world = World(full(relays(region(1), region(2, stun_port=-1))), {"1a": 20}, https={2: 5})
    report = world.run()
    assert sorted(report.regions) == [1] and world.check.stage is Stage.DONE


def test_a_family_without_a_route_costs_no_time() -> None:
    report = World(full(relays(region(1), region(2)), v6=True), {"1a": 20, "2a": 30}, no_v6=True).run()
    assert report.duration_s == pytest.approx(0.030)
    assert report.ipv4_can_send and not report.ipv6_can_send and not report.ipv6


def test_both_families_are_kept_apart() -> None:
    ours6 = Endpoint(IPv6Address("2001:db8:9::1"), 41641)
    world = World(
        full(relays(region(1), region(2)), v6=True),
        {"1a": 20, "2a": 30},
        mapped=lambda to: ours6 if to.ip.version == 6 else OURS,
    )
    report = world.run()
    assert (report.global_v4, report.global_v6) == (OURS, ours6)
    assert (report.ipv4, report.ipv6) == (True, True)
    assert report.regions[RegionId(1)].v6_s == pytest.approx(0.020)


# --- the kind of NAT ---


def by_server(to: Endpoint) -> Endpoint:
    """A hard NAT: each destination sees another port."""
    return Endpoint(OURS.ip, 40000 + to.ip.packed[2] + to.ip.packed[3])


def test_two_servers_that_see_the_same_mapping_are_an_easy_nat() -> None:
    assert World(full(relays(region(1), region(2))), {"1a": 20, "2a": 30}).run().mapping_varies is False


def test_two_servers_that_see_different_mappings_are_a_hard_nat() -> None:
    report = World(full(relays(region(1), region(2))), {"1a": 20, "2a": 30}, mapped=by_server).run()
    assert report.mapping_varies is True
    assert len(report.seen) == 2 and report.global_v4 in report.seen


def test_one_server_that_answers_says_nothing_of_the_nat() -> None:
    """Even if it answers more than once."""
    report = World(full(relays(region(1), region(2))), {"1a": 20}).run()
    assert report.mapping_varies is None
    alone = World(full(relays(region(1))), {"1a": 350})
    assert alone.run().mapping_varies is None and len(alone.sent) == 3


@pytest.mark.parametrize(
    "map_", [relays(region(1, "ab")), relays(region(1), region(2, no_home=True))], ids=["node", "region"]
)
def test_a_single_region_map_uses_a_second_target(map_: RelayMap) -> None:
    ms = {"1a": 20.0, "1b": 20.0, "2a": 20.0}
    world = World(full(map_), ms)
    report = world.run()
    assert report.mapping_varies is False and sorted(report.regions) == [1]
    assert len({name for _, name, _ in world.sent}) == 2
    assert World(full(map_), ms, mapped=by_server).run().mapping_varies is True


def test_the_address_most_servers_saw_is_ours() -> None:
    odd = Endpoint(IPv4Address("198.51.100.1"), 7)

    def view(to: Endpoint) -> Endpoint:
        return odd if to.ip.packed[2] == 1 else OURS

    map_ = relays(region(1), region(2), region(3))
    report = World(full(map_), {"1a": 10, "2a": 11, "3a": 12}, mapped=view).run()
    assert report.global_v4 == OURS and report.seen == {odd: 1, OURS: 2}
