"""One request, one upgrade, one 101, over h11: both ends.

ClientHttp speaks on one connection, one request at a time; after a 101, or a 2xx to CONNECT, the connection
belongs to the new protocol and `rest` holds the bytes that came glued to it. ServerHttp is the other end.
Heads and bodies are bounded; a peer that exceeds a bound or breaks HTTP is a RemoteProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import h11

from meshnode.base.bounds import HTTP_HEAD_MAX
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError

Headers = Iterable[tuple[str, str]]
_READ_EVENTS: Final = (h11.InformationalResponse, h11.Response, h11.Request)


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer; `status` 101 means the connection changed its protocol."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names; repeated ones joined with a comma."""
    body: bytes = field(default=b"", repr=False)
    rest: bytes = field(default=b"", repr=False)
    """After a 101, or a 2xx to CONNECT: bytes that already belong to the new protocol."""
    reusable: bool = False
    """Another request may follow on this connection."""
    reason: str = ""
    """The words beside the status, as the other side put them."""


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request as a server sees it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the question mark."""
        return self.target.partition("?")[2]


def _lowered(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("ascii").lower(), value.decode("latin-1")
        out[key] = f"{out[key]}, {text}" if key in out else text
    return out


class _Half:
    """What both ends share: an h11 connection and a bounded body."""

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER], body_limit: int) -> None:
        self._http = h11.Connection(role, max_incomplete_event_size=HTTP_HEAD_MAX)
        self._body = bytearray()
        self._limit = body_limit
        self._head: h11.Response | h11.Request | None = None

    def _feed(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(f"not HTTP: {error}") from None
        except RuntimeError:
            raise LocalProtocolError("data for a connection that changed its protocol") from None

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(f"not HTTP: {error}") from None

    def _send(self, event: h11.Event) -> bytes:
        try:
            return self._http.send(event) or b""
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(f"bad HTTP of ours: {error}") from None

    def _take(self, data: bytes | bytearray) -> None:
        self._body += data
        if len(self._body) > self._limit:
            raise RemoteProtocolError(f"HTTP body of more than {self._limit} bytes")


class ClientHttp(_Half):
    """The client's end of one connection."""

    def __init__(self, host: str, *, body_limit: int, head_only: bool = False) -> None:
        """`host` is the Host header: name and, if not the scheme's own, port.

        head_only: an answer is complete with its head; the connection serves no further request.
        """
        super().__init__(h11.CLIENT, body_limit)
        self._host = host
        self._head_only = head_only

    def request(self, method: str, target: str, headers: Headers = (), body: bytes = b"") -> bytes:
        """The bytes of a request. LocalProtocolError while another is unanswered."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        lines = [("Host", self._host), *headers]
        if body or method in ("POST", "PUT"):
            lines.append(("Content-Length", str(len(body))))
        out = self._send(h11.Request(method=method, target=target, headers=lines))
        if body:
            out += self._send(h11.Data(data=body))
        return out + self._send(h11.EndOfMessage())

    def upgrade(self, method: str, target: str, protocol: str, headers: Headers = ()) -> bytes:
        """The bytes of a request that asks to change the protocol."""
        return self.request(method, target, [("Upgrade", protocol), ("Connection", "upgrade"), *headers])

    def receive(self, data: bytes) -> Response | None:
        """Feed bytes, b'' at end of stream; the answer once it is complete."""
        if not data and self._http.their_state is h11.SEND_RESPONSE:
            raise RemoteProtocolError("the connection was closed before an answer came")
        self._feed(data)
        while True:
            event = self._next()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return None
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return Response(101, _lowered(event.headers), rest=self._http.trailing_data[0])
            elif isinstance(event, h11.Response):
                self._head, self._body = event, bytearray()
                if self._head_only:
                    return self._answer(rest=self._http.trailing_data[0])
            elif isinstance(event, h11.Data):
                self._take(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return self._complete(at_end=not data)
            elif isinstance(event, h11.ConnectionClosed):
                raise RemoteProtocolError("the connection was closed before an answer came")

    def _complete(self, *, at_end: bool) -> Response:
        reusable = not at_end and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return self._answer(rest=b"" if reusable else self._http.trailing_data[0], reusable=reusable)

    def _answer(self, *, rest: bytes, reusable: bool = False) -> Response:
        head = self._head
        assert isinstance(head, h11.Response)
        reason = head.reason.decode("latin-1")
        return Response(head.status_code, _lowered(head.headers), bytes(self._body), rest, reusable, reason)


class ServerHttp(_Half):
    """The server's end of one connection."""

    def __init__(self, *, body_limit: int) -> None:
        super().__init__(h11.SERVER, body_limit)

    def receive(self, data: bytes) -> Request | None:
        """Feed bytes, b'' at end of stream; the request once it is complete, None before and after the last."""
        if data or self._http.their_state is not h11.CLOSED:
            self._feed(data)
        return self.pending()

    def pending(self) -> Request | None:
        """The next request that is complete already: ask after each answer, requests may be pipelined."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        while True:
            event = self._next()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return None
            if isinstance(event, h11.Request):
                self._head, self._body = event, bytearray()
            elif isinstance(event, h11.Data):
                self._take(event.data)
            elif isinstance(event, h11.EndOfMessage):
                head = self._head
                assert isinstance(head, h11.Request)
                method, target = head.method.decode("ascii"), head.target.decode("latin-1")
                return Request(method, target, _lowered(head.headers), bytes(self._body))

    def respond(self, status: int, body: bytes = b"", headers: Headers = ()) -> bytes:
        """The bytes of a complete answer."""
        length = [] if status == HTTPStatus.NO_CONTENT else [("Content-Length", str(len(body)))]
        reason = HTTPStatus(status).phrase
        out = self._send(h11.Response(status_code=status, reason=reason, headers=[*length, *headers]))
        if body and not self._answers_head:
            out += self._send(h11.Data(data=body))
        return out + self._send(h11.EndOfMessage())

    @property
    def _answers_head(self) -> bool:
        return isinstance(self._head, h11.Request) and self._head.method == b"HEAD"

    def switch(self, protocol: str) -> tuple[bytes, bytes]:
        """(bytes of the 101, bytes received that already belong to the new protocol)."""
        lines = [("Upgrade", protocol), ("Connection", "upgrade")]
        out = self._send(h11.InformationalResponse(status_code=101, headers=lines))
        return out, self._http.trailing_data[0]

    @property
    def rest(self) -> bytes:
        """What came behind a request that asks for another protocol, where its owner writes the 101 and goes on."""
        return bytes(self._http.trailing_data[0])

    @property
    def is_reusable(self) -> bool:
        """Whether the client may send another request on this connection."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
