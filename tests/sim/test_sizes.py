"""Links that swallow long packets: a hole from the start, one that opens under way, with loss, one way and both.

Data is as long as a full tunnel packet over IPv4. Expected: docs/protocol/paths.md 8.1 and 8.6.
"""

from __future__ import annotations

import pytest

from meshnode.core.path_values import State
from tests.sim.judge import lost_for
from tests.sim.node import SimNode
from tests.sim.seeds import seeds
from tests.sim.world import pair

DIRECT, RELAY = State.DIRECT, State.RELAY_ONLY
FULL = 1340
"""Of the IP packet around a full one of the tunnel."""
LIMITS = {1300: 1280, 1250: 1200}


def limit_of(a: SimNode, b: SimNode) -> int | None:
    status = a.discovery.status(b.key)
    assert status is not None
    return status.limit


@seeds(15)
@pytest.mark.parametrize("hole", [1300, 1250, 1000])
def test_a_hole_from_the_start_loses_nothing(seed: int, hole: int) -> None:
    world, a, b = pair(seed)
    a.up.limit = hole
    world.talk(a, b, each_s=0.05, size=FULL)
    world.run_until(lambda: a.state(b) is DIRECT, 5.0)
    world.run(30.0)
    assert lost_for(a, b, 0.0) == 0.0 and lost_for(b, a, 0.0) == 0.0
    if hole in LIMITS:
        assert a.state(b) is DIRECT and limit_of(a, b) == LIMITS[hole]
    else:
        assert a.state(b) is RELAY, "too little to be of use"
    if hole in LIMITS:
        assert limit_of(b, a) == 1360, "the hole is one way"


@seeds(15)
@pytest.mark.parametrize("both", [True, False])
def test_a_hole_that_opens_under_way(seed: int, both: bool) -> None:
    """Noticed by the sender's silence probe if nothing comes back, else by a heartbeat as long as the limit."""
    world, a, b = pair(seed)
    world.talk(a, b, each_s=0.05, both=both, size=FULL)
    world.run_until(lambda: a.state(b) is DIRECT, 5.0)
    world.run(15.0 + world.dice.uniform(0, 5))
    at = world.now
    a.up.limit = 1300
    world.run(25.0)
    assert lost_for(a, b, at) <= (13.0 if both else 3.0)
    assert a.state(b) is DIRECT and limit_of(a, b) == 1280


@seeds(15)
@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_loss_is_no_hole(seed: int, loss: float) -> None:
    world, a, b = pair(seed)
    a.up.loss = b.up.loss = loss
    world.talk(a, b, each_s=0.1)
    world.run(120.0)
    for here, there in ((a, b), (b, a)):
        assert "carry packets" not in world.story() and limit_of(here, there) in (None, 1360, 1280)
