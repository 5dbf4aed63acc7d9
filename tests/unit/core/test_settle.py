"""Bursts of news are joined, and looks stay a small share of the time."""

from __future__ import annotations

from meshnode.core.settle import QUIET_S, REST_S, REST_SHARE, WAIT_MAX_S, Settle


def test_nothing_new_nothing_due() -> None:
    assert Settle().due_at() is None


def test_a_look_waits_for_quiet_but_not_for_ever() -> None:
    settle = Settle()
    settle.note(10.0)
    assert settle.due_at() == 10.0 + QUIET_S
    settle.note(10.05)
    assert settle.due_at() == 10.05 + QUIET_S
    for i in range(10):
        settle.note(10.1 + i / 20)
    assert settle.due_at() == 10.0 + WAIT_MAX_S and settle.count == 12


def test_a_storm_costs_a_twentieth_of_the_time() -> None:
    settle, now, looks, took = Settle(), 0.0, 0, 0.1
    while now < 100.0:
        settle.note(now)
        due = settle.due_at()
        assert due is not None
        if due <= now:
            looks += 1
            settle.looked(now + took, took)
        now += 0.01
    assert 0.5 * 100 / (took * REST_SHARE) <= looks <= 100 / (took * REST_SHARE)


def test_after_a_cheap_look_there_is_a_short_rest() -> None:
    settle = Settle()
    settle.note(0.0)
    settle.looked(0.1, 0.001)
    assert settle.due_at() is None and settle.count == 0
    settle.note(0.1)
    assert settle.due_at() == 0.1 + REST_S
    settle.note(60.0)
    assert settle.due_at() == max(0.1 + WAIT_MAX_S, 0.1 + REST_S)
