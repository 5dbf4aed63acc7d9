"""Listener and Datagrams: what an Engine hands out besides sockets.

A Listener is an async iterator over accepted connections, bounded by its backlog; Datagrams is one
UDP port of the tunnel. Both end when closed, or with their engine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Self

from meshnode.base.addr import IP, Endpoint
from meshnode.base.keys import NodePublic
from meshnode.engine import _native
from meshnode.engine.flow import TunnelSocket


class Listener:
    """Accepted connections of one tailnet port: `async for sock in listener`."""

    def __init__(
        self,
        forget: Callable[[int], None],
        taken: Callable[[int, int], None],
        req: int,
        address: Endpoint | None,
        port: int,
        backlog: int,
    ) -> None:
        self._forget = forget
        self._taken = taken
        self._req = req
        self._waiting: deque[TunnelSocket] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self.address = address
        """None: every own address."""
        self.port = port
        self.backlog = backlog
        self._untold = 0
        """Connections taken that the engine still counts as waiting."""

    def offer(self, sock: TunnelSocket) -> bool:
        """Queue a connection; False if the listener is closed. The engine keeps to the backlog."""
        if self._closed:
            return False
        self._waiting.append(sock)
        self._arrived.set()
        self._tell_taken()
        return True

    def _tell_taken(self) -> None:
        """Tell the engine of what was taken, when it matters: a call for each connection would be many."""
        if self._untold and (2 * self._untold >= self.backlog or len(self._waiting) + self._untold >= self.backlog):
            self._taken(self._req, self._untold)
            self._untold = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TunnelSocket:
        """The next connection; the iteration ends when the listener closes."""
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        self._untold += 1
        sock = self._waiting.popleft()
        self._tell_taken()
        return sock

    def close(self) -> None:
        """Stop listening; connections nobody took are closed, those taken live on. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget(self._req)
        while self._waiting:
            self._waiting.popleft().close()
        self._arrived.set()


class Datagram(NamedTuple):
    """One UDP datagram that arrived through the tunnel."""

    data: bytes
    source: Endpoint
    """Who sent it; its address belongs to `peer_key`, WireGuard has proved that."""
    to: IP
    """Which of our addresses it was sent to."""
    peer_key: NodePublic
    """The peer's WireGuard key; our own for what we sent ourselves."""


Received = Callable[[Datagram], None]


class Datagrams:
    """One UDP port of the tunnel."""

    def __init__(
        self,
        native: _native.Engine,
        forget: Callable[[int], None],
        req: int,
        received: Received,
        failed: Callable[[Endpoint, int], None] | None = None,
    ) -> None:
        self._native = native
        self._forget = forget
        self._req = req
        self._closed = False
        self.received = received
        self.failed = failed
        self.port = 0
        """The port it has, once open."""

    def send(self, ip: IP, port: int, data: bytes, source: IP | None = None) -> bool:
        """Send one datagram, from our address `source` if we have several.

        As with UDP, nothing says whether it arrives. False: the engine has too much to do, it is dropped.
        """
        if self._closed:
            return False
        return self._native.udp_send(self._req, ip.packed, port, source.packed if source else b"", data)

    def close(self) -> None:
        """Give the port back. Idempotent."""
        if not self._closed:
            self._closed = True
            self._forget(self._req)
