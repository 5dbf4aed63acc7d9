"""When a relay connection is asked, when it is given up, and when it is dialled again."""

from __future__ import annotations

import random

from meshnode.base.units import Seconds
from meshnode.core.liveness import ACTIVE_S, HARD_S, IDLE_S, PONG_MIN_S, Liveness, Verdict, retry_delay


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_silence_while_sending_ends_it_within_a_quarter_minute() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    pulse.note_sent(Seconds(1.0))
    assert pulse.next_deadline() == ACTIVE_S
    assert pulse.on_deadline(Seconds(ACTIVE_S)) is Verdict.PING
    pulse.note_ping(Seconds(ACTIVE_S))
    at = pulse.next_deadline()
    assert at == ACTIVE_S + PONG_MIN_S and pulse.on_deadline(at) is Verdict.PING
    pulse.note_ping(at)
    assert pulse.on_deadline(pulse.next_deadline()) is Verdict.DEAD
    assert pulse.next_deadline() <= 15.0


def test_an_idle_connection_is_asked_once_a_minute() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    assert pulse.next_deadline() == IDLE_S
    assert pulse.on_deadline(Seconds(IDLE_S - 1)) is Verdict.WAIT
    assert pulse.on_deadline(Seconds(IDLE_S)) is Verdict.PING


def test_any_frame_is_life() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    pulse.note_ping(Seconds(10.0))
    pulse.hear(Seconds(10.5))
    assert pulse.on_deadline(Seconds(12.0)) is Verdict.WAIT
    assert pulse.next_deadline() == 10.5 + IDLE_S


def test_two_minutes_without_a_frame_are_the_end_and_not_before() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    assert pulse.on_deadline(Seconds(HARD_S)) is Verdict.DEAD
    assert pulse.on_deadline(Seconds(HARD_S - 0.1)) is not Verdict.DEAD


def test_round_trips_are_smoothed() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    pulse.note_ping(Seconds(0.0))
    pulse.hear_pong(Seconds(0.1))
    assert pulse.srtt == 0.1
    pulse.hear_pong(Seconds(9.0))
    assert pulse.srtt == 0.1, "a pong nobody asked for says nothing"


def test_sending_after_idleness_moves_the_deadline() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    assert pulse.note_sent(Seconds(50.0)) and not pulse.note_sent(Seconds(51.0))


def test_retry_curve() -> None:
    dice = random.Random(1)
    assert retry_delay(0, dice.uniform) == 0
    for failures in range(1, 60):
        for _ in range(20):
            assert 0 <= retry_delay(failures, dice.uniform) <= min(failures**2 * 0.010 * 1.5, 3.5)


def test_a_check_decides_within_three_seconds_whatever_the_round_trip() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    pulse.note_ping(Seconds(0.0))
    pulse.hear_pong(Seconds(2.0))
    pulse.hear(Seconds(2.0))
    pulse.check()
    pulse.note_ping(Seconds(10.0))
    assert pulse.next_deadline() == 11.0 and pulse.on_deadline(Seconds(11.0)) is Verdict.PING
    pulse.note_ping(Seconds(11.0))
    assert pulse.next_deadline() == 13.0 and pulse.on_deadline(Seconds(13.0)) is Verdict.DEAD


def test_a_check_that_is_answered_is_over() -> None:
    pulse = Liveness(Seconds(0.0), middle)
    pulse.check()
    pulse.note_ping(Seconds(10.0))
    pulse.hear(Seconds(10.2))
    assert pulse.next_deadline() == 10.2 + IDLE_S


def test_a_relay_that_is_back_is_dialled_within_five_seconds() -> None:
    dice = random.Random(1)
    longest = max(retry_delay(failures, dice.uniform) for failures in range(1, 60) for _ in range(200))
    assert longest + 1.5 <= 5.0, "with an attempt that fails after its 1.5 s"
