"""UDP of the tunnel for applications: an endpoint to await, and asyncio's datagram transport over it.

A DatagramEndpoint holds what arrived until somebody takes it, bounded in number and in bytes; beyond that the
oldest goes and is counted. Connected to one peer, it hears nobody else, and a refusal of that peer (ICMP port
unreachable) is raised by the next `recv`, as a kernel's socket would. Sending never waits: a datagram that does not
fit the MTU is an error at once (nothing is fragmented), one the engine has no room for is dropped and counted.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol, Self, TypeVar, cast

from meshnode.base.addr import IP, Endpoint, parse_ip
from meshnode.base.bounds import DATAGRAM_QUEUE_BYTES, DATAGRAM_QUEUE_MAX
from meshnode.base.errors import DialError, PeerOffline, Refused
from meshnode.engine.listener import Datagram, Datagrams, Received

HEADERS: Final = {4: 28, 6: 48}
"""IP and UDP headers of a datagram, by address family."""
Address = Endpoint | tuple[str | IP, int] | tuple[str, int, int, int]


AnyDatagramProtocol = TypeVar("AnyDatagramProtocol", bound=asyncio.DatagramProtocol)


class Opener(Protocol):
    """Engine.open_datagrams."""

    def __call__(
        self, ip: IP | None, port: int, received: Received, failed: Callable[[Endpoint, int], None] | None = None, /
    ) -> Awaitable[Datagrams]: ...


class DatagramEndpoint:
    """One UDP port of the tunnel: `send`, `await recv()`, `async for datagram in endpoint`."""

    def __init__(self, *, mtu: int, host: IP | None = None, remote: Endpoint | None = None) -> None:
        """Made by `open_endpoint`. mtu: of the tunnel."""
        self._mtu = mtu
        self._port: Datagrams | None = None
        self._waiting: deque[Datagram] = deque()
        self._waiting_bytes = 0
        self._readers: deque[asyncio.Future[None]] = deque()
        self._error: OSError | None = None
        self._is_closed = False
        self._transport: DatagramTransport | None = None
        self.host = host
        """The address it is bound to; None: every own address."""
        self.remote = remote
        """The one peer port it speaks with, if it is connected."""
        self.dropped_count = 0
        """Datagrams that arrived while too many waited: the oldest gave way."""
        self.unsent_count = 0
        """Datagrams the engine had no room for."""
        self.foreign_count = 0
        """Datagrams of others than the remote of a connected endpoint."""

    @property
    def port(self) -> int:
        """Our UDP port."""
        return self._port.port if self._port is not None else 0

    def max_size(self, version: int = 4) -> int:
        """The largest payload in bytes that fits one packet to an address of this family (4 or 6)."""
        return self._mtu - HEADERS[version]

    # --- sending ---

    def send(self, data: bytes, address: Address | None = None, *, source: IP | None = None) -> None:
        """Send one datagram to `address`, or to the remote of a connected endpoint.

        address: an Endpoint, or (IP, port); names are resolved before, by `resolve`. source: which of our
        addresses it comes from, if the endpoint has several.
        DialError: errno EMSGSIZE, too large for the MTU; EDESTADDRREQ, no address; EISCONN, another address than
        the remote; EBADF, closed.
        """
        port, target = self._port, self.remote
        if port is None or self._is_closed:
            raise _error("this datagram endpoint is closed", errno.EBADF)
        if target is None or address is not None:
            target = self._target(address)
        limit = self._mtu - HEADERS[target.ip.version]
        if len(data) > limit:
            text = f"{len(data)} bytes do not fit one datagram to {target}: at most {limit} at an MTU of {self._mtu}"
            raise _error(f"{text}; send less at a time", errno.EMSGSIZE)
        if not port.send(target.ip, target.port, data, source or self.host):
            self.unsent_count += 1

    def reply(self, datagram: Datagram, data: bytes) -> None:
        """Answer a datagram: to its sender, from the address it was sent to. Raises as `send`."""
        self.send(data, datagram.source if self.remote is None else None, source=datagram.to)

    def _target(self, address: Address | None) -> Endpoint:
        if address is None:
            raise _error("this endpoint has no remote; say where to send: send(data, (ip, port))", errno.EDESTADDRREQ)
        target = address if isinstance(address, Endpoint) else _endpoint(address[0], address[1])
        if not 0 < target.port < 65536:
            raise _error(f"{target.port} is no UDP port to send to; use 1 to 65535", errno.EINVAL)
        if self.remote is not None and target != self.remote:
            raise _error(f"this endpoint is connected to {self.remote} and cannot send to {target}", errno.EISCONN)
        return target

    # --- receiving ---

    def recv_nowait(self) -> Datagram | None:
        """The next datagram that waits; None: none does. Raises the error of a connected endpoint, once."""
        if self._waiting:
            datagram = self._waiting.popleft()
            self._waiting_bytes -= len(datagram.data)
            return datagram
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    async def recv(self) -> Datagram:
        """Wait for the next datagram.

        Refused (a ConnectionRefusedError): the connected peer said that nothing listens there. DialError, errno
        EBADF: closed meanwhile.
        """
        while (datagram := self.recv_nowait()) is None:
            if self._is_closed:
                raise _error("this datagram endpoint is closed", errno.EBADF)
            reader = asyncio.get_running_loop().create_future()
            self._readers.append(reader)
            try:
                await reader
            finally:
                if reader in self._readers:
                    self._readers.remove(reader)
                elif self._waiting:
                    self._wake()  # cancelled after it was chosen: the next reader takes the datagram
        return datagram

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Datagram:
        """The next datagram; the iteration ends when the endpoint closes."""
        try:
            return await self.recv()
        except DialError:
            if self._is_closed:
                raise StopAsyncIteration from None
            raise

    # --- life ---

    def close(self) -> None:
        """Give the port back; what waits can still be taken with `recv_nowait`. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._port is not None:
            self._port.close()
        while self._readers:
            self._wake()
        if self._transport is not None:
            self._transport.on_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # --- what the engine says ---

    async def open(self, opener: Opener, port: int) -> None:
        """For `open_endpoint`: take the port."""
        self._port = await opener(self.host, port, self._on_datagram, self._on_error)

    def _on_datagram(self, datagram: Datagram) -> None:
        if self.remote is not None and datagram.source != self.remote:
            self.foreign_count += 1
        elif self._transport is not None:
            self._transport.on_datagram(datagram)
        else:
            self._keep(datagram)

    def _keep(self, datagram: Datagram) -> None:
        self._waiting.append(datagram)
        self._waiting_bytes += len(datagram.data)
        while len(self._waiting) > DATAGRAM_QUEUE_MAX or self._waiting_bytes > DATAGRAM_QUEUE_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft().data)
            self.dropped_count += 1
        self._wake()

    def _on_error(self, target: Endpoint, number: int) -> None:
        if target != self.remote:
            return
        error = _failure(target, number)
        if self._transport is not None:
            self._transport.on_error(error)
        else:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return

    def attach(self, transport: DatagramTransport) -> None:
        """For DatagramTransport: it takes everything from now on, and what waits at once."""
        self._transport = transport
        while (datagram := self.recv_nowait()) is not None:
            transport.on_datagram(datagram)

    def __repr__(self) -> str:
        to = f" to {self.remote}" if self.remote else ""
        return f"<DatagramEndpoint {self.host or '*'}:{self.port}{to}>"


class DatagramTransport(asyncio.DatagramTransport):
    """asyncio's transport over an endpoint, for code written as a DatagramProtocol."""

    def __init__(self, endpoint: DatagramEndpoint, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Tell the protocol of its connection, then of datagrams."""
        self._protocol.connection_made(self)
        self._endpoint.attach(self)

    def on_datagram(self, datagram: Datagram) -> None:
        """The endpoint: one arrived."""
        self._protocol.datagram_received(datagram.data, _sockaddr(datagram.source))

    def on_error(self, error: OSError) -> None:
        """The endpoint: the remote refused one."""
        self._protocol.error_received(error)

    def on_closed(self) -> None:
        """The endpoint closed."""
        self._loop.call_soon(self._protocol.connection_lost, None)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """As asyncio's; a datagram above the MTU is told to `error_received`."""
        try:
            self._endpoint.send(bytes(data), addr)
        except DialError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._protocol.error_received(error)

    def close(self) -> None:
        """Close the endpoint; the protocol hears of it soon."""
        self._endpoint.close()

    def abort(self) -> None:
        """As close: nothing waits to be sent."""
        self._endpoint.close()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._endpoint._is_closed

    def get_protocol(self) -> asyncio.DatagramProtocol:
        """The protocol it speaks to."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Speak to another protocol."""
        self._protocol = cast(asyncio.DatagramProtocol, protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sockname`, `peername` and `meshnode.endpoint`."""
        endpoint = self._endpoint
        if name == "sockname":
            return (str(endpoint.host) if endpoint.host else "0.0.0.0", endpoint.port)
        if name == "peername":
            return _sockaddr(endpoint.remote) if endpoint.remote else default
        return endpoint if name == "meshnode.endpoint" else default


async def open_endpoint(
    opener: Opener, *, mtu: int, port: int = 0, host: IP | None = None, remote: Endpoint | None = None
) -> DatagramEndpoint:
    """Open a UDP port of the tunnel; `opener` is Engine.open_datagrams. ListenError: taken, or not our address."""
    endpoint = DatagramEndpoint(mtu=mtu, host=host, remote=remote)
    await endpoint.open(opener, port)
    return endpoint


def start_transport(
    endpoint: DatagramEndpoint, factory: Callable[[], AnyDatagramProtocol]
) -> tuple[DatagramTransport, AnyDatagramProtocol]:
    """Give an endpoint to a protocol, as loop.create_datagram_endpoint does."""
    protocol = factory()
    transport = DatagramTransport(endpoint, protocol)
    transport.start()
    return transport, protocol


def choose_address(name: str, found: Sequence[IP], own: Sequence[IP]) -> IP:
    """Which address of `name` to send datagrams to: the first of a family that we have an address of too."""
    families = {ip.version for ip in own}
    for ip in found:
        if ip.version in families:
            return ip
    raise _error(f"{name} has no address of a family that this node has one of", errno.EAFNOSUPPORT)


@lru_cache(1024)
def _endpoint(host: str | IP, port: int) -> Endpoint:
    try:
        return Endpoint(parse_ip(host) if isinstance(host, str) else host, port)
    except ValueError:
        raise _error(f"{host!r} is no IP address; resolve a name before sending to it", errno.EINVAL) from None


def _sockaddr(endpoint: Endpoint) -> tuple[Any, ...]:
    host = str(endpoint.ip)
    return (host, endpoint.port) if endpoint.ip.version == 4 else (host, endpoint.port, 0, 0)


def _failure(target: Endpoint, number: int) -> OSError:
    if number == errno.ECONNREFUSED:
        return _fit(Refused(f"{target} refused the datagram; nothing listens on that UDP port"), number)
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return _fit(PeerOffline(f"{target} cannot be reached; is it online?"), number)
    if number == errno.EMSGSIZE:
        return _error(f"the datagram to {target} was too large for the way there; send less at a time", number)
    return _error(f"the datagram to {target} could not be sent: {os.strerror(number)}", number)


def _error(text: str, number: int) -> DialError:
    return _fit(DialError(text), number)


def _fit(error: DialError, number: int) -> DialError:
    error.errno = number
    return error
