"""Site: a LAN behind a router of a given kind, and everything that can happen to it.

Owns the router's namespace and the hosts of its LAN. `Site(lab, name, nat)` stands on the lab's bridge, `behind=`
another site makes a double NAT. LANs are 192.168.N.0/24, or 2001:db8:N::/64 with `families`; the rest of the lab has
no way into a private LAN, but is routed to IPv6. Addresses of both families are the site's to give: roaming is
`plug(host)` at another site.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field

from interop.lab import Host, Lab
from tests.bench.link import Link
from tests.lab import rules
from tests.lab.rules import Nat

V6_FIREWALL = "\n".join(
    [
        "table ip6 f6 {",
        "chain through {",
        "type filter hook forward priority 0",
        "ct state established,related accept",
        'iifname "br-lan" accept',
        "meta l4proto ipv6-icmp accept",
        "drop",
        "}",
        "}",
    ]
)
"""What a home router does with IPv6: as port-restricted, without translation."""


@dataclass(frozen=True)
class Families:
    """Which addresses the hosts of a LAN have."""

    v4: bool = True
    v6: bool = False


@dataclass
class Site:
    """A router and its LAN; `build()` once, `remove()` when done."""

    lab: Lab
    name: str
    nat: Nat
    behind: Site | None = None
    hairpin: bool = False
    families: Families = Families()
    impaired: bool = False
    """Its line is an impairment box, `link`, side a being the router's."""
    udp_timeout_s: int | None = None
    router: Host = field(init=False)
    hosts: list[Host] = field(default_factory=list)
    link: Link | None = None
    _rebindings: int = 0

    def build(self) -> Site:
        self.router = self.lab.bare(f"{self.name}-r")
        self._connect()
        number = self.router.number
        self.router.bridge("br-lan")
        if self.families.v4:
            self.router.ip("address", "add", f"192.168.{number}.1/24", "dev", "br-lan")
        if self.families.v6:
            self.router.ip("address", "add", f"{self.v6_of(1)}/64", "dev", "br-lan", "nodad")
        self.router.ip("link", "set", "br-lan", "up")
        forwarding = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.router.sysctl(*forwarding)
        self.router.nft(rules.router(self.nat, self.wan, self.lan, self.v4_of(2), hairpin=self.hairpin))
        if self.families.v6:
            self.router.nft(V6_FIREWALL)
        if self.udp_timeout_s is not None:
            self.forget_after(self.udp_timeout_s)
        return self

    def remove(self) -> None:
        """Take the router and what is behind it away; the box goes first, for its devices are in here."""
        if self.link is not None:
            self.link.close()
        hosts = [host for host in self.hosts if self.lab.hosts.get(host.name) is host]
        if self.families.v6:
            self.lab.hub.ip("-6", "route", "delete", f"{self.v6_of(0)}/64")
        self.lab.remove(*hosts, self.router)

    # ---- addresses ------------------------------------------------------------------------------

    @property
    def wan(self) -> str:
        """The router's outer IPv4 address."""
        return self.router.v4

    @property
    def lan(self) -> str:
        return f"192.168.{self.router.number}.0/24"

    def v4_of(self, number: int) -> str:
        return f"192.168.{self.router.number}.{number}"

    def v6_of(self, number: int) -> str:
        return f"2001:db8:{self.router.number:x}::{number or '':x}" if number else f"2001:db8:{self.router.number:x}::"

    # ---- building -------------------------------------------------------------------------------

    def _connect(self) -> None:
        """The router's device `wan`, its address and its way out."""
        number = self.router.number
        if self.behind is not None:
            self.router.v4 = self.behind.v4_of(100 + len(self.behind.hosts))
            self.behind.hosts.append(self.router)
            self.lab.wire(self.router, "wan", self.behind.router, "br-lan")
            self.router.ip("address", "add", f"{self.router.v4}/24", "dev", "wan")
            self.router.ip("route", "add", "default", "via", self.behind.v4_of(1))
        elif self.impaired:
            self._connect_by_box(number)
        else:
            self.router.v4, self.router.v6 = self.lab.addresses_of(number)
            self.lab.wire(self.router, "wan", self.lab.hub, "br0")
            self.router.ip("address", "add", f"{self.router.v4}/24", "dev", "wan")
            self.router.ip("address", "add", f"{self.router.v6}/64", "dev", "wan", "nodad")
            self.router.ip("route", "add", "default", "via", self.lab.hub.v4)
            self.router.ip("-6", "route", "add", "default", "via", self.lab.hub.v6)
            if self.families.v6:
                self.lab.hub.ip("-6", "route", "add", f"{self.v6_of(0)}/64", "via", self.router.v6)

    def _connect_by_box(self, number: int) -> None:
        self.router.v4 = f"10.79.{number}.2"
        spaces = (self.router.namespace, self.lab.hub.namespace)
        ends = (self.router.v4, f"10.79.{number}.1")
        self.link = Link(spaces, devices=("wan", f"box{number}"), addresses=ends)
        self.link.__enter__()
        self.router.ip("route", "add", "default", "via", ends[1])

    def host(self, name: str) -> Host:
        """Add a host to the LAN: address .2 for the first, and so on."""
        host = self.lab.bare(name)
        self.plug(host)
        return host

    # ---- cables ---------------------------------------------------------------------------------

    def plug(self, host: Host) -> None:
        """Give the host a device `eth0` in this LAN, and its addresses there."""
        if host not in self.hosts:
            self.hosts.append(host)
        number = 2 + self.hosts.index(host)
        self.lab.wire(host, "eth0", self.router, "br-lan")
        self._address(host, number)

    def unplug(self, host: Host) -> None:
        """The device goes, with addresses and routes; the host keeps its place in the LAN."""
        host.ip("link", "delete", "eth0")

    def _address(self, host: Host, number: int) -> None:
        host.v4 = host.v6 = ""
        if self.families.v4:
            host.v4 = self.v4_of(number)
            host.ip("address", "add", f"{host.v4}/24", "dev", "eth0")
            host.ip("route", "add", "default", "via", self.v4_of(1))
        if self.families.v6:
            host.v6 = self.v6_of(number)
            host.ip("address", "add", f"{host.v6}/64", "dev", "eth0", "nodad")
            host.ip("-6", "route", "add", "default", "via", self.v6_of(1))

    # ---- faults ---------------------------------------------------------------------------------

    def cut_udp(self, way: str = rules.BOTH) -> None:
        """UDP through this router stops; `way` is rules.IN or rules.OUT for one way only."""
        self.router.nft(rules.cut_udp(way))

    def heal_udp(self) -> None:
        self.router.nft(rules.drop_table("cut"))

    def scrub(self, kinds: str = rules.WIREGUARD_DATA, way: str = rules.BOTH) -> None:
        """WireGuard no longer passes, everything else does; `way` as of `cut_udp`."""
        self.router.nft(rules.scrub_wireguard(kinds, way))

    def hole(self, limit: int) -> None:
        """No larger IPv4 packet of UDP passes; nobody may put packets together on the way here, from either side."""
        outer = self.behind.router if self.behind is not None else self.lab.hub
        for host, device in [(host, "eth0") for host in self.hosts] + [
            (self.router, "wan"),
            (outer, self._far_end(outer)),
        ]:
            host.ip("link", "set", device, "gso_max_segs", "1", "gso_max_size", "1500")
        self.router.nft(rules.hole(limit))

    def _far_end(self, outer: Host) -> str:
        """The device at the other end of the router's line."""
        number = json.loads(self.router.run("ip", "-j", "link", "show", "wan").stdout)[0]["link_index"]
        links = json.loads(outer.run("ip", "-j", "link").stdout)
        return next(str(link["ifname"]) for link in links if link["ifindex"] == number)

    def forget_after(self, seconds: int) -> None:
        """Mappings of UDP time out after this."""
        name = "net.netfilter.nf_conntrack_udp_timeout"
        self.router.sysctl(f"{name}={seconds}", f"{name}_stream={seconds}")

    def rebind(self) -> None:
        """Every mapping of UDP is forgotten, and those to come have other ports."""
        if self._rebindings:
            self.router.nft(rules.drop_table("remap", "ip"))
        self._rebindings += 1
        self.router.nft(rules.remap_udp(self.wan, self._rebindings))
        forget_flows(self.router)


def forget_flows(router: Host) -> None:
    """Empty the connection tracking of a namespace, as a reboot does."""
    delete, request_ack = 1 << 8 | 2, 1 | 4  # IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK
    header = struct.pack("=IHHII", 20, delete, request_ack, 1, 0)
    with router.inside(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netfilter:
        netfilter.settimeout(5.0)
        netfilter.send(header + struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
        answer = netfilter.recv(4096)
    error = struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise OSError(-error, "conntrack is not emptied")
