"""Whether this machine slept, or this process was stopped, since the last time it was asked.

Sleep shows as a boot clock that ran ahead of the monotonic one; a stopped process, whose clocks ran on, as a timer
that fires far too late. Both leave peers, relays and NATs with a view of us that may be over.
Source: docs/protocol/paths.md 8.8.
"""

from __future__ import annotations

from typing import Final

SLEEP_S: Final = 10.0
STOPPED_S: Final = 5.0
"""A busy machine delays timers by tenths of a second."""


class Wake:
    """Remembers how far the clocks were apart."""

    __slots__ = ("_offset_s", "_woke_at")

    def __init__(self, now: float, boot: float) -> None:
        self._offset_s = boot - now
        self._woke_at = -1e9

    def slept(self, now: float, boot: float) -> bool:
        """Whether the machine slept since this was last asked. now, boot: both clocks of this moment, in seconds."""
        before, self._offset_s = self._offset_s, boot - now
        return self._offset_s - before > SLEEP_S and self._is_news(now)

    def stopped(self, now: float, due_at: float) -> bool:
        """Whether a timer that was due at `due_at` tells of a process that stood still. Told once."""
        return now - due_at > STOPPED_S and self._is_news(now)

    def _is_news(self, now: float) -> bool:
        """Many timers wake late at once; sleep itself makes them late, too."""
        is_news = now - self._woke_at > 1.0
        self._woke_at = now
        return is_news
