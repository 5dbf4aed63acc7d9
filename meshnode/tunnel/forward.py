"""Tunnel port → local address: `--serve tcp:PORT=HOST:PORT`.

Owns a listener inside the tunnel and one splice per connection. The target is the one that was
configured, whatever the caller dialled. A target that does not answer ends that connection and is
logged. CONNECTIONS_MAX bounds what runs; more wait in the engine's backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, Self

from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.tunnel.splice import reset, splice

CONNECTIONS_MAX: Final = 1024
DIAL_TIMEOUT_S: Final = 10.0

_log = get_logger("forward")


class Accepting(Protocol):
    """What we need of a listener."""

    def __aiter__(self) -> AsyncIterator[socket.socket]: ...
    def close(self) -> None: ...


Dial = Callable[[str, int], Awaitable[socket.socket]]
"""Host and port → a connected, non-blocking socket; OSError."""
Listen = Callable[[int], Awaitable[Accepting]]
"""A tailnet port → its listener."""


class Forward:
    """Forwards `port` of the tailnet to `host`:`target_port` while its block is entered."""

    def __init__(self, listen: Listen, port: int, host: str, target_port: int, *, dial: Dial | None = None) -> None:
        """dial: how the target is reached; by this machine's network if None."""
        self._listen = listen
        self._dial = dial or by_this_machine
        self.port = port
        self.target = (host, target_port)
        self.failed_count = 0
        """Connections that found no target."""
        self._scope: Scope | None = None
        self._listener: Accepting | None = None
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def __aenter__(self) -> Self:
        self._listener = await self._listen(self.port)
        self._scope = Scope(f"forward:{self.port}")
        self._scope.spawn(self._accept(self._listener, self._scope), "accept")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._scope is not None:
            await self._scope.aclose()

    async def _accept(self, listener: Accepting, scope: Scope) -> None:
        async for sock in listener:
            await self._slots.acquire()
            scope.spawn(self._serve(sock), "connection").add_done_callback(self._on_done)

    def _on_done(self, _: asyncio.Task[Any]) -> None:
        self._slots.release()

    async def _serve(self, sock: socket.socket) -> None:
        try:
            target = await self._dial(*self.target)
        except OSError as error:
            self.failed_count += 1
            reset(sock)
            host, port = self.target
            _log.warning("target does not answer", port=self.port, target=f"{host}:{port}", error=reason_of(error))
            return
        except BaseException:
            sock.close()
            raise
        await splice(sock, target)


def dial_of(node: Any, host: str) -> Dial | None:
    """How a served target is reached: inside one of the networks of this process if it is named as HOST.NETWORK,
    else None, which is this machine's own network. node: the one that serves."""
    group = getattr(node, "group", None)
    return group.connect if group is not None and group.leads_to(host) else None


async def by_this_machine(host: str, port: int, *, timeout: float = DIAL_TIMEOUT_S) -> socket.socket:
    """A connected, non-blocking TCP socket to an address outside the tunnel. OSError if none answers."""
    loop = asyncio.get_running_loop()
    first: OSError | None = None
    async with asyncio.timeout(timeout):
        for family, kind, proto, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
            try:
                await loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                first = first or error
                continue
            except BaseException:
                sock.close()
                raise
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise first or OSError(f"{host} has no address")


def reason_of(error: OSError) -> str:
    """The sentence in an OSError, without its number."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror or str(error)).lower()
