"""The home through random weather in virtual time: never reported unless connected, always found again."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from meshnode.base.addr import RegionId
from meshnode.core.report import NetReport, RegionReading
from meshnode.node.home import LOST_S, TRY_S, HomeKeeper
from tests.unit.core.test_netplan import region, relays
from tests.unit.node.test_home import Hands

REDIAL_S = 0.5
DIAL_S = 0.1
NOTICED_S = 15.0
"""A frozen relay is noticed after this long."""
FOUND_S = 60.0
SEEDS = 150


@dataclass(slots=True)
class Waiting:
    act: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Relay:
    """As its clients find it: "up", "refusing", or "frozen" with connections that stay open."""

    state: str = "up"
    is_connected: bool = False
    ms: float = 20.0
    has_stun: bool = True


@dataclass
class World:
    """Relays, a pool that dials the home for ever and others once, and control."""

    dice: random.Random
    relays: dict[int, Relay]
    clock: Hands = field(default_factory=Hands)
    is_told: bool = True
    home: int = 0
    reported: list[int] = field(default_factory=list)
    _queue: list[tuple[float, int, Waiting]] = field(default_factory=list)
    _serial: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.keeper = HomeKeeper(
            choose=self._choose, report=self._report, connect=self._dial, is_told=lambda: self.is_told,
            clock=self.clock, call_later=self.later,
        )  # fmt: skip
        self.keeper.on_map(relays(*(region(number) for number in self.relays)))

    def later(self, delay_s: float, act: Callable[[], None]) -> Waiting:
        waiting = Waiting(act)
        heapq.heappush(self._queue, (self.clock.at + delay_s, next(self._serial), waiting))
        return waiting

    def run(self, seconds: float) -> None:
        end = self.clock.at + seconds
        while self._queue and self._queue[0][0] <= end:
            at, _, waiting = heapq.heappop(self._queue)
            self.clock.at = max(self.clock.at, at)
            if not waiting.is_cancelled:
                waiting.act()
        self.clock.at = end

    # --- the pool ---

    def _choose(self, number: RegionId) -> None:
        self.home = number
        self._dial(number)

    def _dial(self, number: RegionId) -> None:
        if not self.relays[number].is_connected:
            self.keeper.on_relay(number, False)
            self.later(DIAL_S, lambda: self._dialled(number))

    def _dialled(self, number: RegionId) -> None:
        relay = self.relays[number]
        if relay.is_connected:
            return
        if relay.state == "up":
            relay.is_connected = True
            self.keeper.on_relay(number, True)
        elif number == self.home:
            self.later(REDIAL_S, lambda: self._dialled(number))
        elif relay.state == "refusing":
            self.keeper.on_relay(number, False, is_over=True)

    def _report(self, number: RegionId) -> None:
        assert self.relays[number].is_connected, "nobody is sent to where we are not"
        self.reported.append(number)

    # --- weather ---

    def turn(self, number: int, state: str) -> None:
        relay = self.relays[number]
        relay.state = state
        if relay.is_connected and state != "up":
            self.later(0.0 if state == "refusing" else NOTICED_S, lambda: self._lose(number))

    def _lose(self, number: int) -> None:
        relay = self.relays[number]
        if relay.is_connected and relay.state != "up":
            relay.is_connected = False
            self.keeper.on_relay(RegionId(number), False)
            if number == self.home:
                self.later(REDIAL_S, lambda: self._dialled(RegionId(number)))

    def check(self) -> None:
        """A netcheck, at once."""
        regions = {
            RegionId(n): RegionReading(v4_s=r.ms * self.dice.uniform(1, 1.2) / 1000)
            for n, r in self.relays.items()
            if r.has_stun and self.dice.random() < 0.9
        }
        now = self.clock.now()
        home = self.relays[self.home]
        heard = now if home.is_connected and home.state == "up" else None
        self.keeper.on_report(NetReport(at=now, udp=bool(regions), regions=regions), now, heard)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_home_is_always_found_again(seed: int) -> None:
    dice = random.Random(seed)
    world = World(dice, {number: Relay(ms=dice.uniform(1, 200)) for number in range(1, dice.randint(2, 5) + 1)})
    for _ in range(30):
        match dice.randrange(5):
            case 0:
                world.turn(dice.choice(list(world.relays)), dice.choice(["refusing", "frozen"]))
            case 1:
                world.turn(dice.choice(list(world.relays)), "up")
            case 2:
                world.relays[dice.choice(list(world.relays))].has_stun ^= True
            case 3:
                world.is_told = dice.random() < 0.8
            case _:
                world.check()
        world.run(dice.choice([0.05, 1, 5, 30, 400]))
        assert world.home == world.keeper.region and world.home in world.relays
        assert not world.keeper.settled.is_set() or world.relays[world.home].is_connected
    world.is_told = True
    survivor = dice.choice(list(world.relays))
    world.turn(survivor, "up")
    world.run(NOTICED_S + FOUND_S)
    assert world.keeper.settled.is_set() and world.relays[world.home].state == "up", "a relay that works is our home"
    assert world.reported[-1] == world.home
    world.keeper.close()


@pytest.mark.parametrize(("state", "bound_s"), [("refusing", LOST_S + 1), ("frozen", NOTICED_S + LOST_S + 1)])
def test_how_long_it_takes_without_a_report(state: str, bound_s: float) -> None:
    world = World(random.Random(1), {1: Relay(), 2: Relay()})
    world.run(1)
    assert world.reported == [1]
    world.turn(1, state)
    world.run(bound_s)
    assert world.reported == [1, 2] and bound_s <= 30


def test_regions_that_hang_are_passed_over_one_by_one() -> None:
    world = World(random.Random(1), {number: Relay("frozen") for number in range(1, 5)} | {5: Relay()})
    world.run(4 * TRY_S + 1)
    assert world.reported == [5]
