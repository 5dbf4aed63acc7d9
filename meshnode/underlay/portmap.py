"""PortMapper: asks the gateway of this machine for a port outside, in the background, for as long as it runs.

Sockets, HTTP and the choice of the gateway around `core.portmap`. Speaks to the gateway's address alone,
whatever a device says about itself; every wait is bounded.
Source: docs/protocol/paths.md 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from meshnode.base.addr import Endpoint
from meshnode.base.bounds import UPNP_BODY_MAX
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.core.portmap import ALL, Mapper
from meshnode.core.portmap_values import Answer, Effect, Fetch, Gateway, Mapped, Presence, Protocol, Search, Send
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.underlay.gateway import default_gateway, is_in_container
from meshnode.wire import natpmp, ssdp
from meshnode.wire.http1 import ClientHttp

HTTP_S: Final = 1.0
"""One exchange with a UPnP gateway, connecting included."""
LOOK_S: Final = 60.0
"""Between looks at the default route when nobody says that it changed."""
GOODBYE_S: Final = 1.0
ANNOUNCED: Final = ("224.0.0.1", 5350)
"""Where gateways announce that they restarted."""
CHUNK: Final = 16 * 1024

_log = get_logger("portmap")


def protocols_of(setting: str, *, is_local: bool = False) -> frozenset[Protocol]:
    """What the setting `portmap` allows here: "auto", "on", "off", or one protocol's name.

    is_local: peers are on this machine, so that nothing outside need be asked.
    """
    if setting == "off" or (setting == "auto" and (is_local or is_in_container())):
        return frozenset()
    if setting in ("auto", "on"):
        return ALL
    return frozenset((Protocol[setting.upper()],))


class _Ear(asyncio.DatagramProtocol):
    """Hands datagrams and refusals on."""

    def __init__(self, on_datagram: Callable[[bytes, Any], None], on_refused: Callable[[], None]) -> None:
        self._on_datagram = on_datagram
        self._on_refused = on_refused

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._on_datagram(data, addr)

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self._on_refused()


class PortMapper:
    """One task's work: `run`. `on_endpoint`: our endpoint outside, None when lost; `on_presence`: what is spoken."""

    def __init__(
        self,
        allowed: frozenset[Protocol],
        *,
        clock: Clock,
        port: Callable[[], int],
        on_endpoint: Callable[[Endpoint | None], Any],
        on_presence: Callable[[Presence], Any],
    ) -> None:
        """port: the local UDP port of the moment."""
        self._allowed = allowed
        self._clock = clock
        self._port = port
        self._on_endpoint = on_endpoint
        self._on_presence = on_presence
        self._presence = Presence()
        self._mapper: Mapper | None = None
        self._gateway: Gateway | None = None
        self._mapped_port = 0
        self._wake = asyncio.Event()
        self._fetches: list[Fetch] = []
        self._links = 0
        """Link changes: an answer to a question from before one is no answer."""
        self._transports: list[asyncio.DatagramTransport] = []

    @property
    def state(self) -> str:
        """For people: the mapping, or why there is none."""
        if not self._allowed:
            return "off"
        mapper = self._mapper
        if mapper is None:
            return "no private IPv4 gateway"
        return f"{mapper.lease.external} by {mapper.lease.protocol}" if mapper.lease else mapper.reason

    def look(self) -> None:
        """Our address outside may have changed: look at the mapping soon."""
        self._on_hint()

    def on_link_change(self) -> None:
        """The machine is in another network, or may be: ask anew."""
        self._fetches.clear()
        self._links += 1
        if self._mapper is not None:
            self._perform(self._mapper.on_link_change(self._clock.now()))
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; then the mapping is given back."""
        if not self._allowed:
            return
        try:
            while True:
                await self._follow_route()
                await self._turn()
        finally:
            await self._leave(is_end=True)

    async def _turn(self) -> None:
        """One exchange, or one wait."""
        mapper = self._mapper
        if mapper is not None and self._fetches:
            links = self._links
            answer = await self._exchange(mapper.gateway, self._fetches.pop(0))
            if links == self._links:
                self._perform(mapper.on_answer(answer, self._clock.now()))
            return
        wait_s = LOOK_S if mapper is None else min(mapper.deadline - self._clock.now(), LOOK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(wait_s, 0.0)):
                await self._wake.wait()
        self._wake.clear()
        if mapper is not None:
            self._perform(mapper.on_due(self._clock.now()))

    async def _follow_route(self) -> None:
        """Another gateway, address or port of ours: give the old mapping back, start anew."""
        gateway, port = default_gateway(), self._port()
        if (gateway, port) == (self._gateway, self._mapped_port):
            return
        await self._leave()
        self._gateway, self._mapped_port = gateway, port
        if gateway is None or not port:
            return
        try:
            await self._open(gateway)
        except OSError as error:
            _log.debug("no port mapping", gateway=gateway.ip, error=str(error))
            self._close_sockets()
            self._gateway = None  # tried again at the next look
            return
        entropy, now = self._clock.entropy, self._clock.now()
        self._mapper = Mapper(gateway, port, now, entropy=entropy, allowed=self._allowed)

    async def _leave(self, *, is_end: bool = False) -> None:
        """Give the mapping back, as far as that goes within a second."""
        mapper, self._mapper, self._gateway = self._mapper, None, None
        if mapper is not None:
            was_mapped = mapper.lease is not None
            self._fetches.clear()
            self._perform(mapper.release())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    for fetch in self._fetches:
                        await self._exchange(mapper.gateway, fetch)
            self._fetches.clear()
            if was_mapped and not is_end:
                self._on_endpoint(None)
        self._close_sockets()

    # --- effects ---

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._transports[0].sendto(effect.data)
            elif isinstance(effect, Search):
                self._search()
            elif isinstance(effect, Fetch):
                self._fetches.append(effect)
            elif isinstance(effect, Mapped):
                self._tell(effect.external)
        mapper = self._mapper
        if mapper is not None and mapper.presence() != self._presence:
            self._presence = mapper.presence()
            self._on_presence(self._presence)

    def _tell(self, external: Endpoint | None) -> None:
        mapper = self._mapper
        if external is not None and mapper is not None and mapper.lease is not None:
            _log.info(
                "port mapped", endpoint=str(external), by=mapper.lease.protocol.value, port=mapper.lease.internal_port
            )
        elif mapper is not None:
            _log.info("port mapping lost", reason=mapper.reason)
        self._on_endpoint(external)

    def _search(self) -> None:
        """By unicast first, which opens firewalls for the answers; some gateways answer only one of the targets."""
        assert self._gateway is not None
        for host in (str(self._gateway.ip), ssdp.GROUP):
            for target in (ssdp.ALL, ssdp.GATEWAY):
                self._transports[1].sendto(ssdp.emit_search(target), (host, ssdp.PORT))

    # --- sockets ---

    async def _open(self, gateway: Gateway) -> None:
        loop = asyncio.get_running_loop()
        here = str(gateway.client)

        def ask() -> _Ear:
            return _Ear(self._on_datagram, self._on_refused)

        def search() -> _Ear:
            return _Ear(self._on_search_answer, _nothing)

        def hear() -> _Ear:
            return _Ear(self._on_announcement, _nothing)

        gate = (str(gateway.ip), natpmp.PORT)
        transport, _ = await loop.create_datagram_endpoint(ask, local_addr=(here, 0), remote_addr=gate)
        self._transports.append(transport)
        transport, _ = await loop.create_datagram_endpoint(search, sock=_multicast_sender(here))
        self._transports.append(transport)
        with contextlib.suppress(OSError):  # another program may have the port for itself
            transport, _ = await loop.create_datagram_endpoint(hear, sock=_announcement_socket(here))
            self._transports.append(transport)

    def _close_sockets(self) -> None:
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    def _on_datagram(self, data: bytes, _: Any) -> None:
        if self._mapper is not None:
            self._perform(self._mapper.on_datagram(data, self._clock.now()))
            self._wake.set()

    def _on_refused(self) -> None:
        if self._mapper is not None:
            self._perform(self._mapper.on_refused(self._clock.now()))
            self._wake.set()

    def _on_search_answer(self, data: bytes, source: Any) -> None:
        if self._mapper is None or source[0] != str(self._mapper.gateway.ip):
            return
        with contextlib.suppress(RemoteProtocolError):
            self._perform(self._mapper.on_found(ssdp.parse_answer(data), self._clock.now()))
            self._wake.set()

    def _on_announcement(self, _: bytes, source: Any) -> None:
        if self._mapper is not None and source[0] == str(self._mapper.gateway.ip):
            self._on_hint()

    def _on_hint(self) -> None:
        if self._mapper is not None:
            self._perform(self._mapper.on_hint(self._clock.now()))
        self._wake.set()

    # --- HTTP ---

    async def _exchange(self, gateway: Gateway, fetch: Fetch) -> Answer:
        """One request to the gateway, whatever host its URLs name; status 0 if nothing usable came."""
        http = ClientHttp(f"{gateway.ip}:{fetch.port}", body_limit=UPNP_BODY_MAX)
        headers = [("Connection", "close"), ("User-Agent", "meshnode UPnP/1.1")]
        if fetch.action:
            headers += [("Content-Type", 'text/xml; charset="utf-8"'), ("SOAPAction", fetch.action)]
        try:
            request = http.request("POST" if fetch.action else "GET", fetch.target, headers, fetch.body)
            async with asyncio.timeout(HTTP_S):
                return await _converse(http, gateway, fetch.port, request)
        except (OSError, TimeoutError, RemoteProtocolError, LocalProtocolError) as error:
            _log.debug("UPnP exchange failed", gateway=gateway.ip, port=fetch.port, error=str(error))
            return Answer(0)


async def _converse(http: ClientHttp, gateway: Gateway, port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection(str(gateway.ip), port, local_addr=(str(gateway.client), 0))
    try:
        writer.write(request)
        while True:
            data = await reader.read(CHUNK)
            response = http.receive(data)
            if response is not None:
                return Answer(response.status, response.body)
    finally:
        writer.close()


def _multicast_sender(here: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(here))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        sock.bind((here, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _announcement_socket(here: str) -> socket.socket:
    """Bound to the group itself: nothing but announcements arrives."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(ANNOUNCED)
        group = socket.inet_aton(ANNOUNCED[0]) + socket.inet_aton(here)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


def _nothing() -> None:
    """A search is refused by nobody who matters."""
