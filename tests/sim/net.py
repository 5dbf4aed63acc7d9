"""Where packets travel: the internet, LANs behind routers, and STUN servers.

A router owns an outer address, a NAT box for IPv4 and a stateful firewall for IPv6; its outer side may be
another router's LAN, which makes a double NAT. A packet is translated outwards when it is sent and inwards
when it arrives.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from meshnode.base.addr import IP, Endpoint
from tests.sim.link import Packet, Stun
from tests.sim.nat import Firewall, Nat, NatKind

if TYPE_CHECKING:
    from tests.sim.world import World

LAN_DELAY_S: Final = 0.0005
STUN_PORT: Final = 3478
STUN_V4: Final = (ip_address("198.18.0.1"), ip_address("198.18.0.2"))
STUN_V6: Final = (ip_address("2001:db8:53::1"), ip_address("2001:db8:53::2"))


class Host(Protocol):
    """Whoever owns an address."""

    def arrive(self, packet: Packet) -> None:
        """A packet for that address is here."""


class Internet:
    """The segment that everybody reaches."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owners: dict[IP, Host] = {}

    def join(self, host: Host, ip: IP) -> None:
        """That address is that host's."""
        self.owners[ip] = host

    def leave(self, host: Host, ip: IP) -> None:
        """It is no longer."""
        if self.owners.get(ip) is host:
            del self.owners[ip]

    def send(self, packet: Packet, delay_s: float) -> None:
        """Carry a packet to the owner of its target, if there is one when it arrives."""
        target = packet.target.ip
        if target not in self.owners:
            return

        def arrive() -> None:
            owner = self.owners.get(target)
            if owner is not None:
                owner.arrive(packet)

        self.world.later(delay_s + self.world.delay_s * self.world.dice.uniform(0.95, 1.05), arrive)


class Router:
    """A NAT box for IPv4, a stateful firewall for IPv6, and the LAN behind them."""

    def __init__(self, world: World, name: str, outer: Internet | Lan, wan: str, kind: NatKind) -> None:
        self.world = world
        self.name = name
        self.outer = outer
        self.wan: IP = ip_address(wan)
        self.nat = Nat(kind, world.dice)
        self.firewall = Firewall()
        self.blocks_udp = False
        self.lan = Lan(world, self)
        outer.join(self, self.wan)

    def outbound(self, packet: Packet) -> Packet | None:
        """The packet as it leaves on the outer side."""
        if self.blocks_udp:
            return None
        now = self.world.now
        if packet.source.ip.version == 6:
            self.firewall.outbound(packet.source, packet.target, now)
            return packet
        port = self.nat.outbound(packet.source, packet.target, now)
        return Packet(packet.sender, Endpoint(self.wan, port), packet.target, packet.data)

    def arrive(self, packet: Packet) -> None:
        """From the outer side."""
        inner = self._inbound(packet)
        if inner is not None:
            self.lan.deliver(inner)

    def hairpin(self, packet: Packet) -> None:
        """From the inside to our own outer address."""
        outside = self.outbound(packet) if self.nat.kind.hairpin else None
        if outside is not None:
            self.arrive(outside)

    def move(self, wan: str) -> None:
        """Another outer address; whoever was known is forgotten."""
        self.outer.leave(self, self.wan)
        self.wan = ip_address(wan)
        self.outer.join(self, self.wan)
        self.nat.forget()

    def _inbound(self, packet: Packet) -> Packet | None:
        if self.blocks_udp:
            return None
        now = self.world.now
        if packet.target.ip.version == 6:
            return packet if self.firewall.inbound(packet.source, packet.target, now) else None
        inner = self.nat.inbound(packet.source, packet.target.port, now)
        return Packet(packet.sender, packet.source, inner, packet.data) if inner is not None else None


class Lan:
    """The segment behind a router."""

    def __init__(self, world: World, router: Router) -> None:
        self.world = world
        self.router = router
        self.hosts: dict[IP, Host] = {}

    def join(self, host: Host, ip: IP) -> None:
        """A host of this LAN; its IPv6 address is known to the world, behind the router's firewall."""
        self.hosts[ip] = host
        if ip.version == 6:
            self.router.outer.join(self.router, ip)
        elif not isinstance(host, Router) or self.router.nat.exposed is None:
            self.router.nat.exposed = ip

    def leave(self, host: Host, ip: IP) -> None:
        """Gone."""
        if self.hosts.get(ip) is host:
            del self.hosts[ip]
            if ip.version == 6:
                self.router.outer.leave(self.router, ip)

    def send(self, packet: Packet, delay_s: float) -> None:
        """To a neighbour, back through the router, or out."""
        if packet.target.ip in self.hosts:
            self.world.later(delay_s + LAN_DELAY_S, lambda: self.deliver(packet))
        elif packet.target.ip == self.router.wan:
            self.world.later(delay_s + LAN_DELAY_S, lambda: self.router.hairpin(packet))
        else:
            outside = self.router.outbound(packet)
            if outside is not None:
                self.router.outer.send(outside, delay_s)

    def deliver(self, packet: Packet) -> None:
        """To the host that has the address."""
        host = self.hosts.get(packet.target.ip)
        if host is not None:
            host.arrive(packet)


class StunServer:
    """Answers where a question came from."""

    def __init__(self, world: World, ip: IP) -> None:
        self.world = world
        self.ip = ip
        world.internet.join(self, ip)

    def arrive(self, packet: Packet) -> None:
        """A question."""
        if isinstance(packet.data, Stun) and packet.target.port == STUN_PORT:
            answer = Stun(packet.data.txid, packet.source)
            self.world.internet.send(Packet("stun", packet.target, packet.source, answer), 0.0)
