"""Sleep and standstill are told once each; a busy machine is neither."""

from __future__ import annotations

from meshnode.core.wake import SLEEP_S, STOPPED_S, Wake


def test_sleep_is_a_boot_clock_that_ran_ahead() -> None:
    wake = Wake(100.0, 500.0)
    assert not wake.slept(110.0, 510.0)
    assert not wake.slept(111.0, 511.0 + SLEEP_S - 0.1), "a nap"
    assert wake.slept(112.0, 600.0)
    assert not wake.slept(113.0, 601.0)


def test_a_stopped_process_finds_its_timers_late() -> None:
    wake = Wake(0.0, 0.0)
    assert not wake.stopped(2.0 + STOPPED_S - 0.5, 2.0), "a busy machine"
    assert wake.stopped(20.0, 4.0)
    assert not wake.stopped(20.1, 4.5), "another timer tells of the same"
    assert wake.stopped(60.0, 40.0)


def test_sleep_that_makes_timers_late_is_told_once() -> None:
    wake = Wake(0.0, 0.0)
    assert wake.slept(30.0, 90.0)
    assert not wake.stopped(30.0, 2.0)
