"""The NAT matrix in virtual time: direct within 5 s wherever reliability.md 4.2 says so, reachable everywhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement

import pytest

from meshnode.core.path_values import State
from tests.sim.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC, Allocation, Nat, NatKind
from tests.sim.net import Lan
from tests.sim.node import SimNode
from tests.sim.places import BLOCKED, PLACES, expected, put, put_behind, two_places
from tests.sim.seeds import seeds
from tests.sim.world import World, gaps

SEEDS = 4


@pytest.mark.parametrize(("one", "other"), list(combinations_with_replacement(PLACES, 2)))
@pytest.mark.parametrize("starts", ["one", "other", "both"])
def test_cell(one: str, other: str, starts: str) -> None:
    for seed in range(SEEDS):
        world, a, b = two_places(seed, one, other)
        since = world.now
        if starts == "other":
            a, b = b, a
        world.talk(a, b, each_s=0.1, both=starts == "both")
        world.run(5.0)
        direct = a.state(b) is State.DIRECT
        told = f"seed {seed}: {a.state(b)}, {b.state(a)}\n{world.story()}"
        if expected(one, other) == "D":
            assert direct and (starts != "both" or b.state(a) is State.DIRECT), told
        elif expected(one, other) == "R":
            assert not direct, told
        world.run(5.0)
        assert gaps(b.got[a.key], since + 0.1, world.now) < 0.35, told
        assert len(b.got[a.key].at) >= len(a.sent[b.key]) - 2, told


def test_the_table_is_symmetric_and_whole() -> None:
    for one in PLACES:
        assert expected(one, BLOCKED) == "R"
        for other in PLACES:
            assert expected(one, other) == expected(other, one)


def go_direct(world: World, a: SimNode, b: SimNode, within_s: float = 5.0) -> tuple[str, str]:
    """Both talk until both are direct; (where a reaches b, where b reaches a)."""
    world.talk(a, b, each_s=0.1)
    world.run_until(lambda: a.state(b) is State.DIRECT and b.state(a) is State.DIRECT, within_s)
    world.run(4.0)
    acts = a.path(b).act, b.path(a).act
    assert acts[0] is not None and acts[1] is not None
    return str(acts[0].endpoint.ip), str(acts[1].endpoint.ip)


@seeds(10)
@pytest.mark.parametrize("kind", [PORT_RESTRICTED, SYMMETRIC])
def test_one_lan_is_direct_by_local_addresses(seed: int, kind: NatKind) -> None:
    world = World(seed)
    a = put(world, "a", kind, 1)
    assert isinstance(a.segment, Lan)
    b = put_behind(world, "b", a.segment.router, "192.168.1.3")
    world.run(0.5)
    world.introduce()
    assert go_direct(world, a, b) == ("192.168.1.3", "192.168.1.2")


@seeds(10)
@pytest.mark.parametrize("hairpin", [True, False])
def test_two_lans_behind_one_carrier_need_its_hairpin(seed: int, hairpin: bool) -> None:
    world = World(seed)
    carrier = world.router("carrier", "198.51.100.1", replace(PORT_RESTRICTED, hairpin=hairpin))
    ones = [world.router(f"r{n}", f"100.64.0.{n}", PORT_RESTRICTED, behind=carrier) for n in (1, 2)]
    a, b = put_behind(world, "a", ones[0], "192.168.1.2"), put_behind(world, "b", ones[1], "192.168.1.3")
    world.run(0.5)
    world.introduce()
    if hairpin:
        assert go_direct(world, a, b) == ("198.51.100.1", "198.51.100.1")
    else:
        world.talk(a, b)
        world.run(10.0)
        assert a.state(b) is State.RELAY_ONLY


@seeds(10)
@pytest.mark.parametrize(("inner", "other", "is_direct"), [
    (PORT_RESTRICTED, PORT_RESTRICTED, True), (FULL_CONE, PORT_RESTRICTED, True),
    (SYMMETRIC, FULL_CONE, True), (SYMMETRIC, PORT_RESTRICTED, False),
])  # fmt: skip
def test_two_boxes_are_as_the_stricter_one(seed: int, inner: NatKind, other: NatKind, is_direct: bool) -> None:
    world = World(seed)
    carrier = world.router("carrier", "198.51.100.1", PORT_RESTRICTED)
    home = world.router("home", "100.64.0.2", inner, behind=carrier)
    a, b = put_behind(world, "a", home, "192.168.1.2"), put(world, "b", other, 9, lan="192.168.1.3")
    world.run(0.5)
    world.introduce()
    if is_direct:
        go_direct(world, a, b)
    else:
        world.talk(a, b)
        world.run(5.0)
        assert a.state(b) is not State.DIRECT


@seeds(10)
def test_ipv6_is_direct_whatever_ipv4_does(seed: int) -> None:
    world = World(seed)
    a, b = put(world, "a", SYMMETRIC, 1), put(world, "b", BLOCKED, 2)
    assert isinstance(b.segment, Lan)
    b.segment.router.blocks_udp = False
    b.segment.router.nat = Nat(SYMMETRIC, world.dice)
    a.set_ips(["192.168.1.2", "2001:db8:1::2"])
    b.set_ips(["192.168.1.2", "2001:db8:2::2"])
    world.run(1.5)
    world.introduce()
    assert go_direct(world, a, b) == ("2001:db8:2::2", "2001:db8:1::2")


@seeds(10)
@pytest.mark.parametrize("rule", list(Allocation))
def test_a_symmetric_box_meets_a_cone_whatever_ports_it_gives(seed: int, rule: Allocation) -> None:
    world, a, b = two_places(seed, replace(SYMMETRIC, allocation=rule, ports=(40000, 40063)), "AR")
    go_direct(world, a, b)


@seeds(10)
def test_equal_private_addresses_do_no_harm(seed: int) -> None:
    """Both LANs use one range, and a neighbour here has the peer's address there."""
    world = World(seed)
    a, b = put(world, "a", "PR", 1, lan="192.168.1.2"), put(world, "b", "PR", 2, lan="192.168.1.3")
    assert isinstance(a.segment, Lan)
    put_behind(world, "c", a.segment.router, "192.168.1.3")
    world.run(0.5)
    world.introduce()
    assert go_direct(world, a, b)[0] == "198.51.100.2"
