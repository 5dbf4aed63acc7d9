"""RelayServer: a small honest relay in Python, for `meshnode demo` and the tests.

Listens, speaks TLS or plain HTTP, upgrades, logs clients in, asks `admit`, and moves packets by
core.fanout. One Session per connection; a packet is queued for its receiver and every receiver written to
once per batch received. A client that does not read for WRITE_STALL_S is closed. Nothing is open before
its login: HTTP and login together have LOGIN_S.
Source: docs/protocol/paths.md 1.4 to 1.7, 1.11.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from meshnode.base.addr import RegionId
from meshnode.base.errors import ListenError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.core.fanout import Fanout, Member
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay.admit import Admit, allow_everybody
from meshnode.relay.session import Session
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope

CLIENTS_MAX: Final = 1024


class RelayServer:
    """One relay. `start` binds, `aclose` ends every connection."""

    def __init__(
        self,
        *,
        private: NodePrivate | None = None,
        admit: Admit = allow_everybody,
        tls: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        """private: the relay's own key, fresh if None. tls: a server context; None: plain HTTP."""
        self.clock = clock or Clock()
        self.private = private or NodePrivate.generate(self.clock.entropy)
        self.public: NodePublic = self.private.public()
        self.admit = admit
        self.fanout = Fanout()
        self.counters: Counter[str] = Counter()
        self._tls = tls
        self._sessions: set[Session] = set()
        self._by_member: dict[Member, Session] = {}
        self._server: asyncio.Server | None = None
        self.scope: Scope
        self.port = 0
        """The port listened on, once started."""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. ListenError if the address cannot be had."""
        self.scope = Scope("relay-server")
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Session(self), host, port, ssl=self._tls)
        except OSError as error:
            raise ListenError(f"relay: {host} port {port} cannot be listened on: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def client_count(self) -> int:
        """Logged-in connections."""
        return len(self.fanout)

    def region(self, host: str, *, number: int = 900, code: str = "own", insecure: bool = False) -> RelayRegion:
        """This relay as an entry of a relay map."""
        node = RelayNode(
            name=f"{number}a",
            region=RegionId(number),
            host=host,
            ipv4=host if host.count(".") == 3 else "",
            port=self.port,
            stun_port=-1,
            insecure=insecure,
        )
        return RelayRegion(RegionId(number), code, code, (node,))

    def relay_map(self, host: str = "127.0.0.1", **about: Any) -> RelayMap:
        """A map of this relay alone."""
        region = self.region(host, **about)
        return RelayMap({region.id: region})

    async def aclose(self) -> None:
        """Stop listening and end every connection. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for session in list(self._sessions):
            session.end("the relay stops")
        await self.scope.aclose()

    # --- for sessions ---

    def enter(self, session: Session) -> bool:
        """A connection was accepted; False if there are too many."""
        self.counters["accepts"] += 1
        if len(self._sessions) >= CLIENTS_MAX:
            self.counters["refused_full"] += 1
            return False
        self._sessions.add(session)
        return True

    def join(self, session: Session, member: Member) -> None:
        """A connection logged in."""
        self._by_member[member] = session
        self.fanout.add(member)

    def leave(self, session: Session, member: Member | None) -> None:
        """A connection ended."""
        self._sessions.discard(session)
        if member is not None:
            self._by_member.pop(member, None)
            self.fanout.remove(member)
            self.flush_dirty()

    def flush_dirty(self) -> None:
        """Write to everybody who got something."""
        dirty = self.fanout.dirty
        while dirty:
            session = self._by_member.get(dirty.pop())
            if session is not None:
                session.flush()

    def close_keys(self, keys: Sequence[NodePublic]) -> None:
        """Cut these keys off, every connection of theirs."""
        for key in keys:
            for member in self.fanout.members(key.raw):
                session = self._by_member.get(member)
                if session is not None:
                    session.end("no longer admitted")
