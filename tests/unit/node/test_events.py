"""Events reach every reader in order; a slow reader loses the oldest and is told how many."""

from __future__ import annotations

import asyncio

import pytest

from meshnode.base import bounds
from meshnode.node.events import READERS_MAX, Broadcast, ControlChanged, Event, Missed


async def collect(broadcast: Broadcast, count: int) -> None:
    one, other = broadcast.subscribe(), broadcast.subscribe()
    for number in range(count):
        broadcast.publish(ControlChanged("running", str(number)))
    broadcast.close()
    first: list[Event] = [event async for event in one]
    assert first == [event async for event in other]
    kept = min(count, bounds.EVENTS_QUEUE_MAX)
    expected: list[Event] = [ControlChanged("running", str(n)) for n in range(count - kept, count)]
    assert first == ([Missed(count - kept)] if count > kept else []) + expected


@pytest.mark.parametrize("count", [0, 3, bounds.EVENTS_QUEUE_MAX + 5])
def test_every_reader_gets_everything_that_fits(count: int) -> None:
    asyncio.run(asyncio.wait_for(collect(Broadcast(), count), 10))


def test_readers_are_bounded_and_leave() -> None:
    async def work() -> None:
        broadcast = Broadcast()
        readers = [broadcast.subscribe() for _ in range(READERS_MAX)]
        with pytest.raises(RuntimeError, match="readers"):
            broadcast.subscribe()
        readers.pop()
        readers.append(broadcast.subscribe())
        broadcast.close()
        assert [event async for event in broadcast.subscribe()] == []

    asyncio.run(asyncio.wait_for(work(), 10))
