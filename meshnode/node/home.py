"""Keeps one relay region as our home: where peers can always reach us.

At start the home of the last run, or the lowest region, is connected at once; `core.home_choice` says what reports
mean. A home is reported to control only once its connection stands, so that nobody is sent to a relay where we are
not. Another region is connected beside the home first and becomes home when it stands; a home that does not connect,
or is lost for longer than a restart takes, makes way for the next in order while it is still being dialled.
States: no region → trying → home ⇄ lost; beside them at most one region on trial.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from meshnode.base.addr import RegionId
from meshnode.core.home_choice import NO_REGION, Choice, HomeChoice
from meshnode.core.report import NetReport
from meshnode.netmap.model import RelayMap
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.underlay.deadlines import CallLater, Timer

TRY_S: Final = 4.0
"""A region that does not connect within this time makes way for the next."""
LOST_S: Final = 6.0
"""A home that is lost this long is given up; shorter gaps are the relay's restarts."""

_log = get_logger("relay")


def _nothing(*_: object) -> None:
    """Until somebody listens."""


class HomeKeeper:
    """Chooses and watches the home region. All callables are quick and run in the loop."""

    def __init__(
        self,
        *,
        choose: Callable[[RegionId], None],
        report: Callable[[RegionId], None],
        connect: Callable[[RegionId], None] = _nothing,
        is_told: Callable[[], bool] = lambda: True,
        clock: Clock | None = None,
        call_later: CallLater | None = None,
        preferred: int = 0,
        wanted: int = 0,
    ) -> None:
        """choose: connect to this region and keep it. report: it is our home, tell control.

        connect: try this region beside the home. is_told: whether control would hear of another home now.
        call_later: how to be woken; the running loop's unless a simulator brings its own. preferred: the home of the
        last run. wanted: a person's choice.
        """
        self._choose = choose
        self._report = report
        self._connect = connect
        self._is_told = is_told
        self._clock = clock or Clock()
        self._call_later = call_later or asyncio.get_running_loop().call_later
        self.choice = HomeChoice(RegionId(preferred), wanted=RegionId(wanted))
        self._trial: Choice | None = None
        self._tried: set[RegionId] = set()
        """Regions tried in vain since the home was lost."""
        self._home_timer: Timer | None = None
        self._trial_timer: Timer | None = None
        self._connected: set[RegionId] = set()
        self._is_reported = False
        self.settled = asyncio.Event()
        """Set while the home's connection stands."""

    @property
    def region(self) -> RegionId:
        """The region we have or try; 0: none."""
        return self.choice.home

    @property
    def is_needed(self) -> bool:
        """Whether the map has any region that could be home."""
        return bool(self.choice.usable)

    # --- what others say ---

    def on_map(self, relays: RelayMap) -> None:
        """A new relay map: keep the home if it is still in it, else choose again."""
        self.choice.set_map(relays)
        if self._trial is not None and self._trial.region not in self.choice.usable:
            self._end_trial()
        if self.region == NO_REGION:
            self.settled.clear()
            self._disarm_home()
            self._start()

    def on_relay(self, region: RegionId, is_connected: bool, *, is_over: bool = False) -> None:
        """The pool's connection to a region came or went. is_over: nothing dials it at this moment."""
        (self._connected.add if is_connected else self._connected.discard)(region)
        if is_connected:
            self.choice.note_login(region, self._clock.now())
        if region == self.region:
            self._on_home(is_connected)
        elif self._trial is not None and region == self._trial.region:
            if is_connected:
                self._move(self._trial)
            elif is_over:
                self._fail_trial()

    def on_report(self, report: NetReport, began_at: float, heard_at: float | None) -> Choice:
        """A netcheck's end. heard_at: when the last frame of the home's relay came."""
        now = self._clock.now()
        if heard_at is not None and self.region != NO_REGION:
            self.choice.note_heard(self.region, heard_at)
        choice = self.choice.on_report(report, began_at, now, is_told=self._is_told() or not self._is_reported)
        if choice.region not in (NO_REGION, self.region):
            self._try(choice)
        return choice

    def on_link_change(self) -> None:
        """Another network: what was measured in the old one is forgotten."""
        self.choice.forget()

    def close(self) -> None:
        """Stop the timers."""
        self._disarm_home()
        self._end_trial()

    # --- the home ---

    def _start(self) -> None:
        region = self.choice.start(self._clock.now())
        self._is_reported = False
        if region == NO_REGION:
            return
        self._choose(region)
        if region in self._connected:
            self._settle()
        else:
            self._arm_home(TRY_S)

    def _on_home(self, is_connected: bool) -> None:
        if is_connected:
            if self._trial is not None and not self._trial.is_voluntary:
                self._end_trial()
            self._settle()
        elif self.settled.is_set():
            self.settled.clear()
            self._arm_home(LOST_S)

    def _settle(self) -> None:
        self._disarm_home()
        self._tried.clear()
        if not self.settled.is_set():
            self.settled.set()
            self._is_reported = True
            self._report(self.region)

    def _give_up_home(self) -> None:
        """It did not connect in time, or is lost for too long."""
        self._home_timer = None
        self._arm_home(LOST_S)
        if self._is_reported and not self._is_told():
            return  # peers would not learn of another; they still send to this one
        if self._trial is None:
            self.choice.note_failure(self.region, self._clock.now())
            self._tried.add(self.region)
            self._try_next()

    def _try_next(self) -> None:
        """The best region that was not tried yet; after all of them, from the start."""
        order = [r for r in self.choice.order(self._clock.now()) if r != self.region]
        following = next((r for r in order if r not in self._tried), None)
        if following is None:
            self._tried.clear()
            return
        _log.warning("home relay does not connect; trying another region", region=self.region, next=following)
        self._try(Choice(following, f"region {self.region} cannot be reached"))

    # --- a region on trial ---

    def _try(self, choice: Choice) -> None:
        if self._trial is not None and self._trial.region == choice.region:
            return
        self._end_trial()
        self._trial = choice
        if choice.region in self._connected:
            self._move(choice)
            return
        self._trial_timer = self._call_later(TRY_S, self._fail_trial)
        self._connect(choice.region)

    def _fail_trial(self) -> None:
        assert self._trial is not None
        region = self._trial.region
        self._end_trial()
        self.choice.note_failure(region, self._clock.now())
        self._tried.add(region)
        if not self.settled.is_set():
            self._try_next()

    def _move(self, choice: Choice) -> None:
        old = self.region
        self._end_trial()
        self.choice.take(choice, self._clock.now())
        self.settled.clear()
        self._choose(choice.region)
        _log.info("home relay moves", was=old, region=choice.region, reason=choice.reason)
        self._settle()

    def _end_trial(self) -> None:
        self._trial = None
        if self._trial_timer is not None:
            self._trial_timer.cancel()
            self._trial_timer = None

    # --- time ---

    def _arm_home(self, delay_s: float) -> None:
        self._disarm_home()
        self._home_timer = self._call_later(delay_s, self._give_up_home)

    def _disarm_home(self) -> None:
        if self._home_timer is not None:
            self._home_timer.cancel()
            self._home_timer = None
