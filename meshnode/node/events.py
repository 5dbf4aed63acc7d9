"""What happens in a node, as values, for any number of readers.

Each reader has a bounded queue: a slow one loses the oldest events, counted in `Missed`, and slows
nobody. Writers never wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

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


class _Reader:
    def __init__(self) -> None:
        self.queue: deque[Event] = deque()
        self.missed = 0
        self.arrived = asyncio.Event()
        self.ended = False

    def put(self, event: Event) -> None:
        if len(self.queue) >= bounds.EVENTS_QUEUE_MAX:
            self.queue.popleft()
            self.missed += 1
        self.queue.append(event)
        self.arrived.set()


class Broadcast:
    """Hands every event to every reader."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Tell every reader; never waits."""
        for reader in self._readers:
            reader.put(event)

    def subscribe(self) -> AsyncIterator[Event]:
        """Every event from this call on, until the node closes. RuntimeError beyond READERS_MAX readers."""
        if len(self._readers) >= READERS_MAX:
            raise RuntimeError(f"more than {READERS_MAX} readers of a node's events; close some")
        reader = _Reader()
        reader.ended = self._closed
        if not self._closed:
            self._readers.add(reader)
        return self._read(reader)

    async def _read(self, reader: _Reader) -> AsyncIterator[Event]:
        try:
            while True:
                if reader.missed:
                    count, reader.missed = reader.missed, 0
                    yield Missed(count)
                elif reader.queue:
                    yield reader.queue.popleft()
                elif reader.ended:
                    return
                else:
                    reader.arrived.clear()
                    await reader.arrived.wait()
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End every reader once it has read what is queued."""
        self._closed = True
        for reader in self._readers:
            reader.ended = True
            reader.arrived.set()
