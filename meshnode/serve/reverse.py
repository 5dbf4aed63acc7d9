"""Another HTTP server, reached from the tailnet: requests are rebuilt, bodies stream both ways.

Hop-by-hop fields go; whatever a client may not claim about itself (identity, forwarding) goes, in any
spelling; ours is set from the connection. Host stays as the client wrote it. Chunks leave as they come;
a slow side slows the other; a client that leaves cancels the request upstream. An Upgrade (WebSocket or
any other) is handed to `upgrade`. There is no time limit on a stream, only IDLE_S between two chunks.
"""

from __future__ import annotations

import asyncio
from email.header import Header
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from meshnode.run.log import get_logger
from meshnode.serve.ingress import Identify
from meshnode.serve.sites import PLAIN, Upstream

if TYPE_CHECKING:
    from meshnode.node.status import Identity
    from meshnode.tunnel.forward import Dial

CONNECT_S: Final = 5.0
IDLE_S: Final = 600.0
UPSTREAM_CONNECTIONS_MAX: Final = 512
READ_BUFFER: Final = 256 * 1024
HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
_CLAIMS: Final = ("tailscale-", "meshnode-", "x-forwarded-")
_CLAIM_NAMES: Final = frozenset({"forwarded", "x-real-ip", "via"})

_log = get_logger("serve")


class Reverse:
    """The handler of one upstream. Enter it to open the connection pool."""

    def __init__(self, upstream: Upstream, identify: Identify, *, dial: Dial | None = None) -> None:
        """dial: how the upstream is reached; by this machine's network if None."""
        self._dial = dial
        self._upstream = upstream
        self._identify = identify
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ReverseHandler:
        connector: aiohttp.BaseConnector
        if self._dial is not None:
            connector = _Dialled(self._upstream, self._dial)
        else:
            connector = aiohttp.TCPConnector(
                limit=UPSTREAM_CONNECTIONS_MAX, keepalive_timeout=30.0, ssl=bool(self._upstream.verify)
            )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            read_bufsize=READ_BUFFER,
            max_line_size=32 * 1024,
            max_field_size=32 * 1024,
            skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT, hdrs.CONTENT_TYPE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=IDLE_S),
        )
        return ReverseHandler(self._upstream, self._session, self._identify, self._dial)

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()


class _Dialled(aiohttp.BaseConnector):
    """Connections to one upstream inside a network of this process."""

    def __init__(self, upstream: Upstream, dial: Dial) -> None:
        super().__init__(limit=UPSTREAM_CONNECTIONS_MAX, keepalive_timeout=30.0)
        self._upstream = upstream
        self._dial = dial

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        upstream = self._upstream
        try:
            async with asyncio.timeout(CONNECT_S):
                sock = await self._dial(upstream.host, upstream.port)
        except OSError as error:
            raise aiohttp.ClientConnectionError(str(error)) from None
        _, protocol = await asyncio.get_running_loop().create_connection(self._factory, sock=sock)
        return protocol


class ReverseHandler:
    """Carries one request at a time to the upstream."""

    def __init__(
        self, upstream: Upstream, session: aiohttp.ClientSession, identify: Identify, dial: Dial | None = None
    ) -> None:
        self._dial = dial
        self._upstream = upstream
        self._session = session
        self._identify = identify

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "CONNECT":
            return _short(405, "CONNECT is not served here")
        headers = request_headers(request, self._identify(_peername(request)))
        if wants_upgrade(request):
            from meshnode.serve.upgrade import pass_through

            return await pass_through(request, headers, self._upstream, self._dial)
        target = URL(
            f"{self._upstream.scheme}://{self._upstream.authority}{self._upstream.base}{request.raw_path}", encoded=True
        )
        try:
            call = self._session.request(
                request.method, target, headers=headers, data=await _body(request, headers), allow_redirects=False
            )
            answer = await call
        except TimeoutError:
            return _short(504, "the server behind this node does not answer", self._name)
        except aiohttp.ClientError as error:
            if request.transport is None:
                raise ConnectionResetError("the client is gone") from None
            _log.warning("upstream failed", upstream=self._name, error=f"{type(error).__name__}: {error}")
            return _short(502, "the server behind this node cannot be reached", self._name)
        async with answer:
            return await self._relay(request, answer)

    @property
    def _name(self) -> str:
        return self._upstream.authority

    async def _relay(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = Relayed(status=answer.status, reason=answer.reason or "", headers=response_headers(answer))
        await response.prepare(request)
        try:
            # Each chunk leaves at once: event streams live from that. `write` waits while the client is slow.
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            # The head is out: cutting the connection is the only honest way to say that the body is not whole.
            _log.warning("upstream broke off", upstream=self._name, error=f"{type(error).__name__}: {error}")
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the upstream broke off") from None
        await response.write_eof()
        return response


class Relayed(web.StreamResponse):
    """A response that adds nothing of this server's own."""

    async def _prepare_headers(self) -> None:
        had_server, had_type = hdrs.SERVER in self.headers, hdrs.CONTENT_TYPE in self.headers
        await super()._prepare_headers()
        if not had_server:
            self.headers.popall(hdrs.SERVER, None)
        if not had_type:
            self.headers.popall(hdrs.CONTENT_TYPE, None)


async def _body(request: web.BaseRequest, headers: CIMultiDict[str]) -> Any:
    """The request's body as a stream; None without one. A client that waits for `100 Continue` gets it."""
    if not request.can_read_body:
        return None
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return request.content


def request_headers(request: web.BaseRequest, peer: Identity | None) -> CIMultiDict[str]:
    """The client's fields less what it may not say, plus who it is."""
    dropped = HOP_BY_HOP | named_in_connection(request.headers.getall(hdrs.CONNECTION, []))
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in request.headers.items():
        folded = name.lower().replace("_", "-")
        if name.lower() in dropped or folded in _CLAIM_NAMES or folded.startswith(_CLAIMS) or name.lower() == "expect":
            continue
        headers.add(name, value)
    if "trailers" in request.headers.get(hdrs.TE, "").lower():
        headers[hdrs.TE] = "trailers"
    remote = _peername(request)
    if remote:
        headers["X-Forwarded-For"] = remote
    headers["X-Forwarded-Proto"] = "http"
    if host := request.headers.get(hdrs.HOST):
        headers["X-Forwarded-Host"] = host
    if peer is not None:
        headers.update(identity_headers(peer))
    return headers


def identity_headers(peer: Identity) -> dict[str, str]:
    """Who the peer is. A tagged node has no user, so its user fields are absent."""
    fields = {"Meshnode-Peer": peer.name}
    if peer.login and peer.user is not None:
        fields["Tailscale-User-Login"] = encoded(peer.login)
        fields["Tailscale-User-Name"] = encoded(peer.user.display)
        if peer.user.picture:
            fields["Tailscale-User-Profile-Pic"] = encoded(peer.user.picture)
    return fields


def encoded(text: str) -> str:
    """A field value: as it is when printable ASCII, else RFC 2047 Q-encoded."""
    if text.isascii() and text.isprintable():
        return text
    clean = "".join(char if char.isprintable() else " " for char in text)
    return Header(clean, "utf-8", maxlinelen=10_000).encode()


def response_headers(answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
    """The upstream's fields less the hop-by-hop ones."""
    dropped = HOP_BY_HOP | named_in_connection(answer.headers.getall(hdrs.CONNECTION, []))
    return CIMultiDict((name, value) for name, value in answer.headers.items() if name.lower() not in dropped)


def named_in_connection(values: list[str]) -> set[str]:
    """Fields that a Connection header declares hop-by-hop."""
    return {token.strip().lower() for value in values for token in value.split(",")}


def wants_upgrade(request: web.BaseRequest) -> bool:
    """Whether the client asks to change the protocol of this connection."""
    tokens = named_in_connection(request.headers.getall(hdrs.CONNECTION, []))
    return "upgrade" in tokens and hdrs.UPGRADE in request.headers


def _peername(request: web.BaseRequest) -> str:
    """The peer's address as text; '' when unknown."""
    remote = request.remote or ""
    try:
        return str(ip_address(remote))
    except ValueError:
        return ""


def _short(status: int, text: str, upstream: str = "") -> web.Response:
    headers = dict(PLAIN)
    if status in (502, 504):
        headers["Retry-After"] = "5"
    if status == 405:
        headers["Allow"] = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"
    return web.Response(status=status, text=f"{text}{' (' + upstream + ')' if upstream else ''}\n", headers=headers)
