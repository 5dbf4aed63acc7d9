"""Paths in virtual time: cold start, cuts, roaming, relay loss; each over many seeds.

Expected figures are those of docs/protocol/paths.md 8.1, with room for jitter. MESHNODE_SIM_FACTOR=10 plays
ten times the seeds of an ordinary run.
"""

from __future__ import annotations

import pytest

from meshnode.core.path_values import Mode, State
from tests.sim.link import Wg
from tests.sim.seeds import seeds
from tests.sim.watch import close_calls
from tests.sim.world import gaps, pair

DIRECT, RELAY, DEGRADED, UNKNOWN = State.DIRECT, State.RELAY_ONLY, State.DEGRADED, State.UNKNOWN


@seeds(40)
@pytest.mark.parametrize("firewall", [False, True])
def test_cold_start_goes_direct_and_loses_nothing(seed: int, firewall: bool) -> None:
    world, a, b = pair(seed, firewall=firewall)
    started = world.now
    talk = world.talk(a, b)
    took = world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    assert took <= 0.030 + 1.5 * 0.030 + 0.30
    world.run(2.0)
    talk.cancel()
    world.run(1.0)
    assert len(b.got[a.key].at) == len(a.sent[b.key]), "packets were lost on the way to direct"
    assert gaps(b.got[a.key], started + 0.05, started + 2.0) < 0.1
    assert world.nodes[0].routes[b.key].mode == Mode.DIRECT


@seeds(20)
def test_one_side_alone_starts(seed: int) -> None:
    world, a, b = pair(seed, firewall=True)
    talk = world.talk(a, b, both=False)
    world.run_until(lambda: a.state(b) is DIRECT, 3.0)
    talk.cancel()


@seeds(40)
def test_udp_cut_falls_back_and_heals(seed: int) -> None:
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0 + world.dice.uniform(0, 2))
    cut_at = world.now
    world.cut(a, b)
    world.run(3.0)
    assert gaps(b.got[a.key], cut_at, world.now) <= 0.9, "silence both ways is noticed by the sender"
    world.run_until(lambda: a.state(b) is RELAY and b.state(a) is RELAY, 15.0)
    outage = world.dice.choice([0.0, 20.0])
    world.run(outage)
    assert gaps(b.got[a.key], cut_at + 1.0, world.now) <= 0.2, "the relay carries everything meanwhile"
    healed_at = world.now
    world.heal()
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 12.0)
    assert gaps(b.got[a.key], healed_at, world.now) <= 0.2


@seeds(40)
def test_one_way_cut_keeps_data_flowing(seed: int) -> None:
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0 + world.dice.uniform(0, 2))
    cut_at = world.now
    world.cut(a, b, one_way=True)
    world.run(20.0)
    assert gaps(b.got[a.key], cut_at, world.now) <= 2.2 + 0.4
    assert gaps(a.got[b.key], cut_at, world.now) <= 2.2 + 0.4
    assert a.state(b) is not DIRECT and b.state(a) is not DIRECT


@seeds(30)
def test_roaming_loses_little(seed: int) -> None:
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(5.0)
    moved_at = world.now
    a.set_ips(["198.51.100.9"])
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT and b.path(a).act is not None, 10.0)
    world.run(3.0)
    act = b.path(a).act
    assert act is not None and str(act.endpoint.ip) == "198.51.100.9"
    assert gaps(b.got[a.key], moved_at, world.now) <= 0.15, "what we send is relayed at once"
    assert gaps(a.got[b.key], moved_at, world.now) <= 1.0


@seeds(30)
def test_relay_loss_does_not_touch_a_direct_path(seed: int) -> None:
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0)
    down_at = world.now
    world.set_relay(False)
    world.run(30.0)
    assert a.state(b) is DIRECT and b.state(a) is DIRECT
    assert gaps(b.got[a.key], down_at, world.now) <= 0.2


@seeds(20)
def test_relay_loss_while_relayed_looks_for_a_direct_path_at_once(seed: int) -> None:
    world, a, b = pair(seed)
    world.cut(a, b)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is RELAY, 15.0)
    world.heal()
    world.set_relay(False)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)


@seeds(20)
def test_no_storm_of_calls(seed: int) -> None:
    """Two nodes that never reach each other by UDP call seldom, never in answer to a call, and ping within limits."""
    world, a, b = pair(seed)
    world.cut(a, b)
    world.talk(a, b, each_s=0.05)
    world.run(120.0)
    for node in (a, b):
        assert not close_calls(node.calls)
        assert len(node.calls) <= 3 + 120 / 25 * 4 * 1.5
        assert max((sum(1 for t in node.pings if at <= t < at + 10) for at in node.pings), default=0) <= 60
    assert a.state(b) is not DIRECT


@seeds(20)
def test_idle_costs_nothing_and_the_first_packet_goes_both_ways(seed: int) -> None:
    world, a, b = pair(seed)
    talk = world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(5.0)
    talk.cancel()
    world.run(50.0)
    assert a.state(b) is UNKNOWN and b.state(a) is UNKNOWN
    before = len(a.pings) + len(b.pings) + len(a.calls) + len(b.calls)
    world.run(60.0)
    assert len(a.pings) + len(b.pings) + len(a.calls) + len(b.calls) == before
    assert a.routes[b.key].mode == Mode.DOUBTED
    assert a.send(b) == 2
    world.run_until(lambda: a.state(b) is DIRECT, 1.0)


@seeds(20)
def test_random_loss_alone_hardly_ever_gives_a_direct_path_up(seed: int) -> None:
    loss = (0.01, 0.05, 0.2, 0.4)[seed % 4]
    world, a, b = pair(seed, loss=loss)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 30.0)
    direct_at = world.now
    world.run(60.0)
    later = [new for at, _, new, _ in a.states + b.states if at > direct_at]
    assert later.count(RELAY) <= (1 if loss == 0.4 else 0), "twelve pings in a row may be lost at 40 %, by luck"
    if loss <= 0.05:
        assert later.count(DEGRADED) <= 1


@seeds(10)
def test_a_far_path_stays_direct(seed: int) -> None:
    world, a, b = pair(seed, delay_s=0.6, relay_delay_s=0.6)
    world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 20.0)
    world.run(60.0)
    assert all(new not in (DEGRADED, RELAY) for _, _, new, _ in a.states + b.states)
    assert a.routes[b.key].mode == Mode.DIRECT


@seeds(20)
def test_the_nearer_of_two_addresses_wins(seed: int) -> None:
    world, a, b = pair(seed)
    b.set_ips(["203.0.113.7", "10.0.0.2"])
    a.set_ips(["10.0.0.1"])
    world.introduce()
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT, 5.0)
    world.run(35.0)
    act = a.path(b).act
    assert act is not None and str(act.endpoint.ip) == "10.0.0.2"


@seeds(20)
def test_a_restarted_peer_is_direct_again(seed: int) -> None:
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(2.0)
    at = world.now
    b.restart()
    world.run(1.0)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 10.0)
    assert a.kicks >= 1
    assert gaps(b.got[a.key], at, world.now) <= 1.0


@seeds(20)
def test_sleep_is_noticed_on_waking(seed: int) -> None:
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    a.sleep(60.0)
    world.run(60.0)
    woke_at = world.now
    world.run(0.2)
    assert any(new == DEGRADED for at, _, new, _ in a.states if at >= woke_at)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    assert gaps(b.got[a.key], woke_at, world.now) <= 0.2


@seeds(20)
def test_a_peer_the_relay_does_not_know_yet_is_reached_when_it_comes(seed: int) -> None:
    world, a, b = pair(seed)
    world.cut(a, b)
    b.is_on_relay = False
    world.talk(a, b, both=False)
    world.run(2.0)
    assert b.key not in {k for k, g in a.got.items() if g.at}
    b.is_on_relay = True
    came_at = world.now
    world.run(1.0)
    assert gaps(b.got[a.key], came_at, world.now) <= 0.2


def test_same_seed_same_story() -> None:
    def run() -> str:
        world, a, b = pair(7, loss=0.3)
        world.talk(a, b)
        world.run(30.0)
        return world.story() + str(a.path(b).candidates.keys()) + str(len(a.pings))

    assert run() == run()


def test_the_firewall_of_this_world_is_one() -> None:
    """A world in which everything passes would prove nothing."""
    world, a, b = pair(1, firewall=True)
    session = b.tunnel(a).current
    a.transmit(b.endpoints[0], Wg("data", session, 1, 128))
    world.run(1.0)
    assert a.key not in b.got
    b.firewall = None
    a.transmit(b.endpoints[0], Wg("data", session, 2, 128))
    world.run(1.0)
    assert list(b.got[a.key].at) == [2]


@seeds(20)
def test_a_nat_that_rebinds_is_followed(seed: int) -> None:
    """The peer's packets suddenly come from another port: its pings show it, ours prove it."""
    world, a, b = pair(seed)
    world.talk(a, b)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(3.0)
    at = world.now
    b.port = 50_000 + seed
    world.run(8.0)
    act = a.path(b).act
    assert act is not None and act.endpoint.port == b.port and a.state(b) is DIRECT
    assert gaps(b.got[a.key], at, world.now) <= 1.0 and gaps(a.got[b.key], at, world.now) <= 1.0


@seeds(20)
@pytest.mark.parametrize("both", [True, False])
def test_a_relay_faster_than_the_direct_path_condemns_nothing(seed: int, both: bool) -> None:
    """Of a packet sent both ways the relay's copy comes first; the other one still proves that its path carries."""
    world, a, b = pair(seed, delay_s=0.08, relay_delay_s=0.01)
    world.talk(a, b, both=both)
    world.run_until(lambda: a.state(b) is DIRECT and b.state(a) is DIRECT, 5.0)
    world.run(40.0)
    assert all(new not in (RELAY, DEGRADED) for _, _, new, _ in a.states + b.states)
    assert a.routes[b.key].mode == Mode.DIRECT


@seeds(12)
def test_two_that_cannot_meet_do_not_wake_each_other_for_ever(seed: int) -> None:
    """One's last call comes when the other has given up, and that one's when the first has."""
    world, a, b = pair(seed, relay_delay_s=0.15)
    world.cut(a, b)
    a.is_on_relay = False
    b.send(a)
    world.run(3.9 + 0.02 * (seed % 12))
    a.is_on_relay = True
    a.send(b)
    world.run(120.0)
    assert a.state(b) is UNKNOWN and b.state(a) is UNKNOWN, world.story()
