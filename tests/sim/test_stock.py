"""Ours beside a peer that behaves as tailscaled does: our direction keeps our bounds, its own has its own."""

from __future__ import annotations

import pytest

from meshnode.core.path_values import State
from tests.sim.judge import lost_for
from tests.sim.node import SimNode
from tests.sim.places import two_places
from tests.sim.seeds import seeds
from tests.sim.stock import HEARTBEAT_S, TRUST_S, Stock
from tests.sim.world import World


def beside_stock(seed: int, place: str) -> tuple[World, SimNode, SimNode, Stock]:
    """Our node `a` on that side, and a stock `b` behind a port-restricted router."""
    world, a, b = two_places(seed, place, "PR")
    b.be_stock()
    world.introduce()
    assert isinstance(b.discovery, Stock)
    return world, a, b, b.discovery


@seeds(10)
@pytest.mark.parametrize("place", ["1:1", "FC", "AR", "PR"])
@pytest.mark.parametrize("both", [True, False])
def test_both_go_direct(seed: int, place: str, both: bool) -> None:
    world, a, b, stock = beside_stock(seed, place)
    at = world.now
    world.talk(a, b, each_s=0.1, both=both)
    world.run_until(lambda: a.state(b) is State.DIRECT, 1.0)
    if both:
        world.run_until(lambda: stock.is_direct(a.key), 5.5)
    world.run(30.0)
    assert a.state(b) is State.DIRECT and (not both or stock.is_direct(a.key))
    assert lost_for(a, b, at) == lost_for(b, a, at) == 0.0


@seeds(20)
def test_a_cut_costs_each_its_own_way(seed: int) -> None:
    world, a, b, stock = beside_stock(seed, "PR")
    world.talk(a, b, each_s=0.1)
    world.run(20.0 + world.dice.uniform(0.0, 3.0))
    at = world.now
    world.cut(a, b)
    world.run(25.0)
    assert lost_for(a, b, at) <= 1.0
    assert lost_for(b, a, at) <= TRUST_S + 0.5
    assert lost_for(b, a, at) >= TRUST_S - HEARTBEAT_S - 0.5, "or it is no stock node"
    world.heal()
    world.run_until(lambda: a.state(b) is State.DIRECT, 20.0)
    world.run(10.0)
    assert a.state(b) is State.DIRECT and stock.is_direct(a.key)
