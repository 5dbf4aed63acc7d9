"""A small world in virtual time: nodes with real Discovery, links, NAT boxes, relays.

Everything random comes from one seeded generator, so a run is replayed by its seed. All along, the invariants
of paths.md 8.9 are checked (`watch`).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, Final

from meshnode.base.keys import NodePublic
from tests.sim.engine import Got
from tests.sim.nat import Firewall, NatKind
from tests.sim.net import STUN_V4, STUN_V6, Internet, Router, StunServer
from tests.sim.node import SimNode
from tests.sim.relay import Health, Region
from tests.sim.watch import Watch

START: Final = 1000.0
CONTROL_S: Final = 0.2
"""From a node telling control what changed to the others' netmaps."""
STORY_LINES: Final = 60


class Handle:
    """A timer of the world."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not fire."""
        self.call = None


class World:
    """Time, links and the relays."""

    def __init__(
        self, seed: int, *, delay_s: float = 0.015, relay_delay_s: float = 0.030, loss: float = 0.0, regions: int = 1
    ) -> None:
        """delay_s: one way over the internet; loss: of every node's packets; times in seconds."""
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = START
        self.delay_s = delay_s
        self.loss = loss
        self._heap: list[tuple[float, int, Handle]] = []
        self._serial = 0
        self.nodes: list[SimNode] = []
        self.by_key: dict[NodePublic, SimNode] = {}
        self.by_name: dict[str, SimNode] = {}
        self.cuts: set[tuple[str, str]] = set()
        """(from, to) names between which no UDP passes."""
        self.on_wake: dict[str, list[Handle]] = {}
        self.internet = Internet(self)
        self.stun = [StunServer(self, ip) for ip in (*STUN_V4, *STUN_V6)]
        self.regions = {n: Region(self, n, relay_delay_s) for n in range(1, regions + 1)}
        self.watch = Watch(self)
        self.events: list[tuple[float, str]] = []
        """What the scenario did."""
        self.is_traced = False
        """Every packet sent is an event as well."""

    # building

    def router(self, name: str, wan: str, kind: NatKind, *, behind: Router | None = None) -> Router:
        """A router on the internet, or in the LAN of another."""
        return Router(self, name, behind.lan if behind else self.internet, wan, kind)

    def node(
        self, name: str, *ips: str, router: Router | None = None, firewall: bool = False, home: int = 1
    ) -> SimNode:
        """A node on the internet, or in a router's LAN, where it asks STUN servers for its address."""
        node = SimNode(self, name, router.lan if router else self.internet, list(ips), home)
        node.firewall = Firewall() if firewall else None
        node.up.loss = self.loss
        self.nodes.append(node)
        self.by_key[node.key] = self.by_name[name] = node
        if router is not None:
            node.keep_finding()
        return node

    def introduce(self) -> None:
        """Everybody's netmap holds everybody, and they have spoken before."""
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.discovery.on_netmap_peer(other.as_peer())
                    session = 1 + len(node.name) + len(other.name)
                    node.tunnel(other).establish(session, is_initiator=node.name < other.name)

    def announce(self, node: SimNode) -> None:
        """Control tells the others what changed of a node."""
        peer = node.as_peer()
        for other in self.nodes:
            if other is not node and node in self.nodes:
                delay = CONTROL_S * self.dice.uniform(0.5, 1.5)
                other.call_later(delay, lambda other=other: other.discovery.on_netmap_peer(peer))  # type: ignore[misc]

    # what may go wrong

    def note(self, what: str) -> None:
        """For the story."""
        self.events.append((self.now, what))

    def cut(self, a: SimNode, b: SimNode, *, one_way: bool = False) -> None:
        """No UDP from a to b, and none back."""
        self.cuts.add((a.name, b.name))
        if not one_way:
            self.cuts.add((b.name, a.name))

    def heal(self) -> None:
        """Every cut is over."""
        self.cuts.clear()

    def set_relay(self, up: bool) -> None:
        """The first region; nodes notice in their time."""
        self.regions[1].become(Health.UP if up else Health.DOWN)

    # running

    def later(self, delay_s: float, call: Callable[[], None]) -> Handle:
        """A timer by the world's clock."""
        handle = Handle(call)
        self.push(delay_s, handle)
        return handle

    def push(self, delay_s: float, handle: Handle) -> None:
        """Arm a handle."""
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, handle))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        heap, watch, pop = self._heap, self.watch, heapq.heappop
        while heap and heap[0][0] <= until:
            at, _, handle = pop(heap)
            call = handle.call
            if call is None:
                continue
            if at > self.now:
                self.now = at
            call()
            watch.look()
        self.now = until

    def run_until(self, wanted: Callable[[], bool], limit_s: float) -> float:
        """Seconds until `wanted` holds; fails with the seed if it does not within the limit."""
        started = self.now
        while not wanted():
            assert self.now - started < limit_s, f"seed {self.seed}: not within {limit_s} s\n{self.story()}"
            self.run(0.01)
        return self.now - started

    def talk(self, a: SimNode, b: SimNode, *, each_s: float = 0.04, both: bool = True, size: int = 128) -> Handle:
        """Data every so often until the handle is cancelled."""
        stop = Handle(lambda: None)

        def step() -> None:
            if stop.call is None:
                return
            a.send(b, size)
            if both:
                b.send(a, size)
            self.later(each_s, step)

        step()
        return stop

    def story(self, lines: int = STORY_LINES) -> str:
        """What happened, in order."""
        told = [(at, f"{at - START:9.3f} ** {what}") for at, what in self.events]
        for node in self.nodes:
            for at, old, new, why in node.states:
                told.append((at, f"{at - START:9.3f} {node.name}: {old} → {new}: {why}"))
        return "\n".join(text for _, text in sorted(told)[-lines:])


def gaps(got: Got, since: float, until: float) -> float:
    """The longest time without a new packet between two instants."""
    times = sorted(t for t in got.at.values() if since <= t <= until)
    edges = [since, *times, until]
    return max(b - a for a, b in zip(edges, edges[1:], strict=False))


def pair(seed: int, **about: Any) -> tuple[World, SimNode, SimNode]:
    """Two nodes on the internet that know each other."""
    firewall = about.pop("firewall", False)
    world = World(seed, **about)
    a = world.node("a", "192.0.2.1", firewall=firewall)
    b = world.node("b", "192.0.2.2", firewall=firewall)
    world.introduce()
    return world, a, b
