"""A small world in virtual time: nodes with real Discovery, links that can be cut, one relay region.

Everything random comes from one seeded generator, so a run is replayed by its seed. A node's packet engine
is a few lines here: it sends where `set_path` told it, drops what has no way, and reports sends and receipts
at most every 100 ms per path, as the engine does. The relay drops for whoever is not connected and says so
to DISCO. All along, the invariants of paths.md 8.9 are checked on every path.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, NodePrivate, NodePublic
from meshnode.base.units import Nanos, Seconds, Unix
from meshnode.core.path import PeerPath
from meshnode.core.path_body import CALL_GAP_S
from meshnode.core.path_values import Event, Mode, State, What
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock
from meshnode.underlay.disco import Discovery
from meshnode.wire import disco as wire

REGION = RegionId(1)
REPORT_S = 0.1
FIREWALL_S = 30.0
UNKNOWN_TIMERS = {Event.RELAY_UP}
START = 1000.0


class SimClock(Clock):
    """The world's time; the world's dice."""

    __slots__ = ("world",)

    def __init__(self, world: World) -> None:
        self.world = world

    def now(self) -> Seconds:
        return Seconds(self.world.now)

    def wall(self) -> Unix:
        return Unix(self.world.now)

    def boot_ns(self) -> Nanos:
        return Nanos(int((self.world.now + self.world.slept_s) * 1e9))

    def entropy(self, count: int) -> bytes:
        return self.world.dice.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self.world.dice.uniform(low, high)


class Handle:
    """A timer of the world."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


@dataclass
class Route:
    """What the engine was told about one peer."""

    direct: Endpoint | None = None
    region: int = 0
    mode: int = 0
    reported_at: float = -1e9


@dataclass
class Got:
    """What arrived of one sender's numbered packets."""

    at: dict[int, float] = field(default_factory=dict)
    by_relay: int = 0
    by_udp: int = 0


class SimNode:
    """One node: real keys, real Discovery, an engine of a few lines."""

    def __init__(self, world: World, name: str, ips: list[str], *, firewall: bool) -> None:
        self.world = world
        self.name = name
        self.port = 41641
        self.firewall = firewall
        dice = world.dice.randbytes
        self.key: NodePublic = NodePrivate.generate(dice).public()
        self.opened: dict[Endpoint, float] = {}
        self.routes: dict[NodePublic, Route] = {}
        self.got: dict[NodePublic, Got] = {}
        self.heard: dict[tuple[NodePublic, Endpoint | None], float] = {}
        self.calls: list[float] = []
        self.pings: list[float] = []
        self.kicks = 0
        self.states: list[tuple[float, str, str, str]] = []
        self.serial = 0
        self.ips: list[IP] = []
        self.is_on_relay = True
        self.start_discovery()
        self.set_ips(ips)

    def start_discovery(self) -> None:
        world = self.world
        self.discovery = Discovery(
            DiscoPrivate.generate(world.dice.randbytes),
            self.key,
            clock=world.clock,
            call_later=world.call_later,
        )
        self.discovery.send_udp = self.send_udp
        self.discovery.send_relay = self.send_relay
        self.discovery.set_path = self.set_path
        self.discovery.kick = self.kick
        self.discovery.notify = lambda peer, old, new, why: self.states.append((world.now, old, new, why))

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(ip, self.port) for ip in self.ips)

    def set_ips(self, ips: list[str]) -> None:
        new = [ip_address(text) for text in ips]
        gone = [ip for ip in self.ips if ip not in new]
        self.ips = new
        self.discovery.set_endpoints(self.endpoints)
        if gone:
            self.discovery.on_link_change(gone)

    def as_peer(self) -> Node:
        return Node(
            id=len(self.name), stable_id=self.name, name=self.name, user_id=1, key=self.key, machine=None,
            disco=self.discovery.public, addresses=(), allowed=(), endpoints=self.endpoints, home=REGION,
        )  # fmt: skip

    # the engine, in small

    def set_path(self, peer: NodePublic, direct: Endpoint | None, region: int, mode: int) -> None:
        route = self.routes.setdefault(peer, Route())
        route.direct, route.region, route.mode = direct, region, mode

    def kick(self, peer: NodePublic) -> None:
        self.kicks += 1

    def send(self, to: SimNode) -> int:
        """One numbered data packet."""
        self.serial += 1
        route = self.routes.setdefault(to.key, Route())
        payload = b"data" + self.serial.to_bytes(8, "big")
        sent = 0
        if route.mode in (Mode.DIRECT, Mode.BOTH) and route.direct is not None:
            self.send_udp(route.direct.ip, route.direct.port, payload)
            sent += 1
        if route.mode in (Mode.RELAY, Mode.BOTH) and route.region:
            self.send_relay(RegionId(route.region), to.key, payload)
            sent += 1
        if self.world.now - route.reported_at >= REPORT_S:
            route.reported_at = self.world.now
            self.discovery.on_send(to.key, not sent)
        return sent

    def send_udp(self, ip: IP, port: int, data: bytes) -> None:
        if wire.is_disco(data):
            self.pings.append(self.world.now)
        self.world.carry_udp(self, Endpoint(ip, port), data)

    def send_relay(self, region: RegionId, peer: NodePublic, data: bytes) -> bool:
        if wire.is_disco(data):
            self.calls.append(self.world.now)
        self.world.carry_relay(self, peer, data)
        return True

    def receive(self, sender: SimNode, source: Endpoint | None, data: bytes) -> None:
        if wire.is_disco(data):
            if source is None:
                self.discovery.on_relay_disco(REGION, sender.key, data)
            else:
                self.discovery.on_disco(source.ip, source.port, data)
            return
        got = self.got.setdefault(sender.key, Got())
        number = int.from_bytes(data[4:12], "big")
        if number in got.at:
            return
        got.at[number] = self.world.now
        if source is None:
            got.by_relay += 1
        else:
            got.by_udp += 1
        heard = (sender.key, source)
        if self.world.now - self.heard.get(heard, -1e9) >= REPORT_S:
            self.heard[heard] = self.world.now
            self.discovery.on_recv(sender.key, source, 0 if source else REGION, What.DATA)

    def path(self, peer: SimNode) -> PeerPath:
        known = self.discovery._peers[peer.key]
        assert known.path is not None
        return known.path

    def state(self, peer: SimNode) -> State:
        status = self.discovery.status(peer.key)
        assert status is not None
        return status.state


class World:
    """Time, links and the relay."""

    def __init__(self, seed: int, *, delay_s: float = 0.015, relay_delay_s: float = 0.030, loss: float = 0.0) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = START
        self.slept_s = 0.0
        self.clock = SimClock(self)
        self.delay_s = delay_s
        self.relay_delay_s = relay_delay_s
        self.loss = loss
        self.nodes: list[SimNode] = []
        self.cuts: set[tuple[str, str]] = set()
        """(from, to) names between which no UDP passes."""
        self.is_relay_up = True
        self._heap: list[tuple[float, int, Handle]] = []
        self._serial = 0

    def call_later(self, delay: float, call: Callable[[], None]) -> Handle:
        handle = Handle(call)
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay, self._serial, handle))
        return handle

    def node(self, name: str, *ips: str, firewall: bool = False) -> SimNode:
        node = SimNode(self, name, list(ips), firewall=firewall)
        self.nodes.append(node)
        return node

    def introduce(self) -> None:
        """Everybody's netmap holds everybody."""
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.discovery.on_netmap_peer(other.as_peer())

    # what may go wrong

    def cut(self, a: SimNode, b: SimNode, *, one_way: bool = False) -> None:
        self.cuts.add((a.name, b.name))
        if not one_way:
            self.cuts.add((b.name, a.name))

    def heal(self) -> None:
        self.cuts.clear()

    def set_relay(self, up: bool) -> None:
        """The relay itself; nodes notice after the second that the pool waits."""
        self.is_relay_up = up

        def tell() -> None:
            for node in self.nodes:
                if self.is_relay_up == up:
                    (node.discovery.relay_up if up else node.discovery.relay_down)(REGION)

        self.call_later(0.1 if up else 1.0, tell)

    # carrying

    def carry_udp(self, sender: SimNode, target: Endpoint, data: bytes) -> None:
        sender.opened[target] = self.now
        source_ip = next((ip for ip in sender.ips if ip.version == target.ip.version), None)
        receiver = next((n for n in self.nodes if target in n.endpoints), None)
        if source_ip is None or receiver is None or self.dice.random() < self.loss:
            return
        source = Endpoint(source_ip, sender.port)

        def arrive() -> None:
            if (sender.name, receiver.name) in self.cuts or target not in receiver.endpoints:
                return
            if receiver.firewall and self.now - receiver.opened.get(source, -1e9) > FIREWALL_S:
                return
            receiver.receive(sender, source, data)

        self.call_later(self.delay_s * self.dice.uniform(0.95, 1.05), arrive)

    def carry_relay(self, sender: SimNode, peer: NodePublic, data: bytes) -> None:
        receiver = next((n for n in self.nodes if n.key == peer), None)
        if not self.is_relay_up:
            return

        def arrive() -> None:
            if not self.is_relay_up:
                return
            if receiver is not None and receiver.is_on_relay:
                receiver.receive(sender, None, data)
            elif wire.is_disco(data):
                sender.discovery.on_peer_gone(REGION, peer, 1)

        self.call_later(self.relay_delay_s * self.dice.uniform(0.95, 1.05), arrive)

    # running

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            at, _, handle = heapq.heappop(self._heap)
            if handle.call is None:
                continue
            self.now = max(self.now, at)
            handle.call()
            self._serial += 1
            if self._serial % 4 == 0:
                self.check()
        self.check()
        self.now = until

    def run_until(self, wanted: Callable[[], bool], limit_s: float) -> float:
        """Seconds until `wanted` holds; fails with the seed if it does not within the limit."""
        started = self.now
        while not wanted():
            assert self.now - started < limit_s, f"seed {self.seed}: not within {limit_s} s\n{self.story()}"
            self.run(0.01)
        return self.now - started

    def talk(self, a: SimNode, b: SimNode, *, each_s: float = 0.04, both: bool = True) -> Handle:
        """Data every so often until the handle is cancelled."""
        stop = Handle(lambda: None)

        def step() -> None:
            if stop.call is None:
                return
            a.send(b)
            if both:
                b.send(a)
            self.call_later(each_s, step)

        step()
        return stop

    # checking

    def check(self) -> None:
        for node in self.nodes:
            for known, path in node.discovery._awake():
                problem = broken(path, self.now, node.routes.get(known.key, Route()))
                at = f"seed {self.seed} at {self.now - START:.3f} s, {node.name}"
                assert not problem, f"{at}: {problem}\n{self.story()}"

    def story(self) -> str:
        lines = []
        for node in self.nodes:
            for at, old, new, why in node.states:
                lines.append((at, f"{at - START:9.3f} {node.name}: {old} → {new}: {why}"))
        return "\n".join(text for _, text in sorted(lines)[-40:])


def broken(path: PeerPath, now: float, route: Route) -> str:
    """Which invariant does not hold; '' if all do."""
    act, state = path.act, path.state
    has_way = path.is_relay_up or act is not None or bool(path.spray(path.now))
    if has_way and route.mode == Mode.NONE:
        return "I1: a way is known and the engine has none"
    if state is State.DEGRADED and path.is_relay_up and route.mode != Mode.BOTH:
        return "I2: degraded, but not relayed"
    if (state in (State.DIRECT, State.DEGRADED)) != (act is not None):
        return f"I6: {state} with act {act and act.endpoint}"
    if state is State.DIRECT and act is not None:
        if act.is_bad(now):
            return "I6: direct by a path in quarantine"
        limit = 6.0 + 3.2 + path.tuning.heartbeat_s * 1.1
        if path.is_live and now - path.evidence_at > limit:
            return f"I6: direct, but no evidence for {now - path.evidence_at:.1f} s"
    if state is State.UNKNOWN:
        armed = set(path.timers) - UNKNOWN_TIMERS
        if armed or any(p.timeout_at - now > 5.0 for p in path.probes.values()):
            return f"I7: unknown with timers {armed}"
    if len(path.candidates) > 64 or len(path.probes) > 64:
        return "I10: too many candidates or probes"
    if route.mode in (Mode.DIRECT, Mode.BOTH) and route.direct is None:
        return "a direct mode without an endpoint"
    return ""


def close_calls(times: list[float]) -> list[float]:
    """Gaps between CallMeMaybes that are too short (I5)."""
    return [b - a for a, b in zip(times, times[1:], strict=False) if b - a < CALL_GAP_S - 1e-6]


def gaps(got: Got, since: float, until: float) -> float:
    """The longest time without a new packet between two instants."""
    times = sorted(t for t in got.at.values() if since <= t <= until)
    edges = [since, *times, until]
    return max(b - a for a, b in zip(edges, edges[1:], strict=False))


def pair(seed: int, **about: Any) -> tuple[World, SimNode, SimNode]:
    """Two nodes that know each other."""
    firewall = about.pop("firewall", False)
    world = World(seed, **about)
    a = world.node("a", "192.0.2.1", firewall=firewall)
    b = world.node("b", "192.0.2.2", firewall=firewall)
    world.introduce()
    return world, a, b
