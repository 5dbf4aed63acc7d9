"""An Upgrade passed through: WebSocket, or whatever both ends agree on.

The request goes to the upstream as it was rebuilt, with its Connection and Upgrade fields. Does the
upstream switch (101), then the connection belongs to both: bytes are carried until either side ends,
slow sides pausing fast ones. Does it not, its answer is the client's answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import h11
from aiohttp import hdrs, web
from multidict import CIMultiDict

from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.serve.sites import PLAIN, Upstream

if TYPE_CHECKING:
    from meshnode.tunnel.forward import Dial

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
CHUNK: Final = 64 * 1024
HEAD_MAX: Final = 32 * 1024
PENDING_MAX: Final = 256 * 1024
"""Bytes of the client that wait for a slow upstream before the client is paused."""
REFUSAL_MAX: Final = 1 << 20
"""Body of an upstream's refusal."""

_log = get_logger("serve")


async def pass_through(
    request: web.BaseRequest, headers: CIMultiDict[str], upstream: Upstream, dial: Dial | None = None
) -> web.StreamResponse:
    """Ask the upstream to upgrade, and join both connections if it does."""
    if request.can_read_body:
        return _short(400, "a request to upgrade has no body")
    headers[hdrs.CONNECTION] = "Upgrade"
    headers[hdrs.UPGRADE] = request.headers[hdrs.UPGRADE]
    try:
        async with asyncio.timeout(CONNECT_S):
            if dial is not None:
                reader, writer = await asyncio.open_connection(sock=await dial(upstream.host, upstream.port))
            else:
                reader, writer = await asyncio.open_connection(upstream.host, upstream.port, ssl=_tls(upstream))
    except (OSError, TimeoutError) as error:
        _log.warning("upstream failed", upstream=upstream.authority, error=str(error) or "no answer")
        return _short(502, "the server behind this node cannot be reached")
    try:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
        try:
            async with asyncio.timeout(ANSWER_S):
                answer, rest = await _ask(http, reader, writer, request, headers, upstream)
        except (h11.ProtocolError, OSError, TimeoutError) as error:
            _log.warning("upstream failed", upstream=upstream.authority, error=str(error) or "no answer")
            return _short(502, "the server behind this node does not answer")
        if isinstance(answer, web.Response):
            return answer
        return await _join(request, answer, rest, reader, writer)
    finally:
        writer.close()


def _tls(upstream: Upstream) -> Any:
    if upstream.scheme != "https":
        return None
    import ssl

    context = ssl.create_default_context()
    if not upstream.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _ask(
    http: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: web.BaseRequest,
    headers: CIMultiDict[str],
    upstream: Upstream,
) -> tuple[h11.InformationalResponse | web.Response, bytes]:
    """The 101 and the bytes glued to it, or the refusal as a response."""
    fields = [(name, value) for name, value in headers.items() if name.lower() != "content-length"]
    target = upstream.base + request.raw_path
    writer.write(http.send(h11.Request(method=request.method, target=target, headers=fields)) or b"")
    writer.write(http.send(h11.EndOfMessage()) or b"")
    head: h11.Response | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.InformationalResponse):
            if event.status_code == 101:
                return event, http.trailing_data[0]
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > REFUSAL_MAX:
                raise h11.RemoteProtocolError("the refusal is too long")
        else:
            assert head is not None
            return _refusal(head, bytes(body)), b""


def _refusal(head: h11.Response, body: bytes) -> web.Response:
    from meshnode.serve.reverse import HOP_BY_HOP

    fields = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in head.headers
        if name.decode("latin-1") not in HOP_BY_HOP and name != b"content-length"
    )
    return web.Response(status=head.status_code, headers=fields, body=body)


class _Tail:
    """Where aiohttp puts the client's bytes after the upgrade: a bounded queue."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False
        self._arrived = asyncio.Event()
        self._paused = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """aiohttp's call; (False, b'') means: not over, all taken."""
        self._parts.append(bytes(data))
        self._size += len(data)
        self._arrived.set()
        if self._size > PENDING_MAX and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        return False, b""

    def feed_eof(self) -> None:
        """aiohttp's call when the connection is gone."""
        self._ended = True
        self._arrived.set()

    async def read(self) -> bytes:
        """What came since; b'' once the client is gone."""
        while not self._parts and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        data, self._parts, self._size = b"".join(self._parts), [], 0
        if self._paused and not self._ended:
            self._paused = False
            self._transport.resume_reading()
        return data


async def _join(
    request: web.BaseRequest,
    answer: h11.InformationalResponse,
    rest: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> web.StreamResponse:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    response = _Switched(answer)
    await response.prepare(request)
    tail = _Tail(transport)
    request.protocol.set_parser(tail)  # type: ignore[arg-type]
    async with Scope("upgrade") as scope:
        there = scope.spawn(_to_upstream(tail, writer), "there")
        back = scope.spawn(_to_client(response, rest, reader), "back")
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
    response.force_close()
    await response.write_eof()
    return response


class _Switched(web.StreamResponse):
    """The 101 as the upstream wrote it; what follows is raw."""

    def __init__(self, answer: h11.InformationalResponse) -> None:
        super().__init__(status=101, reason="Switching Protocols")
        self._length_check = False
        for name, value in answer.headers:
            self.headers.add(name.decode("latin-1").title(), value.decode("latin-1"))

    async def _prepare_headers(self) -> None:
        kept = CIMultiDict(self.headers)
        await super()._prepare_headers()
        self.headers.clear()
        self.headers.extend(kept)


async def _to_upstream(tail: _Tail, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await tail.read():
            writer.write(data)
            await writer.drain()
    except OSError:
        return


async def _to_client(response: web.StreamResponse, rest: bytes, reader: asyncio.StreamReader) -> None:
    try:
        data = rest or await reader.read(CHUNK)
        while data:
            await response.write(data)
            data = await reader.read(CHUNK)
    except OSError:
        return


def _short(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=PLAIN)
