"""When members are asked about again: gaps under an explicit clock, whatever joins, is lost or takes its time."""

from __future__ import annotations

import heapq
import random

import pytest

from meshnode.core.recheck import EVERY_S, PROBES, RETRIES, TURN_MIN, Rechecks

LIMIT_S = 60.0
A, B = b"a" * 32, b"b" * 32


def test_who_is_due_is_asked_once_at_a_time() -> None:
    plan = Rechecks()
    assert plan.due(0.0, {A: 0.0}) == []
    assert plan.due(EVERY_S, {A: 0.0, B: 1.0}) == [A]
    assert plan.due(EVERY_S + 3, {A: 0.0, B: 1.0}) == [B], "the question about A is under way"
    plan.note(EVERY_S + 4, A, is_answered=True)
    assert plan.due(2 * EVERY_S + 3, {A: 0.0, B: 1.0}) == []
    assert plan.due(2 * EVERY_S + 4, {A: 0.0, B: 1.0}) == [A]


def test_the_last_answer_counts_and_not_the_connection() -> None:
    """Who returns by what is remembered of it is due as if it had stayed; who was admitted long ago, at once."""
    plan = Rechecks()
    assert plan.due(29.0, {A: 0.0}) == []
    assert plan.due(29.5, {}) == []
    assert plan.due(30.0, {A: 0.0}) == [A]
    assert Rechecks().due(500.0, {B: 0.0}) == [B]


def test_a_lost_question_is_repeated_soon() -> None:
    plan = Rechecks()
    assert plan.due(30.0, {A: 0.0}) == [A]
    plan.note(35.0, A, is_answered=False)
    assert plan.due(35.0 + EVERY_S / RETRIES - 0.1, {A: 0.0}) == []
    assert plan.due(35.0 + EVERY_S / RETRIES, {A: 0.0}) == [A]


def test_while_nobody_answers_few_are_asked_and_then_the_oldest_first() -> None:
    members = {n.to_bytes(32, "big"): float(n) for n in range(1000)}
    plan = Rechecks()
    first = plan.due(5000.0, members)
    assert len(first) == 200 and first == sorted(members)[:200], "not all at once"
    for key in first:
        plan.note(5001.0, key, is_answered=False)
    probes = plan.due(5006.0, members)
    assert len(probes) == PROBES and probes == sorted(members)[200 : 200 + PROBES]
    plan.note(5007.0, probes[0], is_answered=True)
    assert len(plan.due(5009.0, members)) == 200
    assert len(Rechecks().due(50.0, {key: 0.0 for key in list(members)[:50]})) == TURN_MIN


@pytest.mark.parametrize("seed", range(30))
def test_no_member_stays_a_minute_without_an_answer(seed: int) -> None:
    """The loop of relay/recheck.py in virtual time: up to 300 that come and go, answers that take up to their bound
    of five seconds, one question lost of each member."""
    dice = random.Random(seed)
    plan, answered, left = Rechecks(), dict[bytes, float](), set[bytes]()
    joins = sorted((dice.uniform(0, 200), n.to_bytes(32, "big")) for n in range(dice.choice([1, 2, 40, 300])))
    ends: list[tuple[float, bytes, bool]] = []
    lost: set[bytes] = set()
    now = 0.0
    while now < 400.0:
        while joins and joins[0][0] <= now:
            at, key = joins.pop(0)
            answered[key] = at
        for key in list(answered):
            if dice.random() < 0.001:
                del answered[key]
                left.add(key)
        due = plan.due(now, answered)
        for n, key in enumerate(due):
            asked = now + (n + 1) * plan.turn_s / len(due)
            is_lost = key not in lost and dice.random() < 0.3
            if is_lost:
                lost.add(key)
            heapq.heappush(ends, (asked + (5.0 if is_lost else dice.uniform(0.001, 5.0)), key, not is_lost))
        now += plan.turn_s
        while ends and ends[0][0] <= now:
            at, key, is_answered = heapq.heappop(ends)
            plan.note(at, key, is_answered=is_answered)
            if key in answered and is_answered:
                assert at - answered[key] <= LIMIT_S
                answered[key] = at
        assert all(now - at <= LIMIT_S + plan.turn_s for at in answered.values())
