"""One lane of a relay's client as a model: frames in order, bounded in bytes and age, in memory that all lanes share.

The counterpart of native/relay/lane.c, for tests/sim/hub.py.
Source: docs/protocol/paths.md 1.5, 10.
"""

from __future__ import annotations

from collections import deque

CHUNK, CHUNK_ROOM, RECORD_HEAD = 16 << 10, (16 << 10) - 8, 8


class Memory:
    """Chunks of all lanes together, and the time at which things are put."""

    def __init__(self, size: int) -> None:
        self.most = size // CHUNK
        self.used = 0
        self.now_ms = 1000


class Lane:
    """Frames in order, the oldest given up for the newest."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.frames: deque[tuple[int, bytes]] = deque()
        """When it was put, and what."""
        self.bytes = 0
        self._head = self._tail = 0
        """Bytes ever taken and put, record heads included, since it was last empty."""

    def put(self, frame: bytes, most: int) -> int:
        """`most`: bytes that may wait. How many frames were lost."""
        lost = 0
        while self.frames and self.bytes + len(frame) > most:
            self.pop()
            lost += 1
        more = RECORD_HEAD + len(frame)
        while self._memory.used + self._chunks(self._head, self._tail + more) - self.chunks > self._memory.most:
            if not self.frames:
                return lost + 1
            self.pop()
            lost += 1
        self.frames.append((self._memory.now_ms, frame))
        self.bytes += len(frame)
        self._move(0, more)
        return lost

    def take(self, most: int, age_ms: int | None) -> tuple[list[bytes], int]:
        """Whole frames of up to `most` bytes, and how many were too old."""
        out, room, old = [], most, 0
        while self.frames:
            at, frame = self.frames[0]
            if age_ms is not None and self._memory.now_ms - at > age_ms:
                self.pop()
                old += 1
                continue
            if len(frame) > room:
                break
            out.append(self.pop())
            room -= len(frame)
        return out, old

    def pop(self) -> bytes:
        """The oldest frame leaves."""
        _, frame = self.frames.popleft()
        self.bytes -= len(frame)
        self._move(RECORD_HEAD + len(frame), 0)
        if not self.frames:
            self.clear()
        return frame

    def clear(self) -> None:
        """Nothing waits, and no memory is held."""
        self._memory.used -= self.chunks
        self.frames.clear()
        self.bytes = self._head = self._tail = 0

    @property
    def chunks(self) -> int:
        """Of the shared memory."""
        return self._chunks(self._head, self._tail)

    @staticmethod
    def _chunks(head: int, tail: int) -> int:
        """A chunk is given back when the first byte behind it is taken."""
        return (tail - 1) // CHUNK_ROOM - max(head - 1, 0) // CHUNK_ROOM + 1 if tail else 0

    def _move(self, taken: int, put: int) -> None:
        self._memory.used -= self.chunks
        self._head += taken
        self._tail += put
        self._memory.used += self.chunks
