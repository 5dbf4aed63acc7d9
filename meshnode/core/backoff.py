"""Jittered delays with memory.

`Backoff` is the formula of the control plane: n² × 10 ms, capped, times a random half to one and a
half, where n counts failures since the last real success. What works only for moments is flapping:
the third end within ten seconds waits at least a second.
Source: docs/protocol/control.md 4.8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from meshnode.base.units import Seconds

STEP_S: Final = 0.010
CAP_S: Final = 30.0
FLAPS: Final = 3
FLAP_WINDOW_S: Final = 10.0
FLAP_FLOOR_S: Final = 1.0

Uniform = Callable[[float, float], float]
"""Random number between two others; `run.clock` hands the system's out."""


class Backoff:
    """Delays for one thing that is tried again and again."""

    __slots__ = ("_cap", "_ends", "_uniform", "failures")

    def __init__(self, uniform: Uniform, *, cap_s: float = CAP_S) -> None:
        self._uniform = uniform
        self._cap = cap_s
        self._ends: deque[Seconds] = deque(maxlen=FLAPS)
        self.failures = 0

    def fail(self) -> Seconds:
        """Note a failure; returns how long to wait before the next try."""
        self.failures += 1
        return Seconds(min(self.failures**2 * STEP_S, self._cap) * self._uniform(0.5, 1.5))

    def end(self, now: Seconds) -> Seconds:
        """Note the end of something that had worked, at loop time `now`; returns the wait."""
        self._ends.append(now)
        delay = self.fail()
        flapping = len(self._ends) == FLAPS and now - self._ends[0] <= FLAP_WINDOW_S
        return Seconds(max(delay, FLAP_FLOOR_S)) if flapping else delay

    def succeed(self) -> None:
        """Note a real success: a map, not a keep-alive. Flapping is still remembered."""
        self.failures = 0
