"""Whether a relay connection still lives, and when to dial again.

A Liveness listens: any frame is life. Silence earns a ping, sooner while we send; two pings unanswered,
or two minutes without a frame, end the connection. Asked by deadline, so that a test can do it in virtual
time.
Source: docs/protocol/paths.md 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from meshnode.base.units import Seconds

HARD_S: Final = 120.0
"""Relays send a frame a minute whatever happens."""
ACTIVE_S: Final = 6.0
"""With two pings unanswered a connection in use is found dead within 15 s, however long the round trip."""
IDLE_S: Final = 60.0
PONG_MIN_S: Final = 1.0
PONG_MAX_S: Final = 4.5
PONG_MISSES: Final = 2
CHECK_WAITS_S: Final = (1.0, 2.0)
"""How long each of the two pings of a check may take."""
RETRY_STEP_S: Final = 0.010
RETRY_CAP_S: Final = 3.5
"""With a dial that fails after its 1.5 s, a relay that is back is found within five seconds."""


class Verdict(Enum):
    """What to do at a deadline."""

    WAIT = "wait"
    PING = "ping"
    DEAD = "dead"


def retry_delay(failures: int, uniform: Callable[[float, float], float]) -> float:
    """Seconds before dial attempt number `failures` + 1; jitter from 0, so that a restart brings no storm."""
    return min(1.5 * failures * failures * RETRY_STEP_S, RETRY_CAP_S) * uniform(0.0, 1.0)


class Liveness:
    """One connection's pulse. All instants are loop time."""

    __slots__ = ("_idle_s", "_is_checked", "_misses", "_ping_at", "heard_at", "sent_at", "srtt")

    def __init__(self, now: Seconds, uniform: Callable[[float, float], float]) -> None:
        self.heard_at: float = now
        self.sent_at: float = now - ACTIVE_S
        self.srtt: float | None = None
        self._idle_s = IDLE_S * uniform(0.9, 1.1)
        self._ping_at: float | None = None
        self._misses = 0
        self._is_checked = False

    def hear(self, now: Seconds) -> None:
        """Any frame arrived."""
        self.heard_at = now
        self._misses = 0
        self._is_checked = False

    def hear_pong(self, now: Seconds) -> None:
        """The answer to our ping arrived."""
        if self._ping_at is not None:
            sample = now - self._ping_at
            self.srtt = sample if self.srtt is None else 0.875 * self.srtt + 0.125 * sample
            self._ping_at = None

    def note_sent(self, now: Seconds) -> bool:
        """A packet was sent; True if the deadline may have moved nearer."""
        woke = now - self.sent_at >= ACTIVE_S
        self.sent_at = now
        return woke

    def check(self) -> None:
        """Doubt it: the network changed or the machine slept. Ping now; two short waits decide."""
        self._is_checked = True
        self._misses = 0

    def note_ping(self, now: Seconds) -> None:
        """Our ping left."""
        self._ping_at = now

    def next_deadline(self) -> Seconds:
        """When to call `on_deadline`."""
        return Seconds(min(self.heard_at + HARD_S, self._due_at()))

    def on_deadline(self, now: Seconds) -> Verdict:
        """PING: send one and call `note_ping`. DEAD: close the connection."""
        if now - self.heard_at >= HARD_S:
            return Verdict.DEAD
        if now < self._due_at():
            return Verdict.WAIT
        if self.is_waiting:
            self._misses += 1
            if self._misses >= PONG_MISSES:
                return Verdict.DEAD
        return Verdict.PING

    @property
    def is_waiting(self) -> bool:
        """A ping of ours is not answered yet."""
        return self._ping_at is not None and self._ping_at >= self.heard_at

    def _due_at(self) -> float:
        if self.is_waiting:
            assert self._ping_at is not None
            if self._is_checked:
                return self._ping_at + CHECK_WAITS_S[min(self._misses, 1)]
            return self._ping_at + min(PONG_MAX_S, max(PONG_MIN_S, 4 * (self.srtt or 0.0)))
        active = self.sent_at > self.heard_at - ACTIVE_S
        return self.heard_at + (ACTIVE_S if active else self._idle_s)
