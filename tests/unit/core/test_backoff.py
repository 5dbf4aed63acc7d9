"""Delays: the sequence, the cap, the floor of what flaps."""

from meshnode.base.units import Seconds
from meshnode.core.backoff import CAP_S, Backoff


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_sequence_and_cap() -> None:
    backoff = Backoff(middle)
    assert [round(backoff.fail(), 3) for _ in range(4)] == [0.01, 0.04, 0.09, 0.16]
    for _ in range(100):
        last = backoff.fail()
    assert last == CAP_S


def test_success_forgets_failures() -> None:
    backoff = Backoff(middle)
    for _ in range(10):
        backoff.fail()
    backoff.succeed()
    assert backoff.fail() == 0.01


def test_jitter_stays_within_half_and_one_and_a_half() -> None:
    assert Backoff(lambda low, high: low).fail() == 0.005
    assert Backoff(lambda low, high: high).fail() == 0.015


def test_flapping_has_a_floor() -> None:
    backoff = Backoff(middle)
    waits = []
    for second in (0.0, 4.0, 8.0, 30.0, 60.0):
        waits.append(round(backoff.end(Seconds(second)), 3))
        backoff.succeed()
    assert waits == [0.01, 0.01, 1.0, 0.01, 0.01]
