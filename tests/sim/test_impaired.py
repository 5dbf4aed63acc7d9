"""Links that do more than lose: WireGuard scrubbed, jitter, reordering, copies, rebinding, roaming between families.

Bounds are those of docs/protocol/paths.md 8 and of the reliability targets G-12 to G-15.
"""

from __future__ import annotations

import pytest

from meshnode.core.path_values import Hedge, Mode, State
from tests.sim.judge import lost_for
from tests.sim.node import SimNode
from tests.sim.places import put, two_places
from tests.sim.seeds import seeds
from tests.sim.world import World, pair

DIRECT, RELAY, DEGRADED = State.DIRECT, State.RELAY_ONLY, State.DEGRADED


def talking(seed: int, **about: object) -> tuple[World, SimNode, SimNode]:
    """A pair that is direct and has proved it."""
    world, a, b = pair(seed, **about)
    world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0 + world.dice.uniform(0, 2))
    return world, a, b


@seeds(15)
def test_wireguard_scrubbed_both_ways_is_relayed_within_seven_seconds(seed: int) -> None:
    world, a, b = talking(seed)
    at = world.now
    a.up.scrubs_wireguard = a.down.scrubs_wireguard = True
    world.run(60.0)
    assert lost_for(a, b, at) <= 7.0 and lost_for(b, a, at) <= 7.0
    first = [min(t for t, _, new, _ in n.states if t > at and new == RELAY) for n in (a, b)]
    assert max(first) - at <= 20.0, "set aside"


@seeds(15)
@pytest.mark.parametrize("both", [True, False])
def test_wireguard_scrubbed_one_way_is_found_from_both_ends(seed: int, both: bool) -> None:
    """Whoever hears nothing goes to the relay; whoever then hears by relay only follows."""
    world, a, b = pair(seed)
    world.talk(a, b, each_s=0.1, both=both)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(14.0)
    at = world.now
    a.up.scrubs_wireguard = True
    world.run(60.0)
    assert lost_for(a, b, at) <= (5.2 if both else 8.0), "who misses data asks after three seconds"
    assert lost_for(b, a, at) <= 0.3


@seeds(15)
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("by", ["up", "down"])
def test_wireguard_scrubbed_one_way_as_soon_as_the_path_is_taken(seed: int, both: bool, by: str) -> None:
    """Probes are answered, and what one end hears directly says nothing of what it sends."""
    world, a, b = pair(seed)
    world.talk(a, b, each_s=world.dice.choice([0.05, 0.1, 0.4]), both=both)
    world.run_until(lambda: a.state(b) is DIRECT, 5.0)
    at = world.now
    (a.up if by == "up" else a.down).scrubs_wireguard = True
    world.run(60.0)
    assert lost_for(a, b, at) <= 2.2, world.story()
    assert lost_for(b, a, at) <= 2.2, world.story()


@seeds(40)
@pytest.mark.parametrize("both", [True, False])
def test_wireguard_scrubbed_one_way_while_the_path_is_young(seed: int, both: bool) -> None:
    """One end may have been heard on it and the other not, and copies may have been the first to arrive."""
    delay_s, relay_delay_s = (0.002, 0.015, 0.04, 0.1)[seed % 4], (0.01, 0.03, 0.08, 0.15)[seed // 4 % 4]
    world, a, b = pair(seed, delay_s=delay_s, relay_delay_s=relay_delay_s)
    world.talk(a, b, each_s=world.dice.choice([0.05, 0.1, 0.2, 0.4]), both=both)
    world.run_until(lambda: a.state(b) is DIRECT, 8.0)
    world.run(world.dice.choice([0.02, 0.1, 0.5, 2.0, 11.0]))
    at = world.now
    world.dice.choice([a.up, a.down]).scrubs_wireguard = True
    world.run(60.0)
    assert lost_for(a, b, at) <= (5.4 if both else 8.2), world.story()
    assert not both or lost_for(b, a, at) <= 5.4, world.story()


@seeds(15)
def test_who_goes_on_while_the_other_has_said_enough_is_not_relayed_for_long(seed: int) -> None:
    """A conversation that becomes a stream one way: nothing is wrong, and both ends stay direct."""
    world, a, b = pair(seed)
    talk = world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(world.dice.uniform(3.0, 8.0))
    talk.cancel()
    at, before = world.now, a.data_relayed
    world.talk(a, b, each_s=0.1, both=False)
    world.run(120.0)
    assert lost_for(a, b, at) == 0.0 and not [s for n in (a, b) for s in n.states if s[0] > at], world.story()
    assert a.data_relayed - before <= 35, "three seconds of copies, once"


@seeds(15)
def test_copies_that_answer_copies_come_to_an_end(seed: int) -> None:
    world, a, b = talking(seed)
    for node, other in ((a, b), (b, a)):
        path = node.path(other)
        path.hedges.add(Hedge.UNHEARD)
        path.unheard_at, path.heard_relay_at = node.now - world.dice.uniform(0.0, 15.0), node.now
    world.run(1.0)
    assert all(r.mode is Mode.BOTH for n in (a, b) for r in n.routes.values()), "each sees the other's"
    world.run(30.0)
    assert not a.path(b).hedges and not b.path(a).hedges, world.story()


@seeds(30)
@pytest.mark.parametrize("loss", [0.05, 0.1])
def test_loss_is_not_taken_for_scrubbing(seed: int, loss: float) -> None:
    """Data one way, so that the only thing that comes back is a keepalive every ten seconds; some are lost."""
    world, a, b = pair(seed)
    a.up.loss = b.up.loss = loss
    world.talk(a, b, each_s=0.25, both=False)
    world.run_until(lambda: a.state(b) is DIRECT, 10.0)
    world.run(180.0)
    assert RELAY not in [new for _, _, new, _ in a.states], world.story()


@seeds(15)
def test_jitter_and_reordering_and_copies_change_nothing(seed: int) -> None:
    world, a, b = talking(seed)
    at = world.now
    for link in (a.up, b.up):
        link.jitter_s, link.reorder, link.duplicate = world.dice.choice([0.01, 0.1, 0.2]), 0.25, 0.1
    world.run(60.0)
    assert lost_for(a, b, at) == lost_for(b, a, at) == 0.0
    later = [new for t, _, new, _ in a.states + b.states if t > at]
    assert RELAY not in later and later.count(DEGRADED) <= 1


@seeds(15)
@pytest.mark.parametrize("place", ["FC", "AR", "PR"])
def test_a_router_that_rebinds_every_twenty_seconds(seed: int, place: str) -> None:
    world, a, b = two_places(seed, place, "1:1")
    world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(2.0)
    for _ in range(4):
        at = world.now
        a.segment.router.nat.forget()
        world.run(20.0)
        assert lost_for(a, b, at) <= 1.0 and lost_for(b, a, at) <= 2.2
        assert a.state(b) is DIRECT and b.state(a) is DIRECT


@seeds(20)
def test_roaming_from_ipv4_to_ipv6_only(seed: int) -> None:
    world = World(seed)
    a, b = put(world, "a", "PR", 1, lan="192.168.1.2"), put(world, "b", "PR", 2, lan="192.168.1.3")
    b.set_ips(["192.168.1.3", "2001:db8:2::2"])
    world.run(1.5)
    world.introduce()
    world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(5.0)
    at = world.now
    a.move(world.internet, ["2001:db8:77::7"])
    world.run_until(lambda: a.state(b) is DIRECT and a.path(b).act.endpoint.ip.version == 6, 3.0)
    world.run(10.0)
    assert b.state(a) is DIRECT and b.path(a).act.endpoint.ip.version == 6
    assert lost_for(a, b, at) <= 0.2, "what we send is relayed at once"
    assert lost_for(b, a, at) <= 1.0


@seeds(15)
def test_the_next_best_path_is_asked_before_it_is_believed(seed: int) -> None:
    """WireGuard is scrubbed on the path in use; the other one has been dead for a while."""
    world, a, b = pair(seed)
    b.set_ips(["192.0.2.2", "203.0.113.9"])
    world.introduce()
    world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(2.0)
    at, act = world.now, a.path(b).act
    assert act is not None
    other = next(c for c in a.path(b).candidates.values() if c is not act)
    b.ips.remove(other.endpoint.ip)
    a.up.scrubs_wireguard = a.down.scrubs_wireguard = True
    world.run(22.0)
    story = [(t, new) for t, _, new, why in a.states if t > at and str(other.endpoint) in why]
    assert not story or any(t < story[0][0] + 1.0 and new == DEGRADED for t, new in story[1:]), world.story()
    assert lost_for(a, b, at) <= 16.0


@seeds(15)
def test_scrubbing_that_ends_leaves_no_quarrel(seed: int) -> None:
    """One end has set the path aside and the other knows nothing of it: they must not go on to do so in turn."""
    world, a, b = talking(seed)
    a.up.scrubs_wireguard = a.down.scrubs_wireguard = True
    world.run_until(lambda: a.state(b) is RELAY and b.state(a) is RELAY, 25.0)
    a.up.scrubs_wireguard = a.down.scrubs_wireguard = False
    world.run(world.dice.uniform(5.0, 30.0))
    a.restart()
    world.run(100.0)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(30.0)
    assert a.state(b) is DIRECT and b.state(a) is DIRECT, world.story()


@seeds(8)
@pytest.mark.parametrize("limit", [1300, 1250, 1000])
@pytest.mark.parametrize("one_way", [True, False])
def test_a_path_too_small_for_full_packets_loses_nothing(seed: int, limit: int, one_way: bool) -> None:
    world, a, b = pair(seed)
    a.up.limit, b.up.limit = limit, 0 if one_way else limit
    at = world.now
    world.talk(a, b, each_s=0.1, size=1360)
    world.talk(a, b, each_s=0.1)
    world.run(30.0)
    assert lost_for(a, b, at) == lost_for(b, a, at) == 0.0, world.story()
    act = a.path(b).act
    if limit >= 1200:
        assert act is not None and act.limit == (1280 if limit >= 1280 else 1200)


@seeds(8)
@pytest.mark.parametrize("limit", [1300, 1250, 1000])
def test_a_path_that_becomes_too_small_is_found(seed: int, limit: int) -> None:
    """The route changes while full packets go over it: probes of that length are lost soon, and short ones are not."""
    world, a, b = pair(seed)
    world.talk(a, b, each_s=0.1, size=1360)
    world.talk(a, b, each_s=0.1)
    world.run(10.0)
    at = world.now
    a.up.limit = limit
    world.run(30.0)
    assert lost_for(a, b, at) <= 3.5, world.story()
    assert lost_for(b, a, at) == 0.0
