"""One heap of deadlines and one timer for any number of peers.

A peer has at most one live entry; an earlier one of its stays in the heap and finds nothing to do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Protocol

from meshnode.run.clock import Clock
from meshnode.underlay.peers import Known


class Timer(Protocol):
    """A timer that can be cancelled."""

    def cancel(self) -> Any: ...


CallLater = Callable[[float, Callable[[], None]], Timer]
"""(delay in seconds, what to call): a loop's, or a simulator's."""


class Deadlines:
    """Wakes peers. `on_due(peer)` handles one that is due and arms it again if need be."""

    def __init__(self, clock: Clock, call_later: CallLater, on_due: Callable[[Known], None]) -> None:
        self._clock = clock
        self._call_later = call_later
        self._on_due = on_due
        self._heap: list[tuple[float, int, Known]] = []
        self._serial = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._closed = False

    def arm(self, known: Known) -> None:
        """Remember when this peer wants to be woken."""
        due = known.path.next_deadline() if known.path is not None else None
        if due is None or self._closed or (known.armed_at is not None and known.armed_at <= due):
            return
        known.armed_at = due
        self._serial += 1
        heapq.heappush(self._heap, (due, self._serial, known))
        if self._timer is None or due < self._timer_at:
            self._set_timer()

    def close(self) -> None:
        """No more wake-ups."""
        self._closed = True
        self._heap.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer_at = self._heap[0][0]
            self._timer = self._call_later(max(0.0, self._timer_at - self._clock.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now:
            due, _, known = heapq.heappop(self._heap)
            if known.armed_at == due:
                known.armed_at = None
                self._on_due(known)
        if self._timer is None or (self._heap and self._heap[0][0] < self._timer_at):
            self._set_timer()
