"""TunnelSockets as asyncio readers and writers, with their names, under asyncio and uvloop.

`get_extra_info` of the writer answers `peername`, `sockname`, `socket` and `meshnode.peer_key` from the
TunnelSocket on every loop: uvloop asks the fd, and an AF_UNIX fd knows no tailnet name. A connection
that ended by a reset raises from the reader instead of looking like a clean end.
"""

from __future__ import annotations

import asyncio
import os
import ssl as ssl_module
from typing import TYPE_CHECKING, Any, Final

from meshnode.engine.flow import TunnelSocket

if TYPE_CHECKING:
    SSL = ssl_module.SSLContext | None

STREAM_LIMIT: Final = 65536
"""As asyncio's: bytes a reader holds before it stops taking more."""


class TunnelStreamProtocol(asyncio.StreamReaderProtocol):
    """asyncio's, which asks the socket why it ended."""

    def __init__(self, reader: asyncio.StreamReader, sock: TunnelSocket) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self._sock = sock
        self._tunnel_reader = reader

    def eof_received(self) -> bool | None:
        """A clean end leaves our direction open; another one is the reader's error."""
        error = ended_with(self._sock)
        if error is None:
            return super().eof_received()
        self._tunnel_reader.set_exception(error)
        return False


class TunnelWriter(asyncio.StreamWriter):
    """A StreamWriter that knows the tailnet's names."""

    def __init__(
        self, transport: Any, protocol: TunnelStreamProtocol, reader: asyncio.StreamReader, sock: TunnelSocket
    ) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self._tunnel_socket = sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As a transport's; the names are tailnet names."""
        sock = self._tunnel_socket
        if name == "peername":
            return sock.getpeername()
        if name == "sockname":
            return sock.getsockname()
        if name == "meshnode.peer_key":
            return sock.peer_key
        if name == "meshnode.socket":
            return sock
        return super().get_extra_info(name, default)


def ended_with(sock: TunnelSocket) -> OSError | None:
    """Why the connection ended; None while it is open or after a clean end."""
    if not sock.error:
        sock._ask()
    if not sock.error:
        return None
    return OSError(sock.error, f"{os.strerror(sock.error)}: connection with {sock.remote}")


async def open_streams(
    sock: TunnelSocket,
    *,
    ssl: SSL = None,
    server_hostname: str | None = None,
    limit: int = STREAM_LIMIT,
) -> tuple[asyncio.StreamReader, TunnelWriter]:
    """Reader and writer of a connected socket; with `ssl`, after our side of a TLS handshake."""
    reader, protocol = _make(sock, limit)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            lambda: protocol, sock=sock, ssl=ssl, server_hostname=server_hostname if ssl else None
        )
    except BaseException:
        sock.close()
        raise
    return reader, TunnelWriter(transport, protocol, reader, sock)


async def accept_streams(
    sock: TunnelSocket, *, ssl: SSL = None, limit: int = STREAM_LIMIT
) -> tuple[asyncio.StreamReader, TunnelWriter]:
    """Reader and writer of an accepted socket; with `ssl`, after the server's side of a handshake."""
    reader, protocol = _make(sock, limit)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=ssl)
    except BaseException:
        sock.close()
        raise
    return reader, TunnelWriter(transport, protocol, reader, sock)


def _make(sock: TunnelSocket, limit: int) -> tuple[asyncio.StreamReader, TunnelStreamProtocol]:
    reader = asyncio.StreamReader(limit=limit, loop=asyncio.get_running_loop())
    return reader, TunnelStreamProtocol(reader, sock)
