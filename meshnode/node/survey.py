"""Survey: a netcheck without a node, from sockets of its own, as before anything is joined.

The same checks and the same view as a running node's. Nothing is logged in to, so that the home is the one a node
would take, and the gateway is not asked for a port, so that what it speaks is not known.
Source: docs/protocol/paths.md 4.1, 4.2.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from meshnode.base.addr import IP, RegionId, parse_ip
from meshnode.core.captive import relay_targets, sum_up
from meshnode.core.home_choice import HomeChoice
from meshnode.core.proxies import Proxies
from meshnode.core.report import NetReport, nat_of
from meshnode.netmap.model import RelayMap, RelayRegion
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.node.netview import NetView
from meshnode.relay.latency import measure_https
from meshnode.relay.options import DialOptions
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope
from meshnode.underlay.captive import ask_all
from meshnode.underlay.endpoints import local_endpoints
from meshnode.underlay.gateway import is_in_container
from meshnode.underlay.interfaces import read_network
from meshnode.underlay.netcheck import Netcheck

ANYWHERE: Final = {4: "0.0.0.0", 6: "::"}
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class _Ear(asyncio.DatagramProtocol):
    """What comes to one of the sockets."""

    netcheck: Netcheck

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """asyncio's callback."""
        with suppress(ValueError):
            self.netcheck.on_stun(parse_ip(str(addr[0]).partition("%")[0]), addr[1], data)


class Survey:
    """One look at the network of these relays. `look` is its work."""

    def __init__(self, relays: RelayMap, *, ca_file: str = "", proxies: Proxies | None = None) -> None:
        """proxies: None goes by the environment."""
        self._relays = relays
        self._proxies = proxies if proxies is not None else Proxies("", os.environ)
        self._options = DialOptions(ca_file=ca_file, proxies=self._proxies)
        self._clock = Clock()
        self._ear = _Ear()
        self._transports: dict[int, asyncio.DatagramTransport] = {}
        self._ports = (0, 0)
        """Of the IPv4 and the IPv6 socket."""
        self._choice = HomeChoice()
        self._choice.set_map(relays)

    async def look(self) -> NetView:
        """Ask every region; takes five seconds at most."""
        try:
            self._ports = await self._open(4), await self._open(6)
            report = await self._check()
        finally:
            for transport in self._transports.values():
                transport.close()
        return self._view(report)

    async def _open(self, family: int) -> int:
        """The port of a new socket; 0 if the system does not have the family."""
        loop, address = asyncio.get_running_loop(), (ANYWHERE[family], 0)
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: self._ear, local_addr=address, family=FAMILIES[family]
            )
        except OSError:
            return 0
        self._transports[family] = transport
        port: int = transport.get_extra_info("sockname")[1]
        return port

    async def _check(self) -> NetReport:
        netcheck = self._ear.netcheck = Netcheck(
            clock=self._clock,
            relays=lambda: self._relays,
            home=lambda: RegionId(0),
            ports=lambda: self._ports,
            send=self._send,
            measure_https=self._measure_https,
            look_for_portal=self._look_for_portal,
            has_traffic=lambda: False,
            on_begin=lambda: None,
            on_report=lambda *_: None,
        )
        began_at = self._clock.now()
        async with Scope("survey") as scope:
            scope.spawn(netcheck.run(), "netcheck")
            report = await netcheck.check()
        home = self._choice.on_report(report, began_at, self._clock.now())
        return replace(report, home=home.region, home_reason=home.reason, proxy=self._proxy())

    def _send(self, ip: IP, port: int, data: bytes) -> None:
        if (transport := self._transports.get(ip.version)) is not None:
            transport.sendto(data, (str(ip), port))

    async def _measure_https(self, region: RelayRegion) -> float:
        return await measure_https(region, self._options, self._clock.now)

    async def _look_for_portal(self) -> bool | None:
        """Where a person sits before a browser, and no proxy stands in the way."""
        targets = [] if is_in_container() or self._proxy() else relay_targets(self._relays, ())
        return sum_up(await ask_all(targets))[0] if targets else None

    def _proxy(self) -> str:
        """Host and port of the proxy that leads to the first relay; '' if none does."""
        nodes = (node for region in self._relays.regions.values() for node in region.nodes)
        first = next((node for node in nodes if not node.stun_only), None)
        found = self._proxies.choose("https", first.host, first.port) if first is not None else None
        return str(found) if found is not None else ""

    def _view(self, report: NetReport) -> NetView:
        network = read_network()
        shown = local_endpoints(network, *self._ports)
        nat, why = nat_of(report, local_endpoints(network, *self._ports, loopback_ok=True))
        return NetView(
            report=report,
            made_at=self._clock.wall() - (self._clock.now() - report.at),
            nat=nat,
            nat_reason=why,
            home=report.home,
            is_home_connected=False,
            is_home_by_websocket=False,
            home_reason=report.home_reason,
            relays=self._relays,
            endpoints=tuple((endpoint, EndpointKind.LOCAL) for endpoint in shown),
        )
