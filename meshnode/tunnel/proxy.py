"""The SOCKS5 door on loopback: local programs dial into the tailnet by name.

Names are resolved by the node, never here (`socks5h`). Whatever is no member of the tailnet is
refused: this door leads nowhere else. Without credentials it opens on loopback addresses only. A
client has HANDSHAKE_S to say what it wants; CONNECTIONS_MAX run at once, more wait in the backlog.
Replies: 2 forbidden by policy, 3 not in the tailnet, 4 no such name, offline or silent, 5 refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any, Final, Self

from meshnode.base.addr import split_host_port
from meshnode.base.errors import (
    AccessDenied,
    ConfigError,
    ListenError,
    MeshError,
    NameNotFound,
    PeerOffline,
    Refused,
    RemoteProtocolError,
    TimedOut,
)
from meshnode.engine.flow import TunnelSocket
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.tunnel.splice import splice
from meshnode.wire.socks5 import Check, Reply, Request, ServerSocks5

CONNECTIONS_MAX: Final = 1024
BACKLOG: Final = 256
HANDSHAKE_S: Final = 15.0
ACCEPT_PAUSE_S: Final = 0.1
"""Rest after accept failed for want of descriptors or memory."""

Dial = Callable[[str, int], Awaitable[TunnelSocket]]

_log = get_logger("socks5")


def socks5_door(text: str) -> Callable[[Any], Socks5Door]:
    """The door for `HOST:PORT`, given a Node. ConfigError if it may not be opened."""
    host, port = split_host_port(text, default_host="127.0.0.1")
    _check_host(host, port, None)
    return lambda node: Socks5Door(node.connect, host, port)


class Socks5Door:
    """Listens on `host`:`port` while its block is entered; `port` 0 takes a free one."""

    def __init__(self, dial: Dial, host: str, port: int, *, check: Check | None = None) -> None:
        """Raises ConfigError for an address others can reach, unless `check` guards the door."""
        _check_host(host, port, check)
        self._dial = dial
        self._check = check
        self.host = host
        self.port = port
        self.refused_count = 0
        """Requests that were answered with an error."""
        self._sock: socket.socket | None = None
        self._scope: Scope | None = None
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def __aenter__(self) -> Self:
        self._sock = await _bind(self.host, self.port)
        self.port = self._sock.getsockname()[1]
        self._scope = Scope("socks5")
        self._scope.spawn(self._accept(self._sock, self._scope), "accept")
        _log.info("listening", host=self.host, port=self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._scope is not None:
            await self._scope.aclose()
        if self._sock is not None:
            self._sock.close()

    async def _accept(self, listener: socket.socket, scope: Scope) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._slots.release()
                _log.warning("cannot accept", error=error.strerror or str(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            scope.spawn(self._serve(sock), "client").add_done_callback(self._on_done)

    def _on_done(self, _: asyncio.Task[Any]) -> None:
        self._slots.release()

    async def _serve(self, sock: socket.socket) -> None:
        core = ServerSocks5(self._check)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = await self._negotiate(sock, core)
            far = await self._connect(sock, core, request) if request is not None else None
            if far is None:
                sock.close()
                return
            try:
                early = core.reply(Reply.SUCCEEDED, far.local)
                await asyncio.get_running_loop().sock_sendall(sock, core.to_send())
            except BaseException:
                far.close()
                raise
        except OSError:
            # The client went away; nobody is left to tell.
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        await splice(sock, far, early)

    async def _negotiate(self, sock: socket.socket, core: ServerSocks5) -> Request | None:
        """The client's request; None if it left, was too slow or broke the protocol."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                while data := await loop.sock_recv(sock, 4096):
                    request = core.receive(data)
                    if out := core.to_send():
                        await loop.sock_sendall(sock, out)
                    if request is not None:
                        return request
        except RemoteProtocolError as error:
            _log.debug("client refused", error=str(error))
            self.refused_count += 1
            await self._last_words(sock, core.to_send())
        except TimeoutError:
            _log.debug("client said nothing in time")
        return None

    async def _connect(self, sock: socket.socket, core: ServerSocks5, request: Request) -> TunnelSocket | None:
        try:
            return await self._dial(request.host, request.port)
        except MeshError as error:
            _log.info("refused", host=request.host, port=request.port, error=str(error))
            self.refused_count += 1
            core.reply(reply_for(error, request.host))
            await self._last_words(sock, core.to_send())
            return None

    async def _last_words(self, sock: socket.socket, out: bytes) -> None:
        """Send, then wait for the client's end: closing on unread bytes would reset the answer away."""
        if not out:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(1.0):
                await loop.sock_sendall(sock, out)
                sock.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(sock, 4096):
                    pass


def _check_host(host: str, port: int, check: Check | None) -> None:
    if check is None and not is_loopback(host):
        raise ConfigError(
            f"socks5: {host} can be reached from outside and the door has no password; use 127.0.0.1:{port}"
        )


def reply_for(error: MeshError, host: str) -> Reply:
    """The SOCKS5 answer that says most about a failed dial."""
    if isinstance(error, NameNotFound):
        return Reply.NETWORK_UNREACHABLE if _is_address(host) else Reply.HOST_UNREACHABLE
    if isinstance(error, AccessDenied):
        return Reply.NOT_ALLOWED
    if isinstance(error, Refused):
        return Reply.REFUSED
    if isinstance(error, PeerOffline | TimedOut):
        return Reply.HOST_UNREACHABLE
    return Reply.GENERAL_FAILURE


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it: a loopback address or `localhost`."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _bind(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        reason = "another program has it" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        tip = "choose another port" if error.errno == errno.EADDRINUSE else "use 127.0.0.1:PORT"
        failure = ListenError(f"socks5: cannot listen on {host}:{port}: {reason}; {tip}")
        failure.errno = error.errno
        raise failure from None
    return sock
