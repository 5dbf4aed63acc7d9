"""What waits for one relay connection: urgent frames first, then data, bounded in bytes and in age.

Fresh packets are worth more than old ones, so the oldest data goes when there is too much of it; what
goes is counted. Urgent is what keeps paths alive: DISCO, pongs, notices.
Source: docs/protocol/paths.md 1.5, 2.2.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from meshnode.base.bounds import RELAY_QUEUE_BYTES

URGENT_BYTES: Final = 64 * 1024
DATA_AGE_S: Final = 3.0
"""Older data helps nobody: its sender has repeated it."""


class Lanes:
    """Two bounded queues of whole frames with one exit."""

    __slots__ = ("_data", "_limit", "_urgent", "data_bytes", "dropped", "dropped_urgent", "urgent_bytes")

    def __init__(self, limit: int = RELAY_QUEUE_BYTES) -> None:
        self._limit = limit
        self._urgent: deque[bytes] = deque()
        self._data: deque[tuple[float, bytes]] = deque()
        self.urgent_bytes = 0
        self.data_bytes = 0
        self.dropped = 0
        """Data frames given up, for space or for age."""
        self.dropped_urgent = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._data)

    def put_urgent(self, frame: bytes) -> None:
        """Queue a frame that goes before all data."""
        self._urgent.append(frame)
        self.urgent_bytes += len(frame)
        while self.urgent_bytes > URGENT_BYTES and len(self._urgent) > 1:
            self.urgent_bytes -= len(self._urgent.popleft())
            self.dropped_urgent += 1

    def put_data(self, frame: bytes, now: float) -> None:
        """Queue a data frame; the oldest ones go if the lane is full."""
        data = self._data
        data.append((now, frame))
        self.data_bytes += len(frame)
        while self.data_bytes > self._limit and len(data) > 1:
            self.data_bytes -= len(data.popleft()[1])
            self.dropped += 1

    def take(self, limit: int, now: float) -> bytes:
        """At least one frame if there is any, about `limit` bytes at most, joined for one write."""
        out: list[bytes] = []
        size = 0
        urgent, data = self._urgent, self._data
        while urgent and size < limit:
            frame = urgent.popleft()
            out.append(frame)
            size += len(frame)
        self.urgent_bytes -= size
        oldest, left = now - DATA_AGE_S, self.data_bytes
        while data and size < limit:
            at, frame = data.popleft()
            left -= len(frame)
            if at < oldest:
                self.dropped += 1
                continue
            out.append(frame)
            size += len(frame)
        self.data_bytes = left
        return out[0] if len(out) == 1 else b"".join(out)

    def drop_urgent(self) -> None:
        """Forget what was meant for a connection that is gone; data may still go by the next one."""
        self._urgent.clear()
        self.urgent_bytes = 0
