"""Turns: a number of places, given by turns to those who wait for one, whoever asks most.

A crowd behind one address waits for its own: each address that waits gets the next free place in turn.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Places for coroutines of one loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(queue) for queue in self._waiting.values())

    @asynccontextmanager
    async def place(self, whose: str) -> AsyncIterator[None]:
        """Hold a place for somebody."""
        await self._enter(whose)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, whose: str) -> None:
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # it was given a place meanwhile
            else:
                self._forget(whose, turn)
            raise

    def _forget(self, whose: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting[whose]
        queue.remove(turn)
        if not queue:
            del self._waiting[whose]

    def _leave(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        whose, queue = self._waiting.popitem(last=False)
        queue.popleft().set_result(None)
        if queue:
            self._waiting[whose] = queue
