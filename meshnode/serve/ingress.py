"""Tunnel flow → HTTP connection, its peer in the context.

Takes sockets from a listener and lends each to a protocol (aiohttp's, or any other) with
`loop.connect_accepted_socket`. The handler's task inherits `current_peer`; headers are never believed.
Works on TunnelSockets and plain ones, under asyncio and uvloop: uvloop asks the fd for its names, which
knows no tailnet, so the transport is wrapped. A client that ended its half still gets its answer: only when
nothing was sent and nothing waits to be sent for HALF_CLOSED_S is it taken for gone. Beyond CONNECTIONS_MAX
connections wait in the backlog; beyond PER_PEER_MAX one peer's are closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, cast

from meshnode.run.log import get_logger
from meshnode.run.scope import Scope

if TYPE_CHECKING:
    from meshnode.node.status import Identity

CONNECTIONS_MAX: Final = 4096
PER_PEER_MAX: Final = 1024

HALF_CLOSED_S: Final = 0.5
"""An end of file may be a half-close or a farewell; silence of ours this long afterwards ends the connection."""

_log = get_logger("serve")

current_peer: ContextVar[Identity | None] = ContextVar("meshnode_current_peer", default=None)
"""Who is at the other end of the connection being served; None: nobody the netmap knows."""

Factory = Callable[[], asyncio.BaseProtocol]
Identify = Callable[[Any], "Identity | None"]
"""peername → who that is, by the newest netmap."""


class Accepting(Protocol):
    """What we need of a listener."""

    def __aiter__(self) -> AsyncIterator[socket.socket]: ...
    def close(self) -> None: ...


def nobody(_: Any) -> Identity | None:
    """For sockets outside the tunnel."""
    return None


class Ingress:
    """Serves every connection of `listener` with a protocol from `factory` while its block is entered."""

    def __init__(
        self,
        listener: Accepting,
        factory: Factory,
        *,
        identify: Identify = nobody,
        name: str = "ingress",
        connections_max: int = CONNECTIONS_MAX,
        per_peer_max: int = PER_PEER_MAX,
    ) -> None:
        self._listener = listener
        self._factory = factory
        self._identify = identify
        self._name = name
        self._per_peer_max = per_peer_max
        self._slots = asyncio.Semaphore(connections_max)
        self._by_peer: Counter[str] = Counter()
        self._lent: set[_Lent] = set()
        self._scope: Scope | None = None
        self.refused_count = 0
        """Connections closed because their peer had too many."""

    async def __aenter__(self) -> Self:
        self._scope = Scope(self._name)
        self._scope.spawn(self._accept(self._scope), "accept")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        assert self._scope is not None
        await self._scope.aclose()
        for lent in tuple(self._lent):
            lent.abort()

    @property
    def connection_count(self) -> int:
        """Connections being served."""
        return len(self._lent)

    async def _accept(self, scope: Scope) -> None:
        async for sock in self._listener:
            await self._slots.acquire()
            peer = _host_of(sock)
            if self._by_peer[peer] >= self._per_peer_max:
                self.refused_count += 1
                _log.warning("too many connections from one peer", peer=peer, limit=self._per_peer_max)
                sock.close()
                self._slots.release()
                continue
            self._by_peer[peer] += 1
            scope.spawn(self._lend(sock, peer), "lend")

    async def _lend(self, sock: socket.socket, peer: str) -> None:
        """In a task of its own, so that `current_peer` is set in this connection's context only."""
        lent = _Lent(self._factory(), sock, lambda: self._on_end(lent, peer))
        self._lent.add(lent)
        try:
            current_peer.set(self._identify(sock.getpeername()))
            await asyncio.get_running_loop().connect_accepted_socket(lambda: lent, sock)
        except OSError as error:
            _log.debug("connection ended before it was served", peer=peer, error=str(error))
            sock.close()
            self._on_end(lent, peer)
        except BaseException:
            sock.close()
            self._on_end(lent, peer)
            raise

    def _on_end(self, lent: _Lent, peer: str) -> None:
        if lent not in self._lent:
            return
        self._lent.discard(lent)
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]
        self._slots.release()


def _host_of(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "?"
    return str(name[0]) if isinstance(name, tuple) else "?"


class _Lent(asyncio.Protocol):
    """Stands before the real protocol, which sees a transport that knows its names; bytes pass it by."""

    def __init__(self, inner: asyncio.BaseProtocol, sock: socket.socket, on_end: Callable[[], None]) -> None:
        self._inner = inner
        self._sock = sock
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._named: NamedTransport | None = None
        self._seen = -1
        # Bound methods of the real protocol, found before the class's: no step in between per event.
        stream = cast(asyncio.Protocol, inner)
        self.data_received = stream.data_received  # type: ignore[method-assign]
        self.pause_writing = stream.pause_writing  # type: ignore[method-assign]
        self.resume_writing = stream.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._named = NamedTransport(self._transport, self._sock)
        self._inner.connection_made(cast(asyncio.BaseTransport, self._named))

    def eof_received(self) -> bool:
        cast(asyncio.Protocol, self._inner).eof_received()
        self._watch_half_closed()
        return True

    def _watch_half_closed(self) -> None:
        named, transport = self._named, self._transport
        if named is None or transport is None or transport.is_closing():
            return
        is_silent = named.write_count == self._seen and not named.is_sending and not transport.get_write_buffer_size()
        if is_silent:
            transport.close()
            return
        self._seen = named.write_count
        asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._watch_half_closed)

    def connection_lost(self, exc: BaseException | None) -> None:
        try:
            self._inner.connection_lost(cast("Exception | None", exc))
        finally:
            self._on_end()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()


class NamedTransport:
    """A transport that answers `peername` and `sockname` as its socket does; all else is the transport's.

    IPv6 names are pairs too, as servers expect of them.
    """

    __slots__ = ("__weakref__", "_sock", "_transport", "is_closing", "is_sending", "write_count")

    def __init__(self, transport: asyncio.Transport, sock: socket.socket) -> None:
        self._transport = transport
        self._sock = sock
        self.is_closing = transport.is_closing
        self.write_count = 0
        self.is_sending = False
        """Bytes are on their way past the transport (`sending`)."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As the transport's."""
        self.write_count += 1
        self._transport.write(data)

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """As the transport's."""
        self.write_count += 1
        self._transport.writelines(parts)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As a transport's, with `meshnode.socket` and `meshnode.peer_key` besides."""
        if name == "peername":
            return _pair(self._sock.getpeername) or default
        if name == "sockname":
            return _pair(self._sock.getsockname) or default
        if name == "meshnode.socket":
            return self._sock
        if name == "meshnode.peer_key":
            return getattr(self._sock, "peer_key", default)
        return self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _pair(ask: Callable[[], Any]) -> tuple[str, int] | None:
    try:
        name = ask()
    except OSError:
        return None
    return (name[0], name[1]) if isinstance(name, tuple) else None
