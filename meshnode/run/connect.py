"""A connected socket through an HTTP proxy, its answer read to the last byte and not one further.

What is said over the socket afterwards is the caller's: TLS, an upgrade, frames. With a proxy that speaks TLS
itself the socket is one end of a pair whose other end this loop carries.
Source: docs/protocol/paths.md 2.1.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Final, cast

from meshnode.base.errors import ProxyError, ProxyPassword, RemoteProtocolError
from meshnode.base.proxy import Proxy
from meshnode.wire.connect import Tunnel

PROXY_S: Final = 5.0
"""For the connection to the proxy and its answer, which needs a connection of its own."""
CARRY_MAX: Final = 256 * 1024
"""Bytes on their way between a proxy's TLS and the socket in front of it; beyond, the fast side waits."""


async def connect_through(
    proxy: Proxy, host: str, port: int, *, ca_file: str = "", timeout_s: float = PROXY_S
) -> socket.socket:
    """A non-blocking socket to host:port. ca_file: whom to trust beside the system's authorities, if the proxy
    speaks TLS itself. ProxyError is one sentence with the proxy's host, port and answer;
    ProxyPassword, its kind, should not be answered by trying again soon: accounts are locked for that.
    """
    context = _make_tls(ca_file) if proxy.is_tls else None
    stage = f"cannot reach the proxy {proxy}"
    try:
        async with asyncio.timeout(timeout_s):
            sock = await _connect(proxy)
            stage = f"no answer from the proxy {proxy}"
            try:
                if context is not None:
                    sock = await _secure(sock, proxy, context)
                await _ask(sock, Tunnel(proxy, host, port), proxy)
                return sock
            except BaseException:
                sock.close()
                raise
    except ProxyError:
        raise
    except TimeoutError:
        raise ProxyError(f"{stage}: nothing within {timeout_s:.0f} s") from None
    except ssl.SSLCertVerificationError as error:
        raise ProxyError(f"the certificate of the proxy {proxy} is not trusted: {error.verify_message}") from None
    except ssl.SSLError:
        raise ProxyError(f"the proxy {proxy} does not speak TLS; try http:// in {proxy.source}") from None
    except OSError as error:
        raise ProxyError(f"{stage}: {_reason(error)}") from None


def _make_tls(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise ProxyError(f"CA file {ca_file} cannot be used") from None
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    return os.strerror(error.errno).lower() if error.errno else str(error)


async def _connect(proxy: Proxy) -> socket.socket:
    """TCP to the proxy, by its addresses in order."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("its name has no address")
    for family, kind, number, _, address in await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _ask(sock: socket.socket, tunnel: Tunnel, proxy: Proxy) -> None:
    """One byte at a time: those behind the answer stay in the socket, for whoever gets it next."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, tunnel.request())
    answer = None
    while answer is None:
        data = await loop.sock_recv(sock, 1)
        try:
            answer = tunnel.receive(data)
        except RemoteProtocolError:
            what = "is no HTTP proxy" if data else "closed the connection without an answer"
            raise ProxyError(f"what answers at {proxy} {what}; {proxy.source} names it as one") from None
    if problem := tunnel.explain(answer):
        raise (ProxyPassword if tunnel.wants_password(answer) else ProxyError)(problem)


async def _secure(sock: socket.socket, proxy: Proxy, context: ssl.SSLContext) -> socket.socket:
    """The near end of a socket pair; the far end is carried over TLS to the proxy."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    outside, inside = _Half(), _Half()
    outside.other, inside.other = inside, outside
    try:
        await loop.create_connection(lambda: inside, sock=far)  # first: then nothing comes that cannot be passed on
        await loop.create_connection(lambda: outside, sock=sock, ssl=context, server_hostname=proxy.host)
        return near
    except BaseException:
        near.close()
        far.close()
        inside.close()
        raise


class _Half(asyncio.Protocol):
    """One of two streams that carry each other's bytes; the end of one ends the other."""

    def __init__(self) -> None:
        self.other: _Half | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's callback."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=CARRY_MAX)

    def data_received(self, data: bytes) -> None:
        """asyncio's callback."""
        if self.other is not None and self.other._transport is not None:
            self.other._transport.write(data)

    def pause_writing(self) -> None:
        """asyncio's callback: the other half need not read on."""
        if self.other is not None and self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        """asyncio's callback."""
        if self.other is not None and self.other._transport is not None:
            self.other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's callback."""
        if self.other is not None:
            self.other.close()

    def close(self) -> None:
        """End it, once what was written has left."""
        if self._transport is not None:
            self._transport.close()
