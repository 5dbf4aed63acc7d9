"""The relays: regions that carry packets between the nodes connected to them.

A region is up, down (its connections break) or silent (it takes everything and delivers nothing, as a stopped
process does). A node is connected to its home, and to a region it sends to once it has dialled. Nodes notice
a broken connection after the second that a pool waits, a silent one when its pings stay unanswered.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from meshnode.base.addr import RegionId
from meshnode.base.keys import NodePublic
from meshnode.wire import disco as wire

if TYPE_CHECKING:
    from tests.sim.link import Wg
    from tests.sim.node import SimNode
    from tests.sim.world import World

BROKEN_FOUND_S: Final = 1.0
BACK_FOUND_S: Final = 0.1
SILENT_FOUND_S: Final = (8.0, 15.0)
"""Between which ages a connection to a silent relay is found dead (ours: at most 15 s)."""
REHOME_S: Final = 2.0
NOT_HERE: Final = 1


class Health(Enum):
    """What a region does."""

    UP = "up"
    DOWN = "down"
    SILENT = "silent"


class Region:
    """One relay."""

    def __init__(self, world: World, number: int, delay_s: float) -> None:
        self.world = world
        self.id = RegionId(number)
        self.delay_s = delay_s
        self.health = Health.UP
        self._epoch = 0

    def become(self, health: Health) -> None:
        """Change, and let the nodes find out in their time."""
        self.health = health
        self._epoch += 1
        for node in self.world.nodes:
            self.world.later(self._found_after(health), self._teller(node, self._epoch))

    def _found_after(self, health: Health) -> float:
        if health is Health.SILENT:
            return self.world.dice.uniform(*SILENT_FOUND_S)
        return BACK_FOUND_S if health is Health.UP else BROKEN_FOUND_S

    def _teller(self, node: SimNode, epoch: int) -> object:
        def tell() -> None:
            if epoch != self._epoch:
                return
            if self.health is Health.UP:
                node.discovery.relay_up(self.id)
                return
            node.discovery.relay_down(self.id)
            if node.home == self.id:
                self.world.later(REHOME_S, node.rehome)

        return tell

    def carry(self, sender: SimNode, peer: NodePublic, data: bytes | Wg) -> None:
        """From a connected node to another."""
        if self.health is not Health.UP or not sender.is_online:
            return
        receiver = self.world.by_key.get(peer)

        def arrive() -> None:
            if self.health is not Health.UP:
                return
            if receiver is not None and receiver.is_connected(self.id):
                receiver.receive(sender, None, data, self.id)
            elif isinstance(data, bytes) and wire.is_disco(data):
                sender.discovery.on_peer_gone(self.id, peer, NOT_HERE)

        delay = self.delay_s * self.world.dice.uniform(0.95, 1.05)
        if not sender.is_connected(self.id):
            delay += 3 * self.delay_s
            sender.dial(self.id)
        self.world.later(delay, arrive)
