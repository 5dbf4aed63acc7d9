"""The home relay: connect before telling, move on when one does not answer, keep one that does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from meshnode.base.addr import RegionId
from meshnode.base.units import Seconds
from meshnode.core.report import NetReport, RegionReading
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.node import home as home_module
from meshnode.node.home import HomeKeeper
from meshnode.run.clock import Clock


def relays(*numbers: int, **fields: Any) -> RelayMap:
    regions = {}
    for number in numbers:
        region = RegionId(number)
        server = RelayNode(f"{number}a", region, f"r{number}.test", stun_only=fields.get("stun_only", False))
        regions[region] = RelayRegion(region, f"r{number}", "", (server,), no_home=fields.get("no_home", False))
    return RelayMap(regions)


class Record:
    def __init__(self, preferred: int = 0) -> None:
        self.chosen: list[int] = []
        self.reported: list[int] = []
        self.connected: list[int] = []
        self.is_told = True
        self.clock = Hands()
        self.keeper = HomeKeeper(
            choose=self.chosen.append,
            report=self.reported.append,
            connect=self.connected.append,
            is_told=lambda: self.is_told,
            clock=self.clock,
            preferred=preferred,
        )

    def measure(self, **ms: float) -> None:
        """A full report with these latencies of r<region>, begun and ended now."""
        now = self.clock.now()
        regions = {RegionId(int(name[1:])): RegionReading(v4_s=value / 1000) for name, value in ms.items()}
        self.keeper.on_report(NetReport(at=now, is_full=True, udp=True, regions=regions), now, None)


class Hands(Clock):
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 1000.0

    def now(self) -> Seconds:
        return Seconds(self.at)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_reported_once_connected_and_not_before() -> None:
    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(3, 1, 2))
        assert record.chosen == [1]
        assert record.reported == []
        assert not record.keeper.settled.is_set()
        record.keeper.on_relay(RegionId(2), True)
        assert record.reported == []
        record.keeper.on_relay(RegionId(1), True)
        assert record.reported == [1]
        assert record.keeper.settled.is_set()
        record.keeper.close()

    run(work())


def test_last_home_first() -> None:
    async def work() -> None:
        record = Record(preferred=2)
        record.keeper.on_map(relays(1, 2, 3))
        assert record.chosen == [2]
        record.keeper.close()

    run(work())


@pytest.mark.parametrize("fields", [{"no_home": True}, {"stun_only": True}])
def test_regions_that_cannot_be_home(fields: dict[str, bool]) -> None:
    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, **fields))
        assert (record.chosen, record.keeper.is_needed) == ([], False)

    run(work())


def test_a_silent_region_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "TRY_S", 0.01)

    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2, 3))
        while record.connected[:2] != [2, 3]:
            await asyncio.sleep(0)
        assert record.chosen == [1]  # still dialled beside them
        record.keeper.on_relay(RegionId(record.connected[-1]), True)
        assert record.chosen == [1, record.connected[-1]] and record.reported == record.connected[-1:]
        record.keeper.close()

    run(work())


def test_the_first_that_answers_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "TRY_S", 0.01)

    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        while not record.connected:
            await asyncio.sleep(0)
        record.keeper.on_relay(RegionId(1), True)
        record.keeper.on_relay(RegionId(2), True)
        assert (record.chosen, record.reported) == ([1], [1])
        record.keeper.close()

    run(work())


def test_the_first_report_moves_an_unmeasured_home_once_the_other_is_connected() -> None:
    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        record.keeper.on_relay(RegionId(1), True)
        record.measure(r1=80, r2=10)
        assert (record.connected, record.chosen, record.reported) == ([2], [1], [1])
        record.keeper.on_relay(RegionId(2), False)  # it dials
        record.keeper.on_relay(RegionId(2), True)
        assert (record.chosen, record.reported, record.keeper.region) == ([1, 2], [1, 2], 2)
        record.keeper.close()

    run(work())


def test_a_better_region_that_takes_no_login_is_no_home() -> None:
    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        record.keeper.on_relay(RegionId(1), True)
        for _ in range(2):
            record.measure(r1=80, r2=10)
            record.keeper.on_relay(RegionId(2), False, is_over=True)
        assert record.connected == [2, 2]
        for _ in range(5):  # two logins failed: it is out, whatever its STUN says
            record.clock.at += 10
            record.measure(r1=80, r2=10)
        assert record.connected == [2, 2] and record.reported == [1] and record.keeper.settled.is_set()
        record.keeper.close()

    run(work())


def test_a_lost_home_makes_way_and_a_moment_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "LOST_S", 0.01)

    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        record.keeper.on_relay(RegionId(1), True)
        record.keeper.on_relay(RegionId(1), False)
        record.keeper.on_relay(RegionId(1), True)
        await asyncio.sleep(0.03)
        assert record.connected == []
        record.keeper.on_relay(RegionId(1), False)
        while not record.connected:
            await asyncio.sleep(0)
        record.keeper.on_relay(RegionId(2), True)
        assert record.reported[-1] == record.keeper.region == 2
        record.keeper.close()

    run(work())


def test_a_lost_home_is_kept_while_control_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "LOST_S", 0.01)

    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        record.keeper.on_relay(RegionId(1), True)
        record.is_told = False
        record.keeper.on_relay(RegionId(1), False)
        record.clock.at += 200
        record.measure(r2=10)
        await asyncio.sleep(0.05)
        assert record.connected == []
        record.is_told = True
        while not record.connected:
            await asyncio.sleep(0)
        record.keeper.close()

    run(work())


def test_a_home_that_left_the_map_is_replaced_and_one_that_stayed_is_kept() -> None:
    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        record.keeper.on_relay(RegionId(1), True)
        record.keeper.on_map(relays(1, 2, 3))
        assert record.chosen == [1]
        record.keeper.on_map(relays(2))
        assert record.chosen == [1, 2]
        assert not record.keeper.settled.is_set()
        record.keeper.close()

    run(work())


def test_a_short_gap_keeps_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        record = Record()
        record.keeper.on_map(relays(1, 2))
        record.keeper.on_relay(RegionId(1), True)
        record.keeper.on_relay(RegionId(1), False)
        assert not record.keeper.settled.is_set()
        record.keeper.on_relay(RegionId(1), True)
        assert record.chosen == [1]
        assert record.keeper.settled.is_set()
        record.keeper.close()

    run(work())
