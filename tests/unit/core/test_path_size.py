"""How long a datagram a path carries: holes found, loss not taken for one, packets sent where they fit."""

from __future__ import annotations

import random

import pytest

from meshnode.base.addr import RegionId
from meshnode.base.units import Seconds
from meshnode.core.path import PeerPath
from meshnode.core.path_size import RETEST_S, SIZES, WATCH_S
from meshnode.core.path_values import Effect, Hedge, Mode, Purpose, SendPing, SetPath, State, What
from tests.unit.core.test_path import E1, E2, HOME, answer, direct, make, pass_time, pings


class Journey:
    """A path whose pings meet a hole and chance on their way; data flows all the time."""

    def __init__(self, path: PeerPath, *, at: float, hole: int = 9000, loss: float = 0.0, seed: int = 1) -> None:
        self.path, self.at, self.hole, self.loss = path, at, hole, loss
        self.dice = random.Random(seed)
        self.modes: list[tuple[float, SetPath]] = []
        self.sent = 0

    def take(self, effects: list[Effect]) -> None:
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            if isinstance(effect, SetPath):
                self.modes.append((self.at, effect))
            if not isinstance(effect, SendPing):
                continue
            self.sent += 1
            if effect.wire <= self.hole and self.dice.random() > self.loss and self.dice.random() > self.loss:
                waiting += self.path.on_pong(effect.txid, None, Seconds(self.at))

    def go(self, for_s: float, *, data: bool = True) -> None:
        """Pass the time; data comes back over the path unless told otherwise."""
        until = self.at + for_s
        while self.at < until:
            self.at += 0.02
            self.take(pass_time(self.path, self.at))
            self.take(self.path.on_send(Seconds(self.at)))
            if data and self.path.act is not None:
                self.take(self.path.on_recv(self.path.act.endpoint, What.DATA, Seconds(self.at)))


def started(hole: int, *, loss: float = 0.0, seed: int = 1) -> Journey:
    path = make(seed, E1)
    journey = Journey(path, at=1.0, hole=hole, loss=loss, seed=seed)
    journey.take(path.on_send(Seconds(1.0)))
    return journey


def test_every_new_path_is_asked_by_a_long_and_a_short_probe() -> None:
    path = make(1, E1)
    effects = path.on_pong(pings(path.on_send(Seconds(1.0)))[E1], None, Seconds(1.03))
    assert [e.wire for e in effects if isinstance(e, SendPing)] == [1360, 0]
    assert Hedge.SIZE in path.hedges and path.last_path.mode is Mode.BOTH
    answer(path, effects, 1.06)
    path.on_recv(E1, What.DATA, Seconds(1.07))
    assert path.status().limit == 1360 and path.last_path == SetPath(E1, HOME, Mode.DIRECT)


@pytest.mark.parametrize(
    ("hole", "limit"),
    [(9000, 1360), (1360, 1360), (1359, 1280), (1300, 1280), (1280, 1280), (1279, 1200), (1250, 1200), (1200, 1200)],
)
def test_the_limit_of_a_hole_is_found(hole: int, limit: int) -> None:
    journey = started(hole)
    journey.go(4.0)
    path = journey.path
    assert path.state is State.DIRECT and path.status().limit == limit and not path.hedges
    assert path.last_path == SetPath(E1, HOME, Mode.DIRECT, limit if limit < 1360 else 0)
    without_copies = [at for at, effect in journey.modes if effect.mode is Mode.DIRECT]
    assert len(without_copies) == 1, "until the answer is known the relay carries copies"


@pytest.mark.parametrize("hole", [1199, 1124, 1000])
def test_a_path_that_carries_too_little_is_set_aside(hole: int) -> None:
    journey = started(hole)
    journey.go(4.0)
    assert (
        journey.path.candidates[E1].is_bad(journey.at) and "does not even carry packets of 1200" in journey.path.reason
    )
    assert journey.path.last_path == SetPath(None, HOME, Mode.RELAY)
    assert journey.sent < 6 * 4 + 16


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2, 0.4])
def test_random_loss_is_no_hole(loss: float) -> None:
    wrong = 0
    for seed in range(50):
        journey = started(9000, loss=loss, seed=seed)
        journey.go(60.0)
        assert journey.path.candidates[E1].bad_count == 0, f"seed {seed}: set aside by loss alone"
        wrong += journey.path.candidates[E1].limit not in (None, 1360)
    assert wrong <= (5 if loss > 0.3 else 1)


@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_a_hole_is_found_in_spite_of_loss(loss: float) -> None:
    found = 0
    for seed in range(20):
        journey = started(1300, loss=loss, seed=seed)
        journey.go(40.0)
        found += journey.path.candidates[E1].limit in (1280, 1200)
        assert journey.path.candidates[E1].limit or journey.path.last_path.mode.is_relay, (
            "copies flow until it is found"
        )
    assert found >= 17


def test_a_hole_that_opens_while_we_send_is_noticed_by_the_silence() -> None:
    journey = started(9000)
    journey.go(15.0)
    assert not journey.path.hedges
    opened, journey.hole = journey.at, 1300
    journey.go(3.0, data=False)
    first_copy = next(at for at, effect in journey.modes if at > opened and effect.mode is Mode.BOTH)
    assert first_copy - opened <= 1.0 + 0.25 + 0.25
    assert journey.path.status().limit == 1280


def test_a_hole_that_opens_while_data_comes_back_is_noticed_by_a_long_heartbeat() -> None:
    journey = started(9000)
    journey.go(3.0)
    opened, journey.hole = journey.at, 1300
    journey.go(WATCH_S + 2 * 2.2 + 1.0)
    copies = [at for at, effect in journey.modes if at > opened and effect.mode is Mode.BOTH]
    assert copies and journey.path.status().limit == 1280


def test_a_path_in_use_is_watched_for_the_price_of_its_heartbeats() -> None:
    journey = started(9000)
    journey.go(5.0)
    before = journey.sent
    journey.go(60.0)
    assert journey.sent - before <= 60 / 2 * 1.15 + 60 / 25 * 1.3


def test_a_path_that_grew_is_asked_again_in_ten_minutes() -> None:
    journey = started(1300)
    journey.go(5.0)
    assert journey.path.status().limit == 1280
    journey.hole = 9000
    journey.go(RETEST_S - 10)
    assert journey.path.status().limit == 1280
    journey.go(20.0)
    assert journey.path.status().limit == 1360 and journey.path.last_path == SetPath(E1, HOME, Mode.DIRECT)


def test_another_network_is_asked_anew() -> None:
    journey = started(1300)
    journey.go(5.0)
    journey.hole = 9000
    journey.take(journey.path.on_link(lambda _: True, Seconds(journey.at)))
    journey.go(2.0)
    assert journey.path.state is State.DIRECT and journey.path.status().limit == 1360


def test_somebody_says_too_big_and_the_path_is_asked() -> None:
    path = direct()
    effects = path.on_too_big(E1, Seconds(2.0))
    assert [e.wire for e in effects if isinstance(e, SendPing)] == [1360, 0] and Hedge.SIZE in path.hedges
    answer(path, effects, 2.03)
    assert path.status().limit == 1360 and not path.hedges, "a lie costs two probes"
    assert path.on_too_big(E2, Seconds(3.0)) == []


def test_a_longer_probe_answered_late_counts() -> None:
    path = make(1, E1)
    effects = path.on_pong(pings(path.on_send(Seconds(1.0)))[E1], None, Seconds(1.03))
    first = next(e for e in effects if isinstance(e, SendPing) and e.wire == SIZES[0])
    at = 1.03
    while path.size_test is not None and path.size_test.wire == SIZES[0]:
        at += 0.02
        answer(path, pass_time(path, at), at, hole=1300)
        for probe in [t for t, p in path.probes.items() if p.purpose is Purpose.CONTROL]:
            path.on_pong(probe, None, Seconds(at))
    path.on_pong(first.txid, None, Seconds(at))
    assert path.status().limit == 1360 and path.size_test is None


def test_no_question_outlives_its_path() -> None:
    path = make(1, E1)
    path.on_pong(pings(path.on_send(Seconds(1.0)))[E1], None, Seconds(1.03))
    path.on_link(lambda _: True, Seconds(1.1))
    assert path.state is State.DEGRADED and path.size_test is None and Hedge.SIZE not in path.hedges
    assert path.last_path.mode is Mode.DOUBTED


def test_what_is_too_long_goes_in_fragments_while_the_relay_is_down() -> None:
    journey = started(1300)
    journey.go(5.0)
    journey.take(journey.path.on_relay(HOME, False, Seconds(journey.at)))
    assert journey.path.last_path == SetPath(E1, RegionId(0), Mode.DIRECT, 1280)
    journey.take(journey.path.on_relay(HOME, True, Seconds(journey.at)))
    assert journey.path.last_path == SetPath(E1, HOME, Mode.DIRECT, 1280)


def test_a_path_too_narrow_does_not_answer_although_short_packets_come_by_it() -> None:
    journey = started(1124)
    journey.go(4.0)
    path, now = journey.path, Seconds(journey.at)
    assert path.is_hushed(E1, now), "a peer that does not look would send long packets for as long as we answer"
    path.on_recv(E1, What.DATA, now)
    assert path.is_hushed(E1, now)
    assert not path.is_hushed(E1, Seconds(journey.at + 61)) and not path.is_hushed(E2, now)
    path.on_link(lambda _: True, now)
    assert not path.is_hushed(E1, now)


def test_a_path_that_carries_again_answers_again() -> None:
    path = direct()
    path.on_wireguard_stall(Seconds(2.0))
    assert not path.is_hushed(E1, Seconds(6.9)), "one of ours finds out by itself"
    assert path.is_hushed(E1, Seconds(7.1))
    path.on_recv(E1, What.DATA, Seconds(7.2))
    assert not path.is_hushed(E1, Seconds(7.3))
