"""The machine's own network in virtual time: containers, lost interfaces, relays that flap or stay dead.

Bounds are those of docs/protocol/paths.md 8.1 and 8.8.
"""

from __future__ import annotations

from meshnode.core.path_values import State
from tests.sim.judge import lost_for
from tests.sim.node import SimNode
from tests.sim.seeds import seeds
from tests.sim.world import World, pair

DIRECT, RELAY, DEGRADED = State.DIRECT, State.RELAY_ONLY, State.DEGRADED


def direct(seed: int) -> tuple[World, SimNode, SimNode]:
    """Two that talk, direct for a while."""
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0 + world.dice.uniform(0, 2))
    return world, a, b


@seeds(20)
def test_containers_that_come_and_go_change_no_path(seed: int) -> None:
    world, a, b = direct(seed)
    at, act = world.now, a.path(b).act
    for number in range(10):
        a.set_ips(["192.0.2.1", f"172.{17 + number}.0.1"])
        world.run(world.dice.uniform(0.1, 2.0))
        a.set_ips(["192.0.2.1"])
        world.run(world.dice.uniform(0.1, 2.0))
    assert a.path(b).act is act
    assert not [s for s in a.states + b.states if s[0] >= at], "no transition"
    assert lost_for(a, b, at) <= 0.1 and lost_for(b, a, at) <= 0.1


@seeds(20)
def test_another_address_beside_the_old_one_loses_nothing_and_its_end_little(seed: int) -> None:
    """A second interface comes, then the first one goes."""
    world, a, b = direct(seed)
    at = world.now
    a.set_ips(["192.0.2.1", "198.51.100.9"])
    world.run(3.0)
    assert not [s for s in a.states if s[0] >= at and s[2] != DIRECT]
    gone_at = world.now
    a.set_ips(["198.51.100.9"])
    assert a.state(b) is DEGRADED, "doubted at once"
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0)
    assert lost_for(a, b, at) <= 0.2 and lost_for(b, a, gone_at) <= 1.0


@seeds(20)
def test_a_relay_that_flaps_each_second_moves_no_direct_path(seed: int) -> None:
    world, a, b = direct(seed)
    at = world.now
    for _ in range(20):
        world.set_relay(False)
        world.run(world.dice.uniform(0.5, 1.5))
        world.set_relay(True)
        world.run(world.dice.uniform(0.5, 1.5))
    assert not [s for s in a.states + b.states if s[0] >= at]
    assert lost_for(a, b, at) <= 0.2


@seeds(20)
def test_relayed_traffic_goes_on_whenever_a_flapping_relay_is_there(seed: int) -> None:
    world, a, b = pair(seed)
    world.cut(a, b)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is RELAY, 15.0)
    for _ in range(10):
        world.set_relay(False)
        world.run(world.dice.uniform(0.5, 3.0))
        world.set_relay(True)
        back_at = world.now
        world.run(3.0)
        assert any(t > back_at for t in b.got[a.key].at.values()), "within three seconds"
