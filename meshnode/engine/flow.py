"""TunnelSocket: one end of a socketpair that knows its tailnet addresses and its peer.

It is a real, non-blocking, connected stream socket: asyncio, uvloop, ssl and plain code use its fd as
any other. What AF_UNIX cannot say is added here: names are the tailnet's, TCP options are accepted
and change nothing, and a connection that ended by a reset or a timeout raises that error where the
fd alone would show a clean end. (uvloop and ssl read the fd itself; ask `error` at the end there.)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from meshnode.base.addr import Endpoint
from meshnode.base.keys import NodePublic

_QUIET_LEVELS = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6})


def _name_of(endpoint: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    host = str(endpoint.ip)
    return (host, endpoint.port) if endpoint.ip.version == 4 else (host, endpoint.port, 0, 0)


class TunnelSocket(socket.socket):
    """A connection of the tunnel. Closing it ends the connection; unread data makes that a reset."""

    def __init__(
        self,
        fd: int,
        *,
        local: Endpoint,
        remote: Endpoint,
        peer_key: NodePublic,
        flow_id: int,
        ask: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        self.setblocking(False)
        self.local = local
        self.remote = remote
        self.peer_key = peer_key
        self.flow_id = flow_id
        self.error = 0
        """errno the connection ended with; 0: still open, or a clean end."""
        self._ask = ask

    def getpeername(self) -> Any:
        """The peer's tailnet address, as a TCP socket would name it."""
        return _name_of(self.remote)

    def getsockname(self) -> Any:
        """Our tailnet address, as a TCP socket would name it."""
        return _name_of(self.local)

    def _check_end(self) -> None:
        """At an end of stream: raise if it was no clean one. The news may still wait in the engine."""
        if not self.error:
            self._ask()
        if self.error:
            raise OSError(self.error, f"{os.strerror(self.error)}: connection with {self.remote}")

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As socket.recv; raises the connection's error instead of a false clean end."""
        data = super().recv(bufsize, flags)
        if not data and bufsize:
            self._check_end()
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.recv_into; raises the connection's error instead of a false clean end."""
        count = super().recv_into(buffer, nbytes, flags)
        if not count and (nbytes or len(buffer)):
            self._check_end()
        return count

    def setsockopt(self, level: int, optname: int, value: Any, optlen: Any = None, /) -> None:
        """As socket.setsockopt; options of TCP and IP are the engine's business and ignored."""
        if level in _QUIET_LEVELS:
            return
        if optlen is None:
            super().setsockopt(level, optname, value)
        else:
            super().setsockopt(level, optname, value, optlen)

    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> Any:
        """As socket.getsockopt; options of TCP and IP read as off."""
        if level in _QUIET_LEVELS:
            return bytes(buflen) if buflen else 0
        return super().getsockopt(level, optname, buflen) if buflen else super().getsockopt(level, optname)

    def __repr__(self) -> str:
        return f"<TunnelSocket {self.local} - {self.remote} peer={self.peer_key.short} fd={self.fileno()}>"
