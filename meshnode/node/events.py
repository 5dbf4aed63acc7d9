"""What happens in a node, as values, for any number of readers.

Each reader has a bounded queue: a slow one loses the oldest events, counted in `Missed`, and slows
nobody. Writers never wait.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Final, Self

from meshnode.base import bounds
from meshnode.base.addr import Endpoint
from meshnode.netmap.model import Changes, Netmap, Peer

READERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class NetmapChanged:
    """A new netmap is in use."""

    netmap: Netmap
    changes: Changes


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The way to a peer changed its state."""

    peer: Peer
    old: str
    new: str
    reason: str
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class ControlChanged:
    """Where we stand with the control server."""

    phase: str
    reason: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class RelayChanged:
    """A relay connection came or went, or the home relay moved."""

    region: int
    is_connected: bool
    is_home: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """This reader was too slow: `count` events are gone."""

    count: int


Event = NetmapChanged | PathChanged | ControlChanged | RelayChanged | Missed


class Subscription:
    """One reader: `async for event in node.events()`. Dropping it, or `close`, ends it."""

    def __init__(self, *, is_over: bool) -> None:
        self._queue: deque[Event] = deque()
        self._missed = 0
        self._arrived = asyncio.Event()
        self.is_over = is_over

    def put(self, event: Event) -> None:
        """Queue an event; beyond the bound the oldest goes and is counted."""
        if len(self._queue) >= bounds.EVENTS_QUEUE_MAX:
            self._queue.popleft()
            self._missed += 1
        self._queue.append(event)
        self._arrived.set()

    def close(self) -> None:
        """No more events; what is queued can still be read."""
        self.is_over = True
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; the iteration ends when the node closes."""
        while True:
            if self._missed:
                count, self._missed = self._missed, 0
                return Missed(count)
            if self._queue:
                return self._queue.popleft()
            if self.is_over:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()


class Broadcast:
    """Hands every event to every reader."""

    def __init__(self) -> None:
        self._readers: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Tell every reader; never waits."""
        for reader in self._readers:
            reader.put(event)

    def subscribe(self) -> Subscription:
        """Every event from this call on, until the node closes. RuntimeError beyond READERS_MAX readers."""
        reader = Subscription(is_over=self._closed)
        if not self._closed:
            self._readers = weakref.WeakSet(r for r in self._readers if not r.is_over)
            if len(self._readers) >= READERS_MAX:
                raise RuntimeError(f"more than {READERS_MAX} readers of a node's events; close some")
            self._readers.add(reader)
        return reader

    def close(self) -> None:
        """End every reader once it has read what is queued."""
        self._closed = True
        for reader in self._readers:
            reader.close()
        self._readers.clear()
