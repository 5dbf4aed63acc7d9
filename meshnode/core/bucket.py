"""A token bucket: how much of something may happen, with memory of the last moments only."""

from __future__ import annotations


class Bucket:
    """Allows `rate` per second, `burst` at once. Starts full."""

    __slots__ = ("_at", "_level", "burst", "rate", "refused")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.refused = 0
        self._level = burst
        self._at: float | None = None

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Whether `amount` may happen now; refusals are counted."""
        if self._at is not None:
            self._level = min(self.burst, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now
        if self._level < amount:
            self.refused += 1
            return False
        self._level -= amount
        return True
