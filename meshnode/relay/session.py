"""Session: the first words of a client of our relay, from HTTP to its login. Sans-IO.

Phases: http → login → done. Bytes in; out come bytes to send and what is wanted next: more bytes, WebSocket
framing, an answer to "may it come in?", or the end. From the login on, frames are the C core's. No reason is sent on
refusal before the login: the protocol has no frame for it.
Source: docs/protocol/paths.md 1.4, 1.11.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Final

from meshnode.base.bounds import DERP_CLIENT_INFO_MAX
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.wire import derp
from meshnode.wire.http1 import Request, ServerHttp
from meshnode.wire.websocket import accept_of

CHALLENGE_MAX: Final = 64
_CHALLENGE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:")
_CORS: Final = ("Access-Control-Allow-Origin", "*")
_NO_STORE: Final = ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")
Page = tuple[int, bytes, list[tuple[str, str]]]
"""(status, body, headers)"""


class Role(IntEnum):
    """What a listening socket is for."""

    RELAY = 0
    HTTP = 1
    """Pages that clients and certificate authorities ask of port 80; nobody is relayed here."""
    METRICS = 2


Pages = Callable[[Request, Role], Page | None]
"""Answers of an owner's own; None: it has none."""


class Want(Enum):
    """What a session wants of its owner after a `receive`."""

    READ = "more bytes"
    WEBSOCKET = "WebSocket framing under everything that follows; `rest` came already"
    ADMIT = "to know whether `client` may come in"
    CLOSE = "the end, after what was sent"


class Session:
    """One connection until it is logged in."""

    def __init__(
        self, private: NodePrivate, pages: Pages = lambda request, role: None, role: Role = Role.RELAY,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        """pages: answers of the owner's own, asked first. wall: seconds since 1970, for the Date of answers."""
        self._private = private
        self._pages = pages
        self._role = role
        self._wall = wall
        self._http: ServerHttp | None = ServerHttp(body_limit=0)
        self._login = derp.ServerLogin(private)
        self._kept = b""
        self.want = Want.READ
        self.out = bytearray()
        """To be sent; the owner empties it."""
        self.rest = b""
        """With WEBSOCKET: received, not yet unwrapped. With ADMIT: frames behind the login."""
        self.info: derp.ClientInfo | None = None
        self.ideal_node = ""
        self.is_websocket = False
        self.is_fast = False
        """It knew our key from TLS, and logged in with its request."""

    @property
    def client(self) -> NodePublic:
        """Who logged in: the box proves it. Only after ADMIT."""
        assert self._login.client is not None
        return self._login.client

    def receive(self, data: bytes) -> Want:
        """Bytes of the client. RemoteProtocolError: it is to be cut off."""
        self.want = Want.READ
        if self._http is not None:
            data = self._consume_http(self._http, data)
        if data and self._http is None and self.want is Want.READ:
            self._consume_login(data)
        return self.want

    def create_server_info(self, nonce: bytes, *, rate_bytes_per_s: int = 0, rate_burst_bytes: int = 0) -> bytes:
        """The frame that says it is admitted."""
        return self._login.create_server_info(
            nonce, rate_bytes_per_s=rate_bytes_per_s, rate_burst_bytes=rate_burst_bytes
        )

    def _consume_http(self, http: ServerHttp, data: bytes) -> bytes:
        """Serve requests until one of them upgrades; returns what belongs to the frames already."""
        request = http.receive(data)
        while request is not None:
            if self._role is Role.RELAY and request.path == "/derp" and "upgrade" in request.headers:
                rest = self._upgrade(http, request)
                if rest is not None:
                    return rest
            status, body, headers = self._pages(request, self._role) or respond(request)
            date = email.utils.formatdate(self._wall(), usegmt=True)
            self.out += http.respond(status, body, [("Date", date), *headers])
            if not http.is_reusable:
                self.want = Want.CLOSE
                return b""
            request = http.pending()
        return b""

    def _upgrade(self, http: ServerHttp, request: Request) -> bytes | None:
        """What came behind the upgrade; None: not one that is spoken here."""
        protocol = request.headers["upgrade"].lower()
        if protocol not in ("derp", "websocket"):
            return None
        if request.method != "GET":
            raise RemoteProtocolError("an upgrade wants GET")
        self.ideal_node = request.headers.get("ideal-node", "")[:64]
        if protocol == "websocket":
            return self._upgrade_websocket(http, request)
        rest = http.rest
        greeting = self._login.create_server_key()
        self.is_fast = request.headers.get("derp-fast-start") == "1"
        if not self.is_fast:
            head = (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
                f"Derp-Version: {derp.VERSION}\r\nDerp-Public-Key: {self._private.public().raw.hex()}\r\n\r\n"
            )
            greeting = head.encode() + greeting
        self.out += greeting
        self._http = None
        return rest

    def _upgrade_websocket(self, http: ServerHttp, request: Request) -> bytes | None:
        offered = {p.strip() for p in request.headers.get("sec-websocket-protocol", "").split(",")}
        key = request.headers.get("sec-websocket-key", "")
        if "derp" not in offered or not key or request.headers.get("sec-websocket-version") != "13":
            return None
        rest = http.rest
        self.out += (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_of(key)}\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
        ).encode()
        self._http = None
        self.is_websocket = True
        self.want, self.rest = Want.WEBSOCKET, rest
        return b""

    def greet(self) -> bytes:
        """The relay's first frame inside WebSocket, once the framing is on."""
        return self._login.create_server_key()

    def _consume_login(self, data: bytes) -> None:
        data = self._kept + data
        self._kept = data
        if len(data) < derp.HEADER_LEN:
            return
        kind, length = data[0], int.from_bytes(data[1 : derp.HEADER_LEN], "big")
        if kind != derp.CLIENT_INFO:
            raise RemoteProtocolError("the first frame is no ClientInfo")
        if length > DERP_CLIENT_INFO_MAX:
            raise RemoteProtocolError(f"ClientInfo of {length} bytes")
        end = derp.HEADER_LEN + length
        if len(data) < end:
            return
        self.info = self._login.consume_client_info(data[derp.HEADER_LEN : end])
        self.want, self.rest, self._kept = Want.ADMIT, data[end:], b""


def respond(request: Request) -> Page:
    """The plain pages of a relay."""
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
