"""Neighbours: the other relays of a region, each watched over one connection, so that any client reaches any other.

For every neighbour: dial, log in with the mesh key, ask who is there; the C core keeps the routes and forwards. A
connection that breaks is dialled again after RETRY_S; what was learnt through it is forgotten meanwhile.
Source: docs/protocol/paths.md 1.8.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Final

from meshnode.base.errors import ConfigError, ProtocolError, RelayError
from meshnode.base.keys import NodePrivate
from meshnode.engine import _native
from meshnode.netmap.model import RelayNode
from meshnode.relay.dial import connect_node
from meshnode.relay.options import DialOptions
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.wire import derp
from meshnode.wire.http1 import ClientHttp

RETRY_S: Final = 5.0
LOGIN_S: Final = 10.0
NEIGHBOUR_FLAGS: Final = 32 | 8
"""MN_OPEN_NEIGHBOUR, and it is asked whether it lives: derper answers pings too."""
REPLY_MAX: Final = 4096
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_log = get_logger("relay-mesh")


def parse_mesh_key(text: str) -> str:
    """64 lower-case hex digits, as derper's -mesh-psk-file holds them. ConfigError."""
    key = text.strip()
    if not _KEY.fullmatch(key):
        raise ConfigError("mesh_key: not 64 lower-case hex digits; make one with: openssl rand -hex 32")
    return key


@dataclass(slots=True)
class _Talk:
    """One connection to a neighbour until it is open, and its end."""

    name: str
    http: ClientHttp | None
    login: derp.ClientLogin
    frames: derp.Frames
    ready: asyncio.Future[None]
    ended: asyncio.Future[str]
    kept: list[bytes] = field(default_factory=list)
    is_open: bool = False


class Mesh:
    """The neighbours of one relay. `start` begins, its scope ends it."""

    def __init__(
        self,
        native: _native.Relay,
        private: NodePrivate,
        key: str,
        neighbours: list[RelayNode],
        *,
        options: DialOptions,
        clock: Clock,
    ) -> None:
        self._native = native
        self._private = private
        self._key = key
        self._neighbours = neighbours
        self._options = options
        self._clock = clock
        self._talks: dict[int, _Talk] = {}
        self.up: set[str] = set()
        """Names (RelayNode.name) of the neighbours that are watched now."""

    def start(self, scope: Scope) -> None:
        """Keep every neighbour connected until the scope ends."""
        for node in self._neighbours:
            scope.spawn(self._keep(node), f"mesh {node.host}")

    # --- events of the C core ---

    def on_dialled(self, conn: int) -> None:
        """A connection stands, TLS included."""
        if (talk := self._talks.get(conn)) is not None and not talk.ready.done():
            talk.ready.set_result(None)

    def on_data(self, conn: int, data: bytes) -> bool:
        """Bytes before it is open; False: not one of ours."""
        talk = self._talks.get(conn)
        if talk is None:
            return False
        try:
            self._consume(conn, talk, data)
        except (ProtocolError, RelayError) as error:
            self._native.end(conn, True)
            self._end(talk, str(error))
        return True

    def on_ended(self, conn: int, why: str) -> bool:
        """It is gone; False: not one of ours."""
        talk = self._talks.get(conn)
        if talk is not None:
            self._end(talk, why)
            if not talk.ready.done():
                talk.ready.set_result(None)
        return talk is not None

    # --- one neighbour ---

    async def _keep(self, node: RelayNode) -> None:
        said = ""
        while True:
            started = self._clock.now()
            try:
                why = await self._live(node)
            except (OSError, RelayError, ProtocolError, TimeoutError) as error:
                why = str(error) or "no answer in time"
            lived_s = self._clock.now() - started
            mend = _MENDS.get(why, "")
            if not mend and node.name in self.up and lived_s < LOGIN_S:
                mend = "has it the same mesh key?"
            self.up.discard(node.name)
            if why == _OURSELVES:
                return
            if why != said or lived_s > LOGIN_S:
                _log.warning("neighbour lost", host=_place(node), why=why, **({"mend": mend} if mend else {}))
                said = why
            await asyncio.sleep(RETRY_S * self._clock.uniform(0.8, 1.2))

    async def _live(self, node: RelayNode) -> str:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LOGIN_S):
            sock = await connect_node(node, self._options)
            tls = None if self._options.plain else self._options.carried_context_for(node)
            http = ClientHttp(node.host, body_limit=REPLY_MAX)
            conn = self._native.adopt(sock.detach(), tls, node.host)
            talk = _Talk(
                node.name, http, derp.ClientLogin(self._private), derp.Frames(derp.TO_CLIENT), loop.create_future(),
                loop.create_future(),
            )  # fmt: skip
            self._talks[conn] = talk
            try:
                await talk.ready
                if not talk.ended.done():
                    request = http.upgrade("GET", "/derp", "DERP", [("User-Agent", "meshnode")])
                    self._native.write(conn, request)
            except BaseException:
                self._drop(conn)
                raise
        try:
            why = await talk.ended
        finally:
            self._drop(conn)
        return why

    def _drop(self, conn: int) -> None:
        self._talks.pop(conn, None)
        self._native.end(conn, True)

    def _consume(self, conn: int, talk: _Talk, data: bytes) -> None:
        if talk.http is not None:
            response = talk.http.receive(data)
            if response is None:
                self._native.resume(conn)
                return
            if response.status != 101:
                raise RelayError(f"HTTP status {response.status}: not a relay")
            talk.http, data = None, response.rest
        for kind, payload in talk.frames.receive(data):
            if kind == derp.SERVER_KEY:
                talk.login.consume_server_key(payload)
                if talk.login.server == self._private.public():
                    self._end(talk, _OURSELVES)
                    return
                nonce = self._clock.entropy(derp.NONCE_LEN)
                self._native.write(conn, talk.login.create_client_info(nonce, mesh_key=self._key))
                talk.is_open = True
            else:
                talk.kept.append(derp.emit_frame(kind, payload))
        if not talk.is_open:
            self._native.resume(conn)
            return
        rest = b"".join(talk.kept) + talk.frames.give_up()
        self._native.open(conn, self._private.public().raw, NEIGHBOUR_FLAGS, b"", rest)
        self._native.tell(conn, derp.WATCH_CONNS, b"")
        self.up.add(talk.name)

    @staticmethod
    def _end(talk: _Talk, why: str) -> None:
        if not talk.ended.done():
            talk.ended.set_result(why)


def _place(node: RelayNode) -> str:
    """Several may be on one host."""
    host = f"[{node.host}]" if ":" in node.host else node.host
    return f"{host}:{node.port}" if node.port else node.host


_OURSELVES: Final = "this is our own relay"
_MENDS: Final = {"TLS failed": "does the system, or --ca-file, vouch for its certificate and name?"}
