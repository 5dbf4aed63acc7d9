"""One node: real keys and real Discovery, an engine in small, and its place in the network.

A node sleeps with its timers; its clock stands still meanwhile and its boot clock does not.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, NodePrivate, NodePublic
from meshnode.base.units import Nanos, Seconds, Unix
from meshnode.core.path import PeerPath
from meshnode.core.path_values import State
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock
from meshnode.underlay.disco import Discovery
from tests.sim.engine import SimEngine
from tests.sim.link import Link, Packet, Stun, Wg
from tests.sim.nat import Firewall
from tests.sim.net import STUN_PORT, STUN_V4, STUN_V6, Internet, Lan
from tests.sim.stock import Stock

if TYPE_CHECKING:
    from tests.sim.world import Handle, World

ERROR_REPORT_S: Final = 1.0
STUN_EVERY_S: Final = (20.0, 26.0)
STUN_GAP_S: Final = 1.0


class SimClock(Clock):
    """A node's time; the world's dice."""

    __slots__ = ("node",)

    def __init__(self, node: SimNode) -> None:
        self.node = node

    def now(self) -> Seconds:
        return Seconds(self.node.now)

    def wall(self) -> Unix:
        return Unix(self.node.world.now)

    def boot_ns(self) -> Nanos:
        return Nanos(int(self.node.world.now * 1e9))

    def entropy(self, count: int) -> bytes:
        return self.node.world.dice.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self.node.world.dice.uniform(low, high)


class SimNode(SimEngine):
    """A host with a node on it."""

    def __init__(self, world: World, name: str, segment: Internet | Lan, ips: list[str], home: int) -> None:
        super().__init__()
        self.world = world
        self.name = name
        self.port = 41641
        self.segment = segment
        self.home = RegionId(home)
        self.key: NodePublic = NodePrivate.generate(world.dice.randbytes).public()
        self.up, self.down = Link(), Link()
        self.firewall: Firewall | None = None
        self.finds_endpoints = False
        self.is_online = True
        self.is_on_relay = True
        self.asleep_since: float | None = None
        self.slept_s = 0.0
        self.ips: list[IP] = []
        self.mapped: dict[IP, Endpoint] = {}
        self.endpoints: tuple[Endpoint, ...] = ()
        self.dialled: set[int] = set()
        self.refused: dict[Endpoint, float] = {}
        self.calls: list[float] = []
        self.pings: list[float] = []
        self._asked_at = -1e9
        self._due = -1e9
        self._txid = 0
        self.clock = SimClock(self)
        self.start_discovery()
        self.move(segment, ips)

    def start_discovery(self) -> None:
        """A Discovery with a fresh key."""
        self.discovery = Discovery(
            DiscoPrivate.generate(self.world.dice.randbytes), self.key, clock=self.clock, call_later=self.call_later
        )
        self.wire_discovery()

    def be_stock(self) -> None:
        """From now on a node that behaves as tailscaled does."""
        self.discovery.close()
        self.discovery = Stock(self)  # type: ignore[assignment]
        self.wire_discovery()
        self.discovery.set_endpoints(self.endpoints)

    def wire_discovery(self) -> None:
        """Connect its callables."""
        self.discovery.send_udp = self.send_udp
        self.discovery.send_relay = self.send_relay
        self.discovery.set_path = self.set_path
        self.discovery.kick = self.kick
        self.discovery.restun = self.look_up
        self.discovery.restun_now = self.look_up
        self.discovery.notify = self.note_state
        self.discovery.roaming.judge_by(self.source_towards)

    def restart(self) -> None:
        """The process dies and starts again: another disco key, no sessions."""
        self.discovery.close()
        for tunnel in self.tunnels.values():
            tunnel.due.clear()
        self.tunnels.clear()
        self.routes.clear()
        self.heard.clear()
        self.dialled.clear()
        self.start_discovery()
        self.discovery.set_endpoints(self.endpoints)
        self.look_up()
        for other in self.world.nodes:
            if other is not self:
                self.discovery.on_netmap_peer(other.as_peer())
        self.world.announce(self)

    def as_peer(self) -> Node:
        """As the netmap of others shows it."""
        return Node(
            id=len(self.name), stable_id=self.name, name=self.name, user_id=1, key=self.key, machine=None,
            disco=self.discovery.public, addresses=(), allowed=(), endpoints=self.endpoints, home=self.home,
        )  # fmt: skip

    # time

    @property
    def now(self) -> float:
        """This machine's monotonic clock; never before the timer that fired last, whatever rounding says."""
        real = self.world.now if self.asleep_since is None else self.asleep_since
        return max(self._due, real - self.slept_s)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Handle:
        """A timer by this machine's clock."""
        due = self.now + delay_s

        def fire() -> None:
            if self.asleep_since is not None:
                self.world.on_wake.setdefault(self.name, []).append(handle)
                handle.call = fire
            elif self.now < due - 1e-9:
                handle.call = fire
                self.world.push(due - self.now, handle)
            else:
                self._due = max(self._due, due)
                call()

        handle = self.world.later(delay_s, fire)
        return handle

    def sleep(self, for_s: float) -> None:
        """Suspend the machine."""
        self.asleep_since = self.world.now
        self.world.later(for_s, self._wake)

    def _wake(self) -> None:
        assert self.asleep_since is not None
        self.slept_s += self.world.now - self.asleep_since
        self.asleep_since = None
        for handle in self.world.on_wake.pop(self.name, []):
            self.world.push(0.0, handle)

    @property
    def is_awake(self) -> bool:
        """Neither unplugged nor asleep."""
        return self.is_online and self.asleep_since is None

    # addresses

    def set_ips(self, ips: list[str]) -> None:
        """Other addresses on the same segment."""
        self.move(self.segment, ips)

    def move(self, segment: Internet | Lan, ips: list[str]) -> None:
        """Another place in the network, or other addresses there."""
        new = [ip_address(text) for text in ips]
        gone = [ip for ip in self.ips if ip not in new or segment is not self.segment]
        for ip in self.ips:
            self.segment.leave(self, ip)
        self.segment, self.ips = segment, new
        for ip in new:
            segment.join(self, ip)
        if gone:
            self.mapped.clear()
        self.update_endpoints(gone)
        self.look_up()

    def update_endpoints(self, gone: Collection[IP] = ()) -> None:
        """Local addresses and what STUN said."""
        local = [Endpoint(ip, self.port) for ip in self.ips]
        endpoints = tuple(dict.fromkeys([*local, *self.mapped.values()]))
        if gone or len(endpoints) > len(self.endpoints):
            self.discovery.roaming.on_network(endpoints, gone, set(self.ips))
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self.discovery.set_endpoints(endpoints)
            self.world.announce(self)

    def keep_finding(self) -> None:
        """Ask STUN servers now and every so often."""
        self.finds_endpoints = True
        self.look_up()
        self.call_later(self.world.dice.uniform(*STUN_EVERY_S), self.keep_finding)

    def look_up(self) -> None:
        """Ask both STUN servers of each family."""
        if not self.finds_endpoints or self.now - self._asked_at < STUN_GAP_S:
            return
        self._asked_at = self.now
        self._txid += 1
        for family, servers in ((4, STUN_V4), (6, STUN_V6)):
            if any(ip.version == family for ip in self.ips):
                for server in servers:
                    self.transmit(Endpoint(server, STUN_PORT), Stun(self._txid))

    def _take_stun(self, server: IP, answer: Stun) -> None:
        if answer.txid == self._txid and answer.seen is not None:
            self.mapped[server] = answer.seen
            self.update_endpoints()

    # out

    def send_udp(self, ip: IP, port: int, data: bytes) -> None:
        """Engine.send_raw."""
        self.pings.append(self.world.now)
        self.transmit(Endpoint(ip, port), data)

    def transmit(self, target: Endpoint, data: bytes | Wg | Stun) -> None:
        """A UDP packet."""
        source_ip = self.source_towards(target.ip)
        if source_ip is None or not self.is_awake:
            self._refuse(target)
            return
        source = Endpoint(source_ip, self.port)
        if self.world.is_traced:
            self.world.note(f"{self.name} → {target}: {self.worded(data)}")
        if self.firewall is not None:
            self.firewall.outbound(source, target, self.world.now)
        packet = Packet(self.name, source, target, data)
        if self.up.is_clear():
            self.segment.send(packet, 0.0)
            return
        for delay in self.up.carry(packet, self.world.now, self.world.dice):
            self.segment.send(packet, delay)

    def source_towards(self, target: IP) -> IP | None:
        """Our address that packets to there leave from."""
        return next((ip for ip in self.ips if ip.version == target.version), None)

    def _refuse(self, target: Endpoint) -> None:
        if self.now - self.refused.get(target, -1e9) >= ERROR_REPORT_S:
            self.refused[target] = self.now
            self.call_later(0.0, lambda: self.discovery.on_send_error(target, errno.ENETUNREACH))

    def send_relay(self, region: RegionId, peer: NodePublic, data: bytes) -> bool:
        """RelayPool.send."""
        self.calls.append(self.world.now)
        self.by_relay(region, peer, data)
        return True

    def by_relay(self, region: int, peer: NodePublic, data: bytes | Wg) -> None:
        """By a region."""
        if self.world.is_traced:
            self.world.note(f"{self.name} → relay {region}: {self.worded(data)}")
        self.world.regions[region].carry(self, peer, data)

    def dial(self, region: int) -> None:
        """Connected there from now on."""
        self.dialled.add(region)

    def is_connected(self, region: int) -> bool:
        """Whether that region knows us."""
        return self.is_on_relay and self.is_awake and (region == self.home or region in self.dialled)

    def rehome(self) -> None:
        """The home is lost: the first region that works."""
        up = [r for r in self.world.regions.values() if r.health.value == "up"]
        if up and self.world.regions[self.home] not in up:
            self.dialled.add(self.home)
            self.home = up[0].id
            self.world.announce(self)

    def worded(self, data: bytes | Wg | Stun) -> str:
        """A packet of ours, for the story."""
        if not isinstance(data, bytes):
            return str(data)
        for known in self.discovery._peers.values():
            box = self.discovery._keys.box(known.disco.raw) if known.disco is not None else None
            if box is not None and (message := box.open(data)) is not None:
                return str(message)
        return "DISCO"

    # in

    def arrive(self, packet: Packet) -> None:
        """A UDP packet for one of our addresses."""
        if packet.target.port != self.port or (packet.sender, self.name) in self.world.cuts:
            return
        if self.down.is_clear():
            self._take(packet)
            return
        for delay in self.down.carry(packet, self.world.now, self.world.dice):
            if delay:
                self.world.later(delay, lambda: self._take(packet))
            else:
                self._take(packet)

    def _take(self, packet: Packet) -> None:
        if not self.is_awake or packet.target.ip not in self.ips:
            return
        if self.firewall and not self.firewall.inbound(packet.source, packet.target, self.world.now):
            return
        if isinstance(packet.data, Stun):
            self._take_stun(packet.source.ip, packet.data)
        elif (sender := self.world.by_name.get(packet.sender)) is not None:
            self.receive(sender, packet.source, packet.data, 0)

    # questions

    def paths(self) -> list[tuple[NodePublic, PeerPath]]:
        """The machines of all peers that have one."""
        return [(known.key, path) for known, path in self.discovery._awake()]

    def path_if_any(self, peer: SimNode) -> PeerPath | None:
        """The machine of that peer, once something happened to it."""
        known = self.discovery._peers.get(peer.key)
        return known.path if known is not None else None

    def path(self, peer: SimNode) -> PeerPath:
        """The machine of that peer."""
        path = self.path_if_any(peer)
        assert path is not None
        return path

    def state(self, peer: SimNode) -> State:
        """Where the path to that peer stands."""
        status: Any = self.discovery.status(peer.key)
        assert status is not None
        return status.state
