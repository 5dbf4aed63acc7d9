"""Places to put a node: behind each NAT of the matrix, behind two, beside another, with UDP blocked, with IPv6."""

from __future__ import annotations

from typing import Final

from tests.sim.nat import KINDS, PORT_RESTRICTED, NatKind
from tests.sim.net import Router
from tests.sim.node import SimNode
from tests.sim.world import World

BLOCKED: Final = "blocked"
"""A router that drops all UDP."""
PLACES: Final = ("1:1", "FC", "AR", "PR", "PR*", "ADM", "SYM", BLOCKED)
"""The matrix, in its order."""

_DIRECT: Final = {
    "1:1": "DDDDDDDR",
    "FC": "DDDDDDDR",
    "AR": "DDDDDDDR",
    "PR": "DDDD?RRR",
    "PR*": "DDD??RRR",
    "ADM": "DDDRRRRR",
    "SYM": "DDDRRRRR",
    BLOCKED: "RRRRRRRR",
}
"""reliability.md 4.2; ?: depends on who asks first, and two open routers pass when both ask at the same moment."""


def expected(one: str, other: str) -> str:
    """D direct, R by relay, ? either."""
    return _DIRECT[one][PLACES.index(other)]


def put(
    world: World, name: str, place: str | NatKind, site: int, *, home: int = 1, lan: str = "192.168.1.2"
) -> SimNode:
    """A node with a router of its own; `site` tells the routers' outer addresses apart."""
    kind = KINDS.get(place, PORT_RESTRICTED) if isinstance(place, str) else place
    router = world.router(f"r-{name}", f"198.51.100.{site}", kind)
    router.blocks_udp = place == BLOCKED
    return world.node(name, lan, router=router, home=home)


def put_behind(world: World, name: str, router: Router, lan: str) -> SimNode:
    """A node in a LAN that is there already."""
    return world.node(name, lan, router=router)


def two_places(seed: int, one: str | NatKind, other: str | NatKind) -> tuple[World, SimNode, SimNode]:
    """Two nodes, each behind its own router, that know each other and have asked for their addresses."""
    world = World(seed)
    a = put(world, "a", one, 1, lan="192.168.1.2")
    b = put(world, "b", other, 2, lan="192.168.1.3")
    world.run(0.5)
    world.introduce()
    return world, a, b
