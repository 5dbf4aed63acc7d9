"""A scenario from a seed: where two nodes are, what the links are like, what happens, and what must hold.

The story: they start to talk and go direct where physics allows; one or a few mishaps, one at a time; everything
heals, and they are direct again; they fall silent, and so does everything else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from meshnode.core.path_values import State
from meshnode.core.score import FULL_SIZE
from tests.sim.judge import lost_runs
from tests.sim.mishaps import MISHAPS, Cost, Stage
from tests.sim.nat import KINDS, PORT_RESTRICTED, NatKind
from tests.sim.node import SimNode
from tests.sim.places import BLOCKED, PLACES, expected
from tests.sim.world import START, World

DIRECT_S: Final = 5.0
HEALED_S: Final = 35.0
"""The last gap between full rounds in RelayOnly, with its jitter, and a round."""
QUARANTINED_S: Final = 100.0
IMPOSSIBLE_S: Final = 8.0
"""How long something impossible is waited for."""
IDLE_S: Final = 50.0
SILENT_S: Final = 60.0
BASE_LOST_S: Final = 0.35


@dataclass
class Spot:
    """Where a node is."""

    nat: str
    is_double: bool = False
    has_v6: bool = False

    def __str__(self) -> str:
        return self.nat + (" behind PR" if self.is_double else "") + (" with IPv6" if self.has_v6 else "")

    @property
    def acts_as(self) -> str:
        """The type of the matrix it behaves like."""
        strictness = {"1:1": "PR", "FC": "PR", "AR": "PR", "PR*": "PR"}
        return strictness.get(self.nat, self.nat) if self.is_double else self.nat


@dataclass
class Felt:
    """A cost with its place in time."""

    since: float
    until: float
    lost_s: float


@dataclass
class Scenario:
    """What the seed chose, and what came of it."""

    seed: int
    spots: tuple[Spot, Spot] = (Spot("1:1"), Spot("1:1"))
    delay_s: float = 0.015
    relay_delay_s: float = 0.03
    regions: int = 1
    each_s: float = 0.1
    both: bool = True
    has_full: bool = False
    """Full packets among the small ones."""
    mishaps: int = 1
    costs: list[Felt] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    """Longest run of lost data for each mishap."""
    direct_after_s: float | None = None
    is_traced: bool = False
    world: World = field(init=False)

    @classmethod
    def of(cls, seed: int) -> Scenario:
        """What this seed stands for."""
        dice = random.Random(seed ^ 0x5EED)
        one, other = (Spot(dice.choice(PLACES), dice.random() < 0.15, dice.random() < 0.2) for _ in range(2))
        return cls(
            seed, (one, other),
            delay_s=dice.choice([0.002, 0.015, 0.015, 0.04, 0.1]),
            relay_delay_s=dice.choice([0.01, 0.03, 0.03, 0.08, 0.15]),
            regions=dice.choice([1, 2]),
            each_s=dice.choice([0.05, 0.1, 0.2, 0.2, 0.4]),
            both=dice.random() < 0.75,
            has_full=dice.random() < 0.4,
            mishaps=dice.choice([1, 1, 2, 3]),
        )  # fmt: skip

    def __str__(self) -> str:
        ways = ("full and small " if self.has_full else "") + ("both ways" if self.both else "from a to b")
        return (
            f"a: {self.spots[0]}; b: {self.spots[1]}; {self.delay_s * 1000:g} ms direct, {self.relay_delay_s * 1000:g} "
            f"ms to and from {self.regions} relay(s); data every {self.each_s * 1000:g} ms {ways}"
        )

    # the story

    def play(self) -> None:
        """Raises AssertionError with what does not hold."""
        world = self.world = World(
            self.seed, delay_s=self.delay_s, relay_delay_s=self.relay_delay_s, regions=self.regions
        )
        world.is_traced = self.is_traced
        a, b = (self._settle(name, site) for site, name in enumerate(("a", "b"), 1))
        world.run(0.5 + 4 * self.delay_s)
        world.introduce()
        stage = Stage(world, a, b, self.both)
        self.began = world.now
        talks = [world.talk(a, b, each_s=self.each_s, both=self.both)]
        if self.has_full:
            talks.append(world.talk(a, b, each_s=2 * self.each_s, both=self.both, size=FULL_SIZE))
        self._go_direct(stage, DIRECT_S + 8 * self.delay_s, "at first")
        world.run(world.dice.uniform(0.0, 10.0))
        for _ in range(self.mishaps):
            self._suffer(stage)
        self._heal(stage)
        for talk in talks:
            talk.cancel()
        self._judge_delivery(a, b)
        if self.both:
            self._judge_delivery(b, a)
        self._fall_silent(stage)

    def _settle(self, name: str, site: int) -> SimNode:
        world, spot = self.world, self.spots[site - 1]
        kind: NatKind = KINDS.get(spot.nat, PORT_RESTRICTED)
        if spot.is_double:
            carrier = world.router(f"carrier-{name}", f"198.51.100.{site}", PORT_RESTRICTED)
            router = world.router(f"r-{name}", f"100.64.{site}.2", kind, behind=carrier)
        else:
            router = world.router(f"r-{name}", f"198.51.100.{site}", kind)
        router.blocks_udp = spot.nat == BLOCKED
        ips = [f"192.168.1.{1 + site}"]
        if spot.has_v6 and not spot.is_double:
            ips.append(f"2001:db8:{site}::2")
        return world.node(name, *ips, router=router, home=site if self.regions > 1 else 1)

    def expects_direct(self, a: SimNode, b: SimNode) -> bool | None:
        """Whether they can meet where they are now; None: perhaps."""
        if any(self._is_blocked(n) for n in (a, b)):
            return False
        if all(any(ip.version == 6 for ip in n.ips) for n in (a, b)):
            return True
        families = [{ip.version for ip in n.ips} for n in (a, b)]
        if not families[0] & families[1]:
            return False
        names = [
            "1:1" if n.segment is self.world.internet else s.acts_as for s, n in zip(self.spots, (a, b), strict=True)
        ]
        return {"D": True, "R": False, "?": None}[expected(names[0], names[1])]

    def _is_blocked(self, node: SimNode) -> bool:
        return node.segment is not self.world.internet and node.segment.router.blocks_udp

    def _go_direct(self, stage: Stage, within_s: float, when: str) -> None:
        a, b = stage.a, stage.b
        wanted, world = self.expects_direct(a, b), self.world
        started = world.now
        within_s = within_s if wanted else min(within_s, IMPOSSIBLE_S)

        def is_direct() -> bool:
            return a.state(b) is State.DIRECT and (not self.both or b.state(a) is State.DIRECT)

        while world.now - started < within_s and not (is_direct() and wanted):
            world.run(0.1)
        if wanted:
            assert is_direct(), f"not direct {when} within {within_s:g} s: {a.state(b)}, {b.state(a)}"
            if when == "at first":
                self.direct_after_s = world.now - started
        elif wanted is False:
            assert not is_direct(), f"direct {when}, where that is impossible"

    def _suffer(self, stage: Stage) -> None:
        world = stage.world
        since = world.now
        cost: Cost = world.dice.choice(MISHAPS)(stage)
        self.costs.append(Felt(since - self.each_s, since + cost.felt_s + 1.0, cost.lost_s + 4 * self.delay_s))
        world.run(cost.felt_s + world.dice.uniform(1.0, 10.0))

    def _heal(self, stage: Stage) -> None:
        self._go_direct(stage, QUARANTINED_S if stage.was_set_aside else HEALED_S, "after all healed")
        self.world.run(2.0)

    # the verdict

    def _judge_delivery(self, a: SimNode, b: SimNode) -> None:
        for since, until in lost_runs(a, b, self.began):
            excuse = max((c.lost_s for c in self.costs if since <= c.until and until >= c.since), default=BASE_LOST_S)
            lost_s = until - since
            told = (
                f"data {a.name} → {b.name} lost for {lost_s:.2f} s from {since - START:.3f} s on, {excuse:.2f} allowed"
            )
            assert lost_s <= excuse + self.each_s, told
            self.stalls.append(lost_s)

    def _fall_silent(self, stage: Stage) -> None:
        """No traffic: no packets."""
        world, nodes = stage.world, (stage.a, stage.b)
        world.run(IDLE_S + 15.0)
        for node, other in (nodes, nodes[::-1]):
            assert node.state(other) is State.UNKNOWN, f"{node.name} is not idle: {node.state(other)}"
        before = [len(n.pings) + len(n.calls) for n in nodes]
        world.run(SILENT_S)
        after = [len(n.pings) + len(n.calls) for n in nodes]
        assert before == after, f"idle nodes sent {after[0] - before[0]} and {after[1] - before[1]} packets"
