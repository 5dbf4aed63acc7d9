"""Answers to what the server asks of a node: liveness pings and c2n requests.

A liveness ping is a HEAD, over plain HTTP(S) only towards the control server itself: otherwise the
server would hold a tool for reaching into our network. A c2n request is a small HTTP request inside
a ping, answered over the control channel only.
Source: docs/protocol/control.md 4.9.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from typing import Final
from urllib.parse import urlsplit

from meshnode.base.bounds import KEY_REPLY_MAX
from meshnode.base.errors import ControlError, MeshError, RemoteProtocolError
from meshnode.control.dial import Route, Server, exchange, open_pipe
from meshnode.control.session import Session
from meshnode.netmap.tailcfg import WirePing
from meshnode.run.log import get_logger
from meshnode.wire.http1 import ClientHttp, Request, ServerHttp

HEAD_TIMEOUT_S: Final = 15.0
C2N_BODY_MAX: Final = 64 * 1024

_log = get_logger("control")


class PingAnswerer:
    """Answers each ping once; a URL that comes again is an echo."""

    def __init__(self, server: Server, route: Route) -> None:
        self._server = server
        self._route = route
        self._last = ""
        self.answered = 0

    async def answer(self, ping: WirePing, session: Session) -> None:
        """Answer or refuse; never raises for what the network or the server does."""
        url = ping.url or ""
        if not url or url == self._last:
            return
        self._last = url
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                if ping.types == "c2n":
                    await self._answer_c2n(url, ping.payload or "", session)
                elif ping.types:
                    raise ControlError(f"pings of the kind {ping.types[:40]!r} are not answered")
                else:
                    await self._answer_head(url, bool(ping.url_is_noise), session)
            self.answered += 1
        except (MeshError, OSError, TimeoutError) as error:
            _log.warning("a ping of the control server could not be answered", error=str(error))

    async def _answer_head(self, url: str, over_noise: bool, session: Session) -> None:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if over_noise:
            await session.request("HEAD", target)
            return
        asked = Server.parse(url)
        if (asked.scheme, asked.host, asked.port) != (self._server.scheme, self._server.host, self._server.port):
            raise ControlError(f"a ping towards {asked.authority}, which is not the control server, was refused")
        pipe = await open_pipe(self._server, self._route)
        try:
            http = ClientHttp(self._server.authority, body_limit=KEY_REPLY_MAX)
            await exchange(pipe, http, http.request("HEAD", target), self._server)
        finally:
            pipe.close()

    async def _answer_c2n(self, url: str, payload: str, session: Session) -> None:
        path = urlsplit(url).path or "/"
        await session.request("POST", path, body=serve_c2n(payload))


def serve_c2n(payload: str) -> bytes:
    """The serialised HTTP response to a base64 HTTP request. RemoteProtocolError if it is none."""
    try:
        raw = b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError("a c2n ping that is not base64") from None
    http = ServerHttp(body_limit=C2N_BODY_MAX)
    request = http.receive(raw)
    if request is None:
        raise RemoteProtocolError("a c2n ping that is no complete HTTP request")
    status, body = _route_c2n(request)
    return http.respond(status, body)


def _route_c2n(request: Request) -> tuple[int, bytes]:
    if request.path == "/echo":
        return 200, request.body
    if request.path == "/update":
        return (200, b'{"Enabled":false,"Supported":false}') if request.method == "GET" else (405, b"bad method\n")
    return 400, b"unknown c2n path\n"
