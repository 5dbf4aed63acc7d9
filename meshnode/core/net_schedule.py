"""When the network is looked at: at start, when something changed, and every 20 to 26 seconds while traffic flows.

An idle node asks nobody. Most NATs forget a UDP mapping after 30 seconds, hence the rhythm. Causes that come while a
check runs, or right after one, lead to at most one more.
Source: docs/protocol/paths.md 4.1, 4.5.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from meshnode.base.units import Seconds
from meshnode.core.report import NetReport

PERIOD_S: Final = (20.0, 26.0)
ACTIVE_S: Final = 45.0
FULL_EVERY_S: Final = 300.0
GAP_S: Final = 1.0
"""Between the end of a check and the start of one that nobody forced."""
AGAIN_S: Final = 3.0
"""Until the report that must agree with one that wants another home."""


class Cause(Enum):
    """Why a check is made."""

    START = "start"
    LINK = "link change"
    SOCKETS = "new sockets"
    RELAY = "relay lost"
    MAP = "relay map"
    PORTMAP = "port mapping"
    CALL = "call me maybe"
    DOUBT = "direct path in doubt"
    PEERS = "first peer"
    PERIOD = "period"
    CONFIRM = "confirm"
    ASKED = "asked for"


FRESH_S: Final = 20.0
"""Somebody who wants a report takes one of this age."""
FORCED: Final = frozenset({Cause.START, Cause.LINK, Cause.ASKED})
"""These are full, and follow a running check rather than be answered by it."""
PATIENT: Final = frozenset({Cause.CALL, Cause.PEERS})
"""These want a report, not a new one."""


class Schedule:
    """Says when the next check is due. All instants are loop time."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._is_running = False
        self._wanted: Cause | None = None
        self._due_at: float | None = None
        self._last: NetReport | None = None
        self._full_at = -1e9
        self._ended_at = -1e9
        self._traffic_at = -1e9
        self._tick_at: float | None = None

    def request(self, cause: Cause, now: Seconds) -> None:
        """Something happened that is worth a look."""
        if cause in PATIENT and (self._is_running or now - self._ended_at < FRESH_S):
            return
        if cause in FORCED or self._wanted is None:
            self._wanted = cause if self._wanted not in FORCED else self._wanted
        soonest = now if cause in FORCED else max(now, self._ended_at + GAP_S)
        if cause is Cause.CONFIRM:
            soonest = now + AGAIN_S
        self._due_at = soonest if self._due_at is None else min(self._due_at, soonest)

    def note_traffic(self, now: Seconds) -> None:
        """Peers' packets were seen since the last tick."""
        self._traffic_at = now

    def begin(self, now: Seconds) -> tuple[Cause, bool]:
        """A check starts now: (why, whether it is to be full)."""
        cause = self._wanted or Cause.PERIOD
        self._wanted, self._due_at, self._tick_at = None, None, None
        self._is_running = True
        last = self._last
        is_full = (
            last is None
            or cause in FORCED
            or now - self._full_at > FULL_EVERY_S
            or (last.captive_portal is True and not last.udp)
        )
        return cause, is_full

    def end(self, report: NetReport, now: Seconds) -> None:
        """It is done."""
        self._is_running = False
        self._last, self._ended_at = report, now
        if report.is_full:
            self._full_at = now
        self._tick_at = now + self._uniform(*PERIOD_S)

    def on_tick(self, now: Seconds) -> None:
        """The period is over: look again if traffic flows."""
        if now - self._traffic_at < ACTIVE_S:
            self._wanted = self._wanted or Cause.PERIOD
            self._due_at = now
        else:
            self._tick_at = now + self._uniform(*PERIOD_S)

    @property
    def tick_at(self) -> float | None:
        """When to look for traffic and call `on_tick`; None while a check runs or before the first."""
        return None if self._is_running else self._tick_at

    @property
    def due_at(self) -> float | None:
        """When to start a check; None: nothing is due, or one runs."""
        return None if self._is_running else self._due_at
