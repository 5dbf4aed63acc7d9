"""Reach: what keeps this node reachable: its own endpoints and its home, told to peers and to control as they change.

Sources put what they find into the book; peers hear of it at once, control as `core.net_endpoints` says. Reports of
the netcheck become endpoints, a home and NetInfo here. `links` says what the interfaces have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from meshnode.base.addr import IP, Endpoint
from meshnode.core.net_endpoints import Mapped, Told, forwarded_guess
from meshnode.core.net_info import NetInfo
from meshnode.core.net_schedule import Cause
from meshnode.core.network import Change
from meshnode.core.report import NetReport
from meshnode.netmap.model import RelayMap, RelayRegion
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.underlay.book import EndpointBook

if TYPE_CHECKING:
    from meshnode.node.house import House
    from meshnode.underlay.netcheck import Netcheck

TRAFFIC: Final = ("wg_rx_data", "wg_tx_data")
"""Counters of the engine that move when peers' packets do."""


class Reach:
    """Of one running House, which owns it."""

    netcheck: Netcheck

    def __init__(self, house: House) -> None:
        self._house = house
        self.book = EndpointBook()
        self.report = NetReport()
        """The last netcheck's result."""
        self.on_report: list[Callable[[NetReport], None]] = []
        """Who else is told of each report; called after home and endpoints are dealt with."""
        self._notes: dict[str, Any] = {}
        self._mapped = Mapped()
        self._told = Told()
        self._net_info = NetInfo()
        self._timer: asyncio.TimerHandle | None = None
        self._traffic = 0

    def start(self) -> None:
        """The rooms stand: make the netcheck, which `run` keeps."""
        from meshnode.underlay.netcheck import Netcheck

        house = self._house
        self.netcheck = Netcheck(
            clock=house.clock,
            relays=self._relays,
            home=lambda: house.home.region,
            ports=lambda: (house.engine.port4, house.engine.port6),
            send=house.engine.send_raw,
            measure_https=self._measure_https,
            look_for_portal=house.portal.look,
            has_traffic=self._has_traffic,
            on_begin=lambda: house.pool.ask(house.home.region),
            on_report=self._take_report,
        )
        self.on_report.append(house.portal.on_report)
        self.note(proxy=_proxy_of(house))
        house.engine.on_stun = self.netcheck.on_stun
        house.discovery.restun = lambda: self.netcheck.request(Cause.CALL)
        house.discovery.restun_now = lambda: self.netcheck.request(Cause.DOUBT)
        self.netcheck.request(Cause.START)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- endpoints ---

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Our own, best first."""
        return tuple(endpoint for endpoint, _ in self.book.entries())

    def put(self, kind: EndpointKind, endpoints: tuple[Endpoint, ...]) -> None:
        """A source has news: peers hear of it if the list changed, control if it matters."""
        if self.book.put(kind, endpoints):
            self._house.discovery.set_endpoints(self.endpoints)
            self._tell_control()

    def _put_mapped(self) -> None:
        """What STUN shows beyond our own addresses: without a NAT it shows those, and they are better named local."""
        self.put(EndpointKind.STUN, self._beyond(self.book.of(EndpointKind.LOCAL)))

    def _beyond(self, local: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        return tuple(e for e in self._mapped.current() if e not in local)

    def _tell_control(self) -> None:
        now = self._house.clock.now()
        self._told.offer(self.book.entries(), now, mapping_varies=bool(self.report.mapping_varies))
        news = self._told.take(now)
        if news is not None:
            self._house.control.update(endpoints=news)
        self.close()
        if self._told.due_at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._told.due_at - now), self._tell_control)

    # --- the network ---

    def note(self, **facts: Any) -> None:
        """What others found out for every report from now on: upnp, pmp, pcp, captive_portal, proxy."""
        self._notes |= facts
        self.report = replace(self.report, **self._notes)
        if self.report.at:
            self._tell_net_info()

    async def check(self) -> NetReport:
        """A report made now, of every region."""
        await self.netcheck.check()
        return self.report

    def on_map(self) -> None:
        """The relay map changed."""
        self.netcheck.request(Cause.START if not self.report.at else Cause.MAP)

    def on_first_peer(self) -> None:
        """There is somebody to be reached by."""
        self.netcheck.request(Cause.PEERS)

    def on_home_lost(self) -> None:
        """The connection to the home relay broke, and did not come back within a moment."""
        self.netcheck.request(Cause.RELAY)

    def on_home_back(self) -> None:
        """The home's connection stands again; if UDP was silent when last looked at, that may be over too."""
        if self.report.at and self.report.stun_sent and not self.report.udp:
            self.netcheck.request(Cause.RELAY)

    def on_new_sockets(self, local: tuple[Endpoint, ...]) -> None:
        """The UDP sockets are new, with what we have at the interfaces now; no NAT knows another port of ours."""
        had = {e.port for e in self.book.of(EndpointKind.LOCAL)}
        if had != {e.port for e in local}:
            self._house.discovery.forget_own(self._mapped.forget((4, 6)) - {e.ip for e in local})
        self.put(EndpointKind.LOCAL, local)
        self._put_mapped()
        self.netcheck.request(Cause.SOCKETS)

    def on_port_mapping(self, external: Endpoint | None) -> None:
        """A gateway gave us another endpoint, or (None) took it back."""
        self.put(EndpointKind.PORTMAPPED, (external,) if external is not None else ())
        self.netcheck.request(Cause.PORTMAP)

    def on_link_change(self) -> None:
        """Another network, or another way into it: what STUN and latencies said of the old one is in doubt."""
        self._mapped.note_link_change()
        self._net_info.note_link_change()
        self._house.home.on_link_change()
        self._house.portmap.on_link_change()
        self.netcheck.request(Cause.LINK)

    def on_network(self, local: tuple[Endpoint, ...], change: Change, usable: Collection[IP] | None) -> None:
        """The machine's network changed; what a NAT gave to a way out that is gone, is gone with it.

        local: what we have at the interfaces now. usable: every address of ours that works; None: not known.
        """
        portmapped = self.book.of(EndpointKind.PORTMAPPED)
        kept = tuple(e for e in portmapped if e.ip.version not in change.moved)
        gone = change.gone | self._mapped.forget(change.moved) | {e.ip for e in portmapped if e not in kept}
        self.book.put(EndpointKind.LOCAL, local)
        self.book.put(EndpointKind.PORTMAPPED, kept)
        self.book.put(EndpointKind.STUN, self._beyond(local))
        self._house.discovery.roaming.on_network(self.endpoints, gone, usable)
        self._tell_control()
        if not change.is_minor:
            self.on_link_change()

    # --- reports ---

    def _take_report(self, report: NetReport, began_at: float, cause: Cause) -> None:
        house = self._house
        choice = house.home.on_report(report, began_at, house.pool.heard_at(house.home.region))
        self.report = replace(report, home=choice.region or house.home.region, home_reason=choice.reason, **self._notes)
        if choice.again:
            self.netcheck.request(Cause.CONFIRM)
        gone = self._mapped.learn(self.report, report.at)
        if gone:
            house.discovery.forget_own(gone)
            house.portmap.look()
        self._put_mapped()
        house.pool.options.prefers_v6 = report.ipv6
        fixed = house.node.port if house.node.port == house.engine.port4 else 0
        self.put(EndpointKind.STUN_LOCAL_PORT, forwarded_guess(self.report, fixed))
        house.discovery.set_endpoints(self.endpoints)
        self._tell_net_info()
        for listener in self.on_report:
            listener(self.report)

    def _tell_net_info(self) -> None:
        portmapped = next(iter(self.book.of(EndpointKind.PORTMAPPED)), None)
        self._house.control.update(net_info=self._net_info.learn(self.report, portmapped))

    # --- what the netcheck asks ---

    def _relays(self) -> RelayMap:
        netmap = self._house.netmap.value
        return netmap.relays if netmap is not None else RelayMap()

    async def _measure_https(self, region: RelayRegion) -> float:
        from meshnode.relay.latency import measure_https

        return await measure_https(region, self._house.pool.options, self._house.clock.now)

    def _has_traffic(self) -> bool:
        stats = self._house.engine.stats()
        traffic = sum(stats[name] for name in TRAFFIC)
        moved, self._traffic = traffic != self._traffic, traffic
        return moved


def _proxy_of(house: House) -> str:
    """Host and port of the proxy that leads to the control server; '' if none does."""
    url = urlsplit(house.node.control_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    proxy = house.node.proxies.choose(url.scheme, url.hostname or "", port)
    return str(proxy) if proxy is not None else ""
