"""A packet engine in small: routes, tunnels, and what it tells Discovery about traffic.

It sends where `set_path` told it, drops what has no way, and reports sends and receipts at most every 100 ms
per path, as the engine in C does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.keys import NodePublic
from meshnode.core.path_values import Mode, What
from tests.sim.link import Stun, Wg
from tests.sim.tunnel import Tunnel

if TYPE_CHECKING:
    from meshnode.underlay.disco import Discovery
    from tests.sim.node import SimNode
    from tests.sim.world import World

REPORT_S: Final = 0.1
SMALL: Final = 128
HEARD_EVERY_S: Final = 1.0


@dataclass
class Route:
    """What the engine was told about one peer."""

    direct: Endpoint | None = None
    region: int = 0
    mode: Mode = Mode.NONE
    limit: int = 0
    others: tuple[Endpoint, ...] = ()
    direct_at: float = -1e9
    reported_at: float = -1e9
    was_wanted: bool = False


@dataclass
class Got:
    """What arrived of one sender's numbered packets."""

    at: dict[int, float] = field(default_factory=dict)
    by_relay: int = 0
    by_udp: int = 0


class SimEngine:
    """The part of a node that moves packets. The node provides time, addresses and links."""

    world: World
    key: NodePublic
    discovery: Discovery

    def __init__(self) -> None:
        self.tunnels: dict[NodePublic, Tunnel] = {}
        self.routes: dict[NodePublic, Route] = {}
        self.got: dict[NodePublic, Got] = {}
        self.sent: dict[NodePublic, dict[int, float]] = {}
        self.heard: dict[tuple[NodePublic, Endpoint | None, int], float] = {}
        self.kicks = 0
        self.data_relayed = 0
        """Data packets of which the relay got a copy, or the only one."""
        self.states: list[tuple[float, str, str, str]] = []
        self.serial = 0
        self.is_touched = True

    @property
    def now(self) -> float:
        """This machine's clock."""
        raise NotImplementedError

    @property
    def is_awake(self) -> bool:
        """Neither unplugged nor asleep."""
        raise NotImplementedError

    def transmit(self, target: Endpoint, data: bytes | Wg | Stun) -> None:
        """A UDP packet."""
        raise NotImplementedError

    def by_relay(self, region: int, peer: NodePublic, data: bytes | Wg) -> None:
        """A packet by a region."""
        raise NotImplementedError

    def set_path(
        self,
        peer: NodePublic,
        direct: Endpoint | None,
        region: int,
        mode: int,
        limit: int = 0,
        others: tuple[Endpoint, ...] = (),
    ) -> None:
        """Engine.set_path."""
        self.is_touched = True
        route = self.routes.setdefault(peer, Route())
        route.direct, route.region, route.mode = direct, region, Mode(mode)
        route.limit, route.others = limit, others

    def kick(self, peer: NodePublic) -> None:
        """Engine.kick."""
        self.kicks += 1
        self.tunnel(self.world.by_key[peer]).initiate()

    def note_state(self, peer: NodePublic, old: str, new: str, why: str) -> None:
        """A transition."""
        self.is_touched = True
        self.states.append((self.world.now, old, new, why))

    def tunnel(self, peer: SimNode) -> Tunnel:
        """Our end of the tunnel to that peer."""
        tunnel = self.tunnels.get(peer.key)
        if tunnel is None:
            tunnel = self.tunnels[peer.key] = Tunnel(self, peer)
        return tunnel

    def send(self, to: SimNode, size: int = SMALL) -> int:
        """One numbered data packet."""
        if not self.is_awake:
            return 0
        self.serial += 1
        self.sent.setdefault(to.key, {})[self.serial] = self.world.now
        return self.tunnel(to).send(self.serial, size)

    def send_by_plan(self, to: SimNode, packet: Wg) -> int:
        """By every path in use; how many that were."""
        route = self.routes.setdefault(to.key, Route())
        sent = 0
        is_too_long = bool(route.limit and route.region) and packet.size > route.limit
        if route.mode.is_direct and route.direct is not None and not is_too_long:
            for endpoint in (route.direct, *route.others):
                self.transmit(endpoint, packet)
                sent += 1
            route.direct_at = self.now
        if (route.mode.is_relay or is_too_long) and route.region:
            self.by_relay(route.region, to.key, packet)
            self.data_relayed += packet.kind == "data"
            sent += 1
        if is_too_long and route.direct is not None and self.now - route.direct_at >= HEARD_EVERY_S:
            route.direct_at = self.now
            self.serial += 1
            self.transmit(route.direct, Wg("keepalive", packet.session, self.serial, SMALL))
        if packet.kind == "data":
            self._report_send(to, route, is_wanted=not sent)
            self.world.watch.on_send(self, to, route, packet)
        return sent

    def _report_send(self, to: SimNode, route: Route, *, is_wanted: bool) -> None:
        if self.now - route.reported_at >= REPORT_S or is_wanted != route.was_wanted:
            route.reported_at, route.was_wanted = self.now, is_wanted
            self.discovery.on_send(to.key, is_wanted)

    def send_initiation(self, to: SimNode, packet: Wg, attempt: int) -> None:
        """Never doubled: even attempts by relay, odd ones directly, if there are both."""
        route = self.routes.setdefault(to.key, Route())
        direct = route.direct if route.mode.is_direct else None
        region = route.region if route.mode.is_relay else 0
        if direct is not None and (not region or attempt % 2 == 1):
            self.transmit(direct, packet)
        elif region:
            self.by_relay(region, to.key, packet)
        else:
            self._report_send(to, route, is_wanted=True)

    def send_answer(self, to: SimNode, packet: Wg, source: Endpoint | None, region: int) -> None:
        """Where the question came from."""
        if source is not None:
            self.transmit(source, packet)
        else:
            self.by_relay(region, to.key, packet)

    def receive(self, sender: SimNode, source: Endpoint | None, data: bytes | Wg, region: int) -> None:
        """From the wire, or (source None) from a relay."""
        if isinstance(data, bytes):
            if source is None:
                self.discovery.on_relay_disco(RegionId(region), sender.key, data)
            else:
                self.discovery.on_disco(source.ip, source.port, data)
            return
        what = self.tunnel(sender).receive(data, source, region)
        if what is None:
            return
        if what is What.DATA:
            got = self.got.setdefault(sender.key, Got())
            got.at[data.number] = self.world.now
            got.by_relay += source is None
            got.by_udp += source is not None
        heard = (sender.key, source, int(what))
        if self.now - self.heard.get(heard, -1e9) >= REPORT_S:
            self.heard[heard] = self.now
            self.discovery.on_recv(sender.key, source, region, what)
