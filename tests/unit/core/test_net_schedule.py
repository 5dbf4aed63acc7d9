"""When checks are made: causes, the rhythm under traffic, silence of the idle."""

from __future__ import annotations

import pytest

from meshnode.base.units import Seconds
from meshnode.core.net_schedule import ACTIVE_S, FULL_EVERY_S, Cause, Schedule
from meshnode.core.report import NetReport


class Day:
    """A Schedule in virtual time; each check takes 0.2 s."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.schedule = Schedule(lambda low, high: (low + high) / 2)
        self.checks: list[tuple[float, Cause, bool]] = []
        self.report = NetReport(udp=True)
        self.busy_until = -1.0

    def run(self, seconds: float) -> list[tuple[float, Cause, bool]]:
        """Let time pass; returns the checks of that time: (since its beginning, why, full)."""
        start, first = self.now, len(self.checks)
        while True:
            instants = [at for at in (self.schedule.due_at, self.schedule.tick_at) if at is not None]
            if not instants or min(instants) > start + seconds:
                break
            self.now = max(self.now, min(instants))
            if self.schedule.due_at is not None and self.schedule.due_at <= self.now:
                cause, full = self.schedule.begin(Seconds(self.now))
                self.checks.append((self.now, cause, full))
                self.now += 0.2
                self.schedule.end(NetReport(udp=self.report.udp, is_full=full, captive_portal=self.report.captive_portal), Seconds(self.now))  # fmt: skip # noqa: E501
            else:
                if self.now < self.busy_until:
                    self.schedule.note_traffic(Seconds(self.now))
                self.schedule.on_tick(Seconds(self.now))
        self.now = max(self.now, start + seconds)
        return [(round(when - start, 3), cause, full) for when, cause, full in self.checks[first:]]

    def want(self, cause: Cause) -> None:
        self.schedule.request(cause, Seconds(self.now))


def test_the_first_check_is_at_once_and_full() -> None:
    day = Day()
    day.want(Cause.START)
    assert day.run(10) == [(0.0, Cause.START, True)]


def test_an_idle_node_asks_nobody() -> None:
    day = Day()
    day.want(Cause.START)
    day.run(1)
    assert day.run(100_000) == []


def test_with_traffic_every_20_to_26_seconds_and_full_every_five_minutes() -> None:
    day = Day()
    day.want(Cause.START)
    day.run(1)
    day.busy_until = day.now + 650
    found = day.run(1000)
    gaps = [b[0] - a[0] for a, b in zip(found, found[1:], strict=False)]
    assert all(20 <= gap <= 27 for gap in gaps) and {cause for _, cause, _ in found} == {Cause.PERIOD}
    full = [when for when, _, is_full in found if is_full]
    assert len(full) == 2 and full[1] - full[0] >= FULL_EVERY_S
    assert found[-1][0] <= 650 + ACTIVE_S + 30


@pytest.mark.parametrize("cause", [Cause.RELAY, Cause.PORTMAP, Cause.CALL, Cause.PEERS, Cause.MAP])
def test_causes_lead_to_one_incremental_check(cause: Cause) -> None:
    day = Day()
    day.want(Cause.START)
    day.run(30)
    for _ in range(5):
        day.want(cause)
    assert day.run(10) == [(0.0, cause, False)]


def test_causes_right_after_a_check_wait_a_moment_and_forced_ones_do_not() -> None:
    day = Day()
    day.want(Cause.START)
    day.run(0.2)
    day.want(Cause.RELAY)
    assert day.run(5) == [(1.0, Cause.RELAY, False)]
    day.want(Cause.RELAY)
    day.want(Cause.LINK)
    assert day.run(5) == [(0.0, Cause.LINK, True)]
    day.want(Cause.CONFIRM)
    assert day.run(5) == [(3.0, Cause.CONFIRM, False)]


@pytest.mark.parametrize("cause", [Cause.CALL, Cause.PEERS])
def test_who_wants_a_report_takes_a_fresh_one(cause: Cause) -> None:
    day = Day()
    day.want(Cause.START)
    day.run(10)
    day.want(cause)
    assert day.run(11) == []
    day.want(cause)
    assert len(day.run(10)) == 1


@pytest.mark.parametrize("cause", [Cause.CALL, Cause.PEERS])
def test_who_wants_a_report_waits_for_the_one_in_the_making(cause: Cause) -> None:
    day = Day()
    day.want(Cause.START)
    day.schedule.begin(Seconds(day.now))
    day.want(cause)
    day.schedule.end(NetReport(), Seconds(day.now))
    assert day.run(10) == []


def test_a_link_change_during_a_check_leads_to_another() -> None:
    day = Day()
    day.schedule.request(Cause.CALL, Seconds(day.now))
    day.schedule.begin(Seconds(day.now))
    day.want(Cause.LINK)
    assert day.schedule.due_at is None, "one at a time"
    day.schedule.end(NetReport(), Seconds(day.now + 3))
    assert day.run(5)[0][1:] == (Cause.LINK, True)


def test_behind_a_captive_portal_each_check_is_full() -> None:
    day = Day()
    day.report = NetReport(udp=False, captive_portal=True)
    day.want(Cause.START)
    day.run(10)
    day.want(Cause.RELAY)
    assert day.run(10)[0][2] is True
