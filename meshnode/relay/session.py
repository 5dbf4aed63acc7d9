"""Session: one connection to our relay, from its first byte to its last.

States: http → login → admitting → open → closed. While it is being admitted nothing is read from it, so a
client that talks on meanwhile fills its own socket only. No reason is sent on refusal: the protocol has no
frame for it.
Source: docs/protocol/paths.md 1.4, 1.11.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from meshnode.base.bounds import DERP_CLIENT_INFO_MAX
from meshnode.base.errors import ProtocolError, RemoteProtocolError
from meshnode.core.fanout import Member
from meshnode.relay.admit import ADMIT_S
from meshnode.run.log import get_logger
from meshnode.wire import derp
from meshnode.wire.http1 import Request, ServerHttp

if TYPE_CHECKING:
    from meshnode.relay.server import RelayServer

LOGIN_S: Final = 10.0
KEEP_ALIVE_S: Final = 60.0
KEEP_ALIVE_JITTER_S: Final = 5.0
WRITE_STALL_S: Final = 5.0
WRITE_HIGH: Final = 256 * 1024
WRITE_BATCH: Final = 128 * 1024
CHALLENGE_MAX: Final = 64
_CHALLENGE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:")
_CORS: Final = ("Access-Control-Allow-Origin", "*")
_NO_STORE: Final = ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")
_log = get_logger("relay-server")


class Phase(Enum):
    """How far a session is."""

    HTTP = "http"
    LOGIN = "login"
    ADMITTING = "admitting"
    OPEN = "open"
    CLOSED = "closed"


class Session(asyncio.Protocol):
    """One client."""

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._phase = Phase.HTTP
        self._http = ServerHttp(body_limit=0)
        self._login = derp.ServerLogin(server.private)
        self._frames = derp.Frames(derp.TO_SERVER, DERP_CLIENT_INFO_MAX)
        self._early: list[tuple[int, bytes]] = []
        self._transport: asyncio.Transport
        self._member: Member | None = None
        self._is_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self.source = ""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        peer = transport.get_extra_info("peername")
        self.source = str(peer[0]) if peer else ""
        if not self._server.enter(self):
            self.end("too many connections")
            return
        self._timer = self._loop.call_later(LOGIN_S, self.end, "no login in time")

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        try:
            if self._phase is Phase.HTTP:
                data = self._consume_http(data)
            if data and self._phase is not Phase.CLOSED:
                self._consume_frames(self._frames.receive(data))
        except ProtocolError as error:
            self._server.counters["protocol_errors"] += 1
            self.end(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone."""
        self.end("the connection ended")

    def pause_writing(self) -> None:
        """It reads slower than others write to it."""
        self._is_paused = True
        if self._stall is None:
            self._stall = self._loop.call_later(WRITE_STALL_S, self.end, "it does not read")

    def resume_writing(self) -> None:
        """It reads again."""
        self._is_paused = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self.flush()

    # --- http ---

    def _consume_http(self, data: bytes) -> bytes:
        """Serve requests until one of them upgrades; returns what belongs to the frames already."""
        request = self._http.receive(data)
        while request is not None:
            if request.path == "/derp" and request.headers.get("upgrade", "").lower() == "derp":
                return self._upgrade(request)
            self._answer(request)
            if not self._http.is_reusable:
                self._transport.close()
                return b""
            request = self._http.pending()
        return b""

    def _upgrade(self, request: Request) -> bytes:
        if request.method != "GET":
            raise RemoteProtocolError("an upgrade wants GET")
        _, rest = self._http.switch("DERP")
        greeting = self._login.create_server_key()
        if request.headers.get("derp-fast-start") != "1":
            head = (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
                f"Derp-Version: {derp.VERSION}\r\nDerp-Public-Key: {self._server.public.raw.hex()}\r\n\r\n"
            )
            greeting = head.encode() + greeting
        self._transport.write(greeting)
        self._phase = Phase.LOGIN
        return rest

    def _answer(self, request: Request) -> None:
        status, body, headers = respond(request)
        self._transport.write(self._http.respond(status, body, headers))

    # --- login ---

    def _consume_frames(self, frames: list[tuple[int, bytes]]) -> None:
        if self._phase is Phase.LOGIN and frames:
            kind, payload = frames[0]
            if kind != derp.CLIENT_INFO:
                raise RemoteProtocolError("the first frame is no ClientInfo")
            info = self._login.consume_client_info(payload)
            if info.mesh_key:
                raise RemoteProtocolError("this relay has no mesh")
            frames = frames[1:]
            self._phase = Phase.ADMITTING
            self._transport.pause_reading()
            self._server.scope.spawn(self._admit(), f"admit {self.source}")
        if self._phase is Phase.ADMITTING:
            self._early += frames
        elif self._phase is Phase.OPEN:
            self._route(frames)

    async def _admit(self) -> None:
        assert self._login.client is not None
        try:
            async with asyncio.timeout(ADMIT_S):
                allowed = await self._server.admit(self._login.client, self.source)
        except Exception as error:
            _log.warning("admission failed; the client is refused", error=f"{type(error).__name__}: {error}")
            allowed = False
        if self._phase is not Phase.ADMITTING:
            return
        if not allowed:
            self._server.counters["refused"] += 1
            self.end("not admitted")
            return
        self._open()

    def _open(self) -> None:
        assert self._login.client is not None
        server = self._server
        self._transport.write(self._login.create_server_info(server.clock.entropy(derp.NONCE_LEN)))
        self._phase = Phase.OPEN
        self._member = Member(self._login.client.raw)
        server.join(self, self._member)
        self._arm_keep_alive()
        early, self._early = self._early, []
        try:
            self._route(early)
            self._transport.resume_reading()
        except ProtocolError as error:
            self.end(str(error))

    # --- frames ---

    def _route(self, frames: list[tuple[int, bytes]]) -> None:
        member, server = self._member, self._server
        assert member is not None
        now, fanout = server.clock.now(), server.fanout
        if frames:
            fanout.note_activity(member, now)
        for kind, payload in frames:
            if kind == derp.SEND_PACKET:
                target, data = derp.split_packet(payload)
                member.rx_bytes += len(payload)
                fanout.send(member, target, data, now)
            elif kind == derp.PING:
                member.lanes.put_urgent(derp.emit_frame(derp.PONG, derp.parse_ping(payload)))
                fanout.dirty.add(member)
            elif kind == derp.NOTE_PREFERRED:
                member.is_home = derp.parse_preferred(payload)
            elif kind != derp.PONG:
                raise RemoteProtocolError(f"frame of type {kind:#04x} is not for this client to send")
        server.flush_dirty()

    def flush(self) -> None:
        """Write what waits in the lanes, in batches, until the transport has enough."""
        member = self._member
        if member is None or self._phase is not Phase.OPEN:
            return
        now = self._server.clock.now()
        while not self._is_paused and (batch := member.lanes.take(WRITE_BATCH, now)):
            member.tx_bytes += len(batch)
            self._transport.write(batch)

    def _arm_keep_alive(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = KEEP_ALIVE_S + self._server.clock.uniform(0.0, KEEP_ALIVE_JITTER_S)
        self._timer = self._loop.call_later(delay, self._keep_alive)

    def _keep_alive(self) -> None:
        if self._member is not None:
            self._member.lanes.put_urgent(derp.emit_frame(derp.KEEP_ALIVE))
            self.flush()
            self._arm_keep_alive()

    def end(self, reason: str) -> None:
        """Close the connection. Idempotent."""
        if self._phase is Phase.CLOSED:
            return
        self._phase = Phase.CLOSED
        _log.debug("relay client ended", source=self.source, reason=reason)
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        self._transport.abort()
        self._server.leave(self, self._member)


def respond(request: Request) -> tuple[int, bytes, list[tuple[str, str]]]:
    """The plain pages of a relay: (status, body, headers)."""
    is_read = request.method in ("GET", "HEAD")
    if request.path in ("/derp/probe", "/derp/latency-check"):
        return (200, b"", [_CORS]) if is_read else (405, b"bogus probe method\n", [])
    if request.path == "/derp":
        return 426, b"this is a relay; it wants Upgrade: DERP\n", [("Upgrade", "DERP"), ("Connection", "Upgrade")]
    if request.path == "/generate_204":
        challenge = request.headers.get("x-tailscale-challenge", "")
        proven = 0 < len(challenge) <= CHALLENGE_MAX and set(challenge) <= _CHALLENGE
        return 204, b"", [_NO_STORE] + ([("X-Tailscale-Response", f"response {challenge}")] if proven else [])
    if request.path == "/healthz":
        return 200, b"ok\n", []
    if request.path == "/robots.txt":
        return 200, b"User-agent: *\nDisallow: /\n", [("Content-Type", "text/plain")]
    if request.path == "/" and is_read:
        return 200, b"a meshnode relay\n", [("Content-Type", "text/plain")]
    return 404, b"not found\n", []
