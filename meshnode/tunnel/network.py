"""What a program does inside one network, a tailnet or a plain WireGuard one: connect, listen, datagrams.

`Network` is the base of both; a subclass says which engine and dialer are its own (`_inside`), what names mean
(`resolve`) and which addresses are ours. Whatever was opened here closes with the network.
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.base.addr import IP, Endpoint, parse_ip

if TYPE_CHECKING:
    from meshnode.engine.engine import Engine
    from meshnode.engine.flow import TunnelSocket
    from meshnode.engine.listener import Listener
    from meshnode.tunnel.datagram import AnyDatagramProtocol, DatagramEndpoint, DatagramTransport
    from meshnode.tunnel.dialer import Dialer
    from meshnode.tunnel.listener import Callback, Server
    from meshnode.tunnel.streams import TunnelWriter

CONNECT_TIMEOUT_S: Final = 10.0
PING_TIMEOUT_S: Final = 5.0
PING_BYTES: Final = 56
BACKLOG: Final = 1024


class Inside(NamedTuple):
    """The parts of a running network that connections are made with."""

    engine: Engine
    dialer: Dialer


class Network(ABC):
    """Connections and datagrams of one network."""

    mtu: int
    group: Any = None
    """The node.group.Group it is part of, if it is: where targets in other networks are found."""

    def __init__(self) -> None:
        self._doors: list[Server | Listener] = []
        self._endpoints: weakref.WeakSet[DatagramEndpoint] = weakref.WeakSet()
        """The engine holds those that are open."""

    @abstractmethod
    def _inside(self) -> Inside:
        """The running parts; raises what stands in the way."""

    @property
    @abstractmethod
    def addresses(self) -> tuple[IP, ...]:
        """Our addresses in this network."""

    @abstractmethod
    def resolve(self, host: str) -> tuple[IP, ...]:
        """Addresses of a name of this network, or of an address in text. NameNotFound."""

    # --- connections ---

    async def connect(self, host: str | IP, port: int, *, timeout: float | None = CONNECT_TIMEOUT_S) -> TunnelSocket:
        """A connected TunnelSocket to a name or address of this network. DialError says why not."""
        return await self._inside().dialer.dial(host, port, timeout=timeout)

    async def open_connection(
        self,
        host: str | IP,
        port: int,
        *,
        ssl: ssl_module.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | None = CONNECT_TIMEOUT_S,
        limit: int = 65536,
    ) -> tuple[asyncio.StreamReader, TunnelWriter]:
        """As asyncio.open_connection, inside the network."""
        from meshnode.tunnel.streams import open_streams

        sock = await self.connect(host, port, timeout=timeout)
        return await open_streams(sock, ssl=ssl, server_hostname=server_hostname or str(host), limit=limit)

    async def listen(self, port: int, *, host: str | IP | None = None, backlog: int = BACKLOG) -> Listener:
        """An async iterator of accepted TunnelSockets on our addresses (or `host`, one of them). Close it."""
        address = parse_ip(host) if isinstance(host, str) else host
        listener = await self._inside().engine.listen(address, port, backlog)
        self._doors.append(listener)
        return listener

    async def start_server(
        self,
        callback: Callback,
        port: int,
        *,
        host: str | IP | None = None,
        ssl: ssl_module.SSLContext | None = None,
        backlog: int = BACKLOG,
        limit: int = 65536,
    ) -> Server:
        """As asyncio.start_server, on a port of our addresses in the network."""
        from meshnode.tunnel.listener import Server as TunnelServer

        listener = await self.listen(port, host=host, backlog=backlog)
        self._doors.remove(listener)
        server = TunnelServer(listener, callback, ssl=ssl, limit=limit)
        self._doors.append(server)
        return server

    # --- datagrams ---

    async def listen_packet(self, port: int = 0, *, host: str | IP | None = None) -> DatagramEndpoint:
        """A UDP port of our addresses (or of `host`, one of them), for every peer that the rules allow.

        port: 0 = any free one. ListenError: taken. Close it, or use it in `async with`.
        """
        address = parse_ip(host) if isinstance(host, str) else host
        return await self._open_endpoint(port, address, None)

    async def open_datagram(self, host: str | IP, port: int, *, local_port: int = 0) -> DatagramEndpoint:
        """A UDP endpoint that speaks with one port of one peer, by name or address, and hears nobody else.

        Nothing is sent yet; that nothing listens there is told by `recv`, once a datagram has met the refusal.
        NameNotFound; DialError; ListenError: local_port is taken.
        """
        from meshnode.tunnel.datagram import choose_address

        self._inside()
        ip = choose_address(str(host), self.resolve(str(host)), self.addresses)
        return await self._open_endpoint(local_port, None, Endpoint(ip, port))

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], AnyDatagramProtocol],
        *,
        local_port: int = 0,
        local_host: str | IP | None = None,
        remote: tuple[str | IP, int] | None = None,
    ) -> tuple[DatagramTransport, AnyDatagramProtocol]:
        """As loop.create_datagram_endpoint, inside the network; `remote` connects it.

        Raises as listen_packet and open_datagram.
        """
        from meshnode.tunnel.datagram import start_transport

        if remote is None:
            endpoint = await self.listen_packet(local_port, host=local_host)
        else:
            endpoint = await self.open_datagram(*remote, local_port=local_port)
        return start_transport(endpoint, protocol_factory)

    async def _open_endpoint(self, port: int, host: IP | None, remote: Endpoint | None) -> DatagramEndpoint:
        from meshnode.tunnel.datagram import open_endpoint

        opener = self._inside().engine.open_datagrams
        endpoint = await open_endpoint(opener, mtu=self.mtu, port=port, host=host, remote=remote)
        self._endpoints.add(endpoint)
        return endpoint

    async def _echo(self, host: str, timeout: float, size: int) -> tuple[IP, float]:
        """One ICMP echo of `size` bytes through the tunnel: (who answered, seconds)."""
        from meshnode.tunnel.datagram import choose_address

        engine = self._inside().engine
        ip = choose_address(host, self.resolve(host), self.addresses)
        return ip, await engine.ping(ip, size=size, timeout_s=timeout)

    # --- end ---

    async def _close_doors(self) -> None:
        """Listeners, servers and datagram endpoints; connections go on."""
        for endpoint in list(self._endpoints):
            endpoint.close()
        for door in self._doors:
            door.close()
        servers, self._doors = self._doors, []
        for server in servers:
            if (end := getattr(server, "aclose", None)) is not None:
                await end()
