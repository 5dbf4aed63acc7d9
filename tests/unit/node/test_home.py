"""The home relay: connect before telling, move on when one does not answer, keep one that does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from meshnode.base.addr import RegionId
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.node import home as home_module
from meshnode.node.home import HomeKeeper


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
        self.keeper = HomeKeeper(choose=self.chosen.append, report=self.reported.append, preferred=preferred)


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
        record.keeper.on_map(relays(1, 2))
        while record.chosen[:3] != [1, 2, 1]:
            await asyncio.sleep(0)
        record.keeper.on_relay(record.keeper.region, True)
        assert record.reported == [record.keeper.region]
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
