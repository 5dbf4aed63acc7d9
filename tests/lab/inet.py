"""The internet of the NAT lab: Headscale and two relays, everything on port 443, reachable over both families.

Two relays in two regions, because one STUN server cannot tell whether a NAT maps by destination. Nodes are made
fresh, behind any site; `forget` takes them out of the tailnet again.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from interop.certs import Authority
from interop.lab import Host, Lab, LabError, until
from interop.peers.derper import Derper
from interop.peers.headscale import Headscale
from interop.peers.meshnode import SOCKS5 as OUR_DOOR
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import SOCKS5 as STOCK_DOOR
from interop.peers.tailscaled import Tailscaled
from interop.process import Process
from tests.lab import status

PUBLIC = "198.51.100."
"""Outside of every LAN: addresses that nodes take for public ones (TEST-NET-2, RFC 5737)."""
PORT = 443
CONTROL = "control.lab"
"""The control server by name: a node that changes families still finds it."""
REGIONS = (901, 902)
FLOW_PORT = 7000
READY_S = 30.0

Make = Literal["ours", "stock"]
PAIRS: dict[str, tuple[Make, Make]] = {
    "ours": ("ours", "ours"),
    "stock": ("stock", "stock"),
    "mixed": ("ours", "stock"),
    "mixed-back": ("stock", "ours"),
}


@dataclass
class Node:
    """A node of either make behind some site, with a flow server beside it."""

    make: Make
    host: Host
    name: str
    program: Meshnode | Tailscaled
    server: Process

    @property
    def door(self) -> str:
        """Its SOCKS5 listener."""
        return OUR_DOOR if self.make == "ours" else STOCK_DOOR

    @property
    def process(self) -> Process:
        assert self.program.process is not None
        return self.program.process

    def status(self) -> dict[str, Any]:
        """`status --json`, read from its socket: running the command would cost more than what is measured."""
        return status.read(self.program)

    def peer(self, other: Node) -> dict[str, Any] | None:
        return status.peer(self.status(), other.name)

    def has_found(self, address: str) -> bool:
        """Whether this is among its own endpoints."""
        return any(address in text for text in self.status()["Self"]["Addrs"] or [""])

    def address(self, *, v6: bool = False) -> str:
        """In the tailnet."""
        return next(str(a) for a in self.status()["TailscaleIPs"] if (":" in a) == v6)


@dataclass
class Inet:
    """Use `start_inet`."""

    lab: Lab
    headscale: Headscale
    relays: list[Derper]
    _names: itertools.count[int] = field(default_factory=itertools.count)

    def node(self, make: Make, host: Host) -> Node:
        """Start and join a node on this host; returns when it is up."""
        name = f"{host.name}n{next(self._names)}"
        host.use_names({CONTROL: (self.lab.hub.v4, self.lab.hub.v6)})
        url, key = f"http://{CONTROL}:{PORT}", self.headscale.key()
        argv = [sys.executable, "-m", "tests.lab.flow", "serve", str(FLOW_PORT)]
        server = host.start(f"flow-{name}", argv, PYTHONPATH=status.SEARCH)
        server.wait_until(lambda: "listening" in server.out(), READY_S, "the flow server listens")
        if make == "stock":
            program: Meshnode | Tailscaled = Tailscaled(host, name).start().up(url, key)
        else:
            serve = [f"tcp:{FLOW_PORT}=127.0.0.1:{FLOW_PORT}"]
            program = Meshnode(host, name, url, key=key, serve=serve).start()
        return Node(make, host, name, program, server)

    def settle(self, one: Node, other: Node, outside: dict[str, str], timeout_s: float = 10.0) -> bool:
        """Until both know each other's relay, and found the address `outside` has by name; False if not."""
        for asking, asked in ((one, other), (other, one)):
            until(partial(_is_known, asking, asked), READY_S, f"{asking.name} learns of {asked.name}")
        try:
            for node in (one, other):
                want = outside.get(node.name, "")
                until(partial(node.has_found, want), timeout_s, "an outer address", interval_s=0.1)
        except LabError:
            return False
        return True

    def forget(self, *nodes: Node) -> None:
        """Kill nodes and take them out of the tailnet."""
        for node in nodes:
            node.process.kill()
            node.server.kill()
            self.headscale.delete_node(node.name)


def _is_known(asking: Node, asked: Node) -> bool:
    peer = asking.peer(asked)
    return bool(peer and peer["Relay"])


def start_inet(lab: Lab) -> Inet:
    """Relays first, then control."""
    authority = Authority.create(lab.folder / "ca")
    lab.environment["SSL_CERT_FILE"] = str(authority.ca)
    relays = []
    for number, region in enumerate(REGIONS, 1):
        host = lab.host(f"relay{number}")
        relays.append(Derper(host, authority, region=region, port=PORT, dual=True).start())
    regions = {region: relay.relay_map["regions"][region] for region, relay in zip(REGIONS, relays, strict=True)}
    headscale = Headscale(lab.hub, relay_map={"regions": regions}, port=PORT).start()
    headscale.user()
    return Inet(lab, headscale, relays)
