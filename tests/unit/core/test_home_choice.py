"""The home region: hysteresis as a table, exclusion of relays that take no login, and what always holds."""

from __future__ import annotations

import random
from types import MappingProxyType

import pytest

from meshnode.base.addr import RegionId
from meshnode.base.units import Seconds
from meshnode.core.home_choice import MOVE_EVERY_S, Choice, HomeChoice
from meshnode.core.report import NetReport, RegionReading
from meshnode.netmap.model import RelayMap
from tests.unit.core.test_netplan import region, relays

NOW = 10_000.0
R1, R2, R3 = RegionId(1), RegionId(2), RegionId(3)


class Bench:
    """A HomeChoice with a clock, whose every choice is taken."""

    def __init__(
        self, *numbers: int, remembered: int = 0, wanted: int = 0, scores: dict[int, float] | None = None
    ) -> None:
        self.now = NOW
        self.choice = HomeChoice(RegionId(remembered), wanted=RegionId(wanted))
        self.set_map(*(numbers or (1, 2)), scores=scores)
        self.choice.start(Seconds(self.now))

    def set_map(self, *numbers: int, scores: dict[int, float] | None = None) -> None:
        found = relays(*(region(number) for number in numbers))
        weights = {RegionId(r): score for r, score in (scores or {}).items()}
        self.choice.set_map(RelayMap(found.regions, MappingProxyType(weights)))

    def report(self, *, began: float | None = None, is_told: bool = True, **ms: float) -> Choice:
        regions = {RegionId(int(name[1:])): RegionReading(v4_s=value / 1000) for name, value in ms.items()}
        began = self.now if began is None else began
        found = NetReport(at=Seconds(self.now), udp=bool(ms), regions=regions)
        choice = self.choice.on_report(found, began, Seconds(self.now), is_told=is_told)
        if choice.region not in (0, self.choice.home):
            self.choice.take(choice, Seconds(self.now))
        return choice

    def settle(self, **ms: float) -> None:
        """Region 1 is home by measurement, and the last move long ago."""
        self.report(**ms)
        assert self.choice.home == R1
        self.now += 2 * MOVE_EVERY_S


def agreed(bench: Bench, **ms: float) -> Choice:
    """Two reports that say the same."""
    bench.report(**ms)
    bench.now += 3
    return bench.report(**ms)


@pytest.mark.parametrize(
    ("r1", "r2", "home"),
    [
        (30.0, 21.0, 1),  # 9 ms better
        (27.5, 16.5, 2),  # 11 ms and 40 % better
        (110.0, 99.0, 1),  # 11 ms and 10 % better
        (30.0, 20.1, 1),  # over two thirds
        (300.0, 190.0, 2),
        (9.0, 0.1, 1),  # a large share, and no time
        (30.0, 30.0, 1),
    ],
)
def test_only_a_clearly_better_region_is_worth_a_move(r1: float, r2: float, home: int) -> None:
    bench = Bench()
    bench.settle(r1=r1, r2=500)
    choice = agreed(bench, r1=r1, r2=r2)
    assert (choice.region, bench.choice.home) == (home, home)


def test_a_move_wants_two_reports_that_agree() -> None:
    bench = Bench(1, 2, 3)
    bench.settle(r1=100, r2=500, r3=500)
    first = bench.report(r1=100, r2=10)
    assert (first.region, first.again) == (R1, True) and "r2 answers in 10.0 ms, r1 in 100.0 ms" in first.reason
    assert bench.report(r1=100, r3=5, r2=10).region == R1  # another wish starts anew
    assert bench.report(r1=11, r2=10, r3=9).region == R1  # and one report against it ends it
    assert bench.report(r1=100, r2=10, r3=5).region == R1
    second = bench.report(r1=100, r2=10, r3=5)
    assert (second.region, second.is_voluntary) == (R3, True)


def test_a_home_nobody_measured_gives_way_to_the_first_report() -> None:
    bench = Bench(1, 2, remembered=1)
    assert bench.choice.reason == "it was the home of the last run"
    assert bench.report(r1=100, r2=10).region == R2
    close = Bench(1, 2)
    assert close.report(r1=12, r2=10).region == R1


def test_the_reason_has_both_figures() -> None:
    bench = Bench(1, 2, 3)
    assert bench.report(r1=0.25, r2=7, r3=30).reason == "nearest: r1 answers in 0.25 ms, r2 in 7.0 ms"
    assert bench.report(r1=9).reason == "nearest: r1 answers in 0.25 ms"


def test_no_second_voluntary_move_within_five_minutes() -> None:
    bench = Bench()
    bench.settle(r1=100, r2=500)
    agreed(bench, r1=100, r2=10)
    assert bench.choice.home == R2
    bench.now += 100
    kept = agreed(bench, r1=1, r2=100)
    assert kept.region == R2 and "less than five minutes ago" in kept.reason
    bench.now += 200
    assert bench.report(r1=1, r2=100).region == R1


def test_a_lost_probe_moves_nobody_while_the_connection_lives() -> None:
    bench = Bench()
    bench.settle(r1=30, r2=80)
    bench.choice.note_heard(R1, bench.now - 4)
    assert agreed(bench, r2=80).region == R1
    bench.now += 20
    bench.choice.note_heard(R1, bench.now - 10)  # since the report began
    assert bench.report(r2=80, began=bench.now - 11).region == R1


def test_a_home_that_neither_answers_nor_is_heard_is_left_at_once() -> None:
    bench = Bench()
    bench.settle(r1=30, r2=80)
    bench.choice.note_heard(R1, bench.now - 9)
    choice = bench.report(r2=80)
    assert choice.region == R2 and not choice.is_voluntary and "r1 cannot be reached" in choice.reason


def test_a_region_that_left_the_map_is_left() -> None:
    bench = Bench()
    bench.settle(r1=30, r2=80)
    bench.set_map(2)
    assert bench.choice.home == 0
    assert bench.choice.start(Seconds(bench.now)) == R2


def test_scores_of_the_map_weigh_latencies() -> None:
    bench = Bench(1, 2, scores={2: 0.3})
    assert bench.report(r1=60, r2=90).region == R2  # 27 against 60
    repelled = Bench(1, 2, scores={2: 10.0})
    assert repelled.report(r1=60, r2=20).region == R1


def test_the_best_of_five_minutes_counts_and_only_of_regions_that_answer_now() -> None:
    bench = Bench(1, 2, 3)
    bench.settle(r1=50, r2=200, r3=200)
    bench.report(r1=50, r2=20, r3=1)
    bench.now += 10
    assert agreed(bench, r1=50, r2=48).region == R2  # it can do 20; region 3 is silent now
    late = Bench(1, 2)
    late.settle(r1=50, r2=20.0 + 20)
    late.now += 400
    assert agreed(late, r1=50, r2=48).region == R1


def test_the_home_is_kept_while_control_cannot_be_told() -> None:
    bench = Bench()
    bench.settle(r1=100, r2=500)
    for _ in range(3):
        assert bench.report(r1=100, r2=10, is_told=False).region == R1
    assert bench.report(r2=10, is_told=False).region == R1
    bench.now += 200
    assert bench.report(r2=10).region == R2


def test_silence_of_all_keeps_a_home_that_was_heard_lately() -> None:
    bench = Bench()
    bench.settle(r1=30, r2=80)
    bench.choice.note_heard(R1, bench.now - 119)
    assert bench.report().region == R1
    bench.now += 2
    assert bench.report().region == 0
    assert bench.choice.home == R1  # nothing better is known


def test_a_region_that_takes_no_login_is_out_for_longer_each_time() -> None:
    bench = Bench()
    bench.settle(r1=30, r2=80)
    bench.choice.note_failure(R1, Seconds(bench.now))
    assert not bench.choice.is_excluded(R1, Seconds(bench.now))
    for seconds in (60, 120, 240, 480, 600, 600):
        bench.choice.note_failure(R1, Seconds(bench.now))
        assert bench.choice.is_excluded(R1, Seconds(bench.now + seconds - 1))
        choice = bench.report(r1=30, r2=80)
        assert choice.region == R2, "STUN alone is no reachability"
        bench.now += seconds
        assert not bench.choice.is_excluded(R1, Seconds(bench.now))
    bench.choice.note_login(R1, Seconds(bench.now))
    bench.choice.note_failure(R1, Seconds(bench.now))
    assert not bench.choice.is_excluded(R1, Seconds(bench.now))


def test_when_nobody_lets_us_in_the_reason_says_so() -> None:
    bench = Bench(1)
    for _ in range(2):
        bench.choice.note_failure(R1, Seconds(bench.now))
    choice = bench.report(r1=30)
    assert (choice.region, choice.reason) == (0, "no region that answers lets us in")


def test_the_order_of_what_to_try() -> None:
    bench = Bench(1, 2, 3, 4, remembered=3)
    now = Seconds(bench.now)
    assert bench.choice.order(now) == (3, 1, 2, 4)
    bench.report(r4=10, r2=20)
    assert bench.choice.order(now) == (4, 2, 3, 1)
    bench.choice.note_failure(RegionId(4), now)
    assert bench.choice.order(now) == (2, 3, 1, 4)


def test_a_persons_choice_is_home_whenever_it_can_be_reached() -> None:
    bench = Bench(1, 2, 3, remembered=1, wanted=3)
    assert (bench.choice.home, bench.choice.reason) == (R3, "the configuration says so")
    assert bench.report(r1=1, r2=2, r3=300).region == R3
    assert bench.report(r1=1, r2=2).region == R1, "not reached"
    assert bench.report(r1=1, r2=2, r3=300, is_told=False).region == R1
    assert bench.report(r1=1, r2=2, r3=300).region == R3
    for _ in range(2):
        bench.choice.note_failure(R3, Seconds(bench.now))
    assert bench.report(r1=1, r2=2, r3=300).region == R1, "no login there"
    assert Bench(1, 2, wanted=7).report(r1=9, r2=8).region == R1, "not in the map"


def test_another_network_is_measured_anew() -> None:
    bench = Bench()
    bench.settle(r1=10, r2=100)
    bench.choice.forget()
    assert bench.report(r1=100, r2=10).region == R2


@pytest.mark.parametrize("seed", range(300))
def test_what_always_holds(seed: int) -> None:
    """Random networks: no voluntary moves close together, no excluded or unknown home, no move for nothing."""
    dice = random.Random(seed)
    count = dice.randint(1, 5)
    bench = Bench(*range(1, count + 1), scores={r: dice.choice([0.5, 1.0, 2.0]) for r in range(1, count + 1)})
    base = {r: dice.uniform(1, 300) for r in range(1, count + 1)}
    moved_at = -1e9
    for _ in range(60):
        bench.now += dice.choice([3, 23, 120, 400])
        if dice.random() < 0.1:
            bench.choice.note_failure(RegionId(dice.randint(1, count)), Seconds(bench.now))
        if dice.random() < 0.3:
            bench.choice.note_heard(bench.choice.home, bench.now - dice.uniform(0, 20))
        if dice.random() < 0.2:
            base[dice.randint(1, count)] = dice.uniform(1, 300)
        told = dice.random() < 0.9
        now = {f"r{r}": ms * dice.uniform(1, 1.3) for r, ms in base.items() if dice.random() < 0.8}
        old, was_excluded = bench.choice.home, bench.choice.is_excluded(bench.choice.home, Seconds(bench.now))
        choice = bench.report(is_told=told, **now)
        home = bench.choice.home
        assert home in bench.choice.usable and choice.reason
        if home == old:
            continue
        assert told and f"r{home}" in now and not bench.choice.is_excluded(home, Seconds(bench.now))
        if choice.is_voluntary:
            assert bench.now - moved_at >= MOVE_EVERY_S and not was_excluded
            moved_at = bench.now
        else:
            assert was_excluded or f"r{old}" not in now
