"""Loop time, wall time, entropy: what the pure rooms are handed.

One Clock is made where a node starts and passed down; tests pass their own. Loop time is the event
loop's monotonic clock, boot time also advances while the machine sleeps.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field

from meshnode.base.units import Nanos, Seconds, Unix


@dataclass(slots=True)
class Clock:
    """The system's clocks and randomness behind one value."""

    _dice: random.Random = field(default_factory=random.SystemRandom, repr=False)

    def now(self) -> Seconds:
        """Monotonic seconds, the same clock as asyncio's `loop.time()`."""
        return Seconds(time.monotonic())

    def wall(self) -> Unix:
        """Seconds since 1970."""
        return Unix(time.time())

    def boot_ns(self) -> Nanos:
        """Nanoseconds since boot, sleep included: the clock keys age by."""
        return Nanos(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def entropy(self, count: int) -> bytes:
        """That many bytes from the kernel, fit for keys."""
        return os.urandom(count)

    def uniform(self, low: float, high: float) -> float:
        """A random number for jitter."""
        return self._dice.uniform(low, high)
