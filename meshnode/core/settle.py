"""When to look after a burst of news: once it has been quiet for a moment, and not too often however long it lasts.

News is counted, never queued: one look finds the state of now.
Source: docs/protocol/paths.md 7.6.
"""

from __future__ import annotations

from typing import Final

QUIET_S: Final = 0.1
WAIT_MAX_S: Final = 0.25
"""A burst that goes on does not put a look off for longer."""
REST_S: Final = 0.25
REST_SHARE: Final = 20.0
"""Looks may take a twentieth of the time."""


class Settle:
    """All instants are loop time."""

    __slots__ = ("_first_at", "_last_at", "_rest_until", "count")

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._last_at = 0.0
        self._rest_until = 0.0
        self.count = 0
        """News since the last look."""

    def note(self, now: float) -> None:
        """There is news."""
        self._last_at = now
        if self._first_at is None:
            self._first_at = now
        self.count += 1

    def due_at(self) -> float | None:
        """When to look; None while there is nothing new."""
        if self._first_at is None:
            return None
        return max(min(self._last_at + QUIET_S, self._first_at + WAIT_MAX_S), self._rest_until)

    def looked(self, now: float, took_s: float) -> None:
        """A look ended at `now`."""
        self._first_at = None
        self.count = 0
        self._rest_until = now + max(REST_S, took_s * REST_SHARE)
