"""Publish a value; await the next one.

One writer, any number of readers. A reader that is slow sees the newest value, not each one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Snapshot(Generic[T]):
    """Holds the newest value and wakes whoever waits for it."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._changed: asyncio.Event = asyncio.Event()

    @property
    def value(self) -> T:
        """The newest value."""
        return self._value

    def publish(self, value: T) -> None:
        """Replace the value and wake every waiter."""
        self._value = value
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, wanted: Callable[[T], bool]) -> T:
        """The first value, now or later, for which `wanted` holds. The caller bounds the wait."""
        while not wanted(self._value):
            await self._changed.wait()
        return self._value

    async def watch(self) -> AsyncIterator[T]:
        """Every value from now on, the current one first; skips those a slow reader missed."""
        seen = -1
        while True:
            if self._version == seen:
                await self._changed.wait()
            seen = self._version
            yield self._value
