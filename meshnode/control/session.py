"""One live connection: HTTP/2 streams inside the control channel.

A Session owns a Link. Bytes are opened, parsed and acknowledged in the transport's callback, so
that PING and SETTINGS are answered however slow a reader is; requests and streams are awaited. The
first error ends the session: every stream learns it, nothing is repaired.
Source: docs/protocol/control.md 2.6, 2.9, 4.8.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from meshnode.base.bounds import CONTROL_REPLY_MAX
from meshnode.base.errors import ControlError, LocalProtocolError, MeshError, RemoteProtocolError
from meshnode.control.dial import Link
from meshnode.wire.h2 import ClientH2, Data, End, Event, GoneAway, Head, Pong, Reset

PING_EVERY_S: Final = 30.0
PING_DEADLINE_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Stream:
    """One request and the answer that is still arriving."""

    def __init__(self, session: Session, ident: int) -> None:
        self._session = session
        self.ident = ident
        self.head: Head | None = None
        self._parts: deque[Data] = deque()
        self._ended = False
        self._error: MeshError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def answer(self) -> Head:
        """Status and headers. ControlError if the stream broke. The caller bounds the wait."""
        while self.head is None:
            self._check()
            if self._ended:
                raise RemoteProtocolError("the control server ended a stream without an answer")
            await self._wait()
        return self.head

    async def read(self) -> bytes:
        """The next part of the body, b'' at its end. Credits it to the server's window."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._session.credit(part)
                if part.data:
                    return part.data
            self._check()
            if self._ended:
                return b""
            await self._wait()

    def cancel(self) -> None:
        """Give the answer up."""
        self._session.drop(self)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def feed(self, event: Head | Data | End) -> None:
        """For the session."""
        match event:
            case Head():
                self.head = self.head or event
            case Data():
                self._parts.append(event)
            case End():
                self._ended = True
        self._wake()

    def fail(self, error: MeshError) -> None:
        """For the session."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Session:
    """Streams over one link, until `closed`."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.error: MeshError | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._h2 = ClientH2(link.server.authority)
        self._streams: dict[int, Stream] = {}
        self._pongs = 0
        self._flush()
        if link.early:
            self._on_plaintext(link.early)
        link.pipe.attach(self._on_data, self._on_end)

    # --- requests ---------------------------------------------------------------------------------

    def open(self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Stream:
        """Send a request. ControlError once the session has ended."""
        if self.error is not None:
            raise self.error
        try:
            ident = self._h2.request(method, path, headers, body)
        except LocalProtocolError as error:
            raise ControlError(str(error)) from None
        stream = self._streams[ident] = Stream(self, ident)
        self._flush()
        return stream

    async def request(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> Reply:
        """A request with its whole answer, at most CONTROL_REPLY_MAX. ControlError if none comes in time."""
        stream = self.open(method, path, headers, body)
        try:
            async with asyncio.timeout(timeout_s):
                return await collect(stream)
        except TimeoutError:
            raise ControlError(f"the control server did not answer {path} within {timeout_s:.0f} s") from None
        finally:
            stream.cancel()

    def credit(self, part: Data) -> None:
        """Give a part back to the server's window."""
        if self.error is None:
            self._h2.consumed(part.stream, part.credit)
            self._flush()

    def drop(self, stream: Stream) -> None:
        """Forget a stream; what still comes for it is discarded and credited."""
        if self._streams.pop(stream.ident, None) is not None and self.error is None:
            self._h2.cancel(stream.ident)
            self._flush()

    # --- life -------------------------------------------------------------------------------------

    async def keep_alive(self, *, every_s: float = PING_EVERY_S, deadline_s: float = PING_DEADLINE_S) -> None:
        """Ping every now and then; end the session when no answer comes: a dead NAT binding looks like this."""
        while self.error is None:
            await asyncio.sleep(every_s)
            before = self._pongs
            self._h2.ping(before.to_bytes(8, "big"))
            self._flush()
            await asyncio.sleep(deadline_s)
            if self._pongs == before:
                self.close(ControlError(f"the control server did not answer a ping within {deadline_s:.0f} s"))

    def close(self, error: MeshError | None = None) -> None:
        """End the session; streams that are still open fail with `error`."""
        if self.error is not None:
            return
        self.error = error or ControlError("the control connection was closed")
        self._h2.close()
        self._send_farewell()
        self.link.pipe.close_gently()
        for stream in list(self._streams.values()):
            stream.fail(self.error)
        self._streams.clear()
        if not self.closed.done():
            self.closed.set_result(None)

    def _send_farewell(self) -> None:
        data = self._h2.to_send()
        if data and self.link.channel.is_open:
            self.link.pipe.write(self.link.channel.seal(data))

    # --- transport --------------------------------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        if self.error is not None:
            return
        try:
            plaintext = self.link.channel.receive(data)
        except RemoteProtocolError as error:
            self.close(error)
            return
        if plaintext:
            self._on_plaintext(plaintext)

    def _on_plaintext(self, plaintext: bytes) -> None:
        try:
            events = self._h2.receive(plaintext)
        except RemoteProtocolError as error:
            self.close(error)
            return
        for event in events:
            self._on_event(event)
        self._flush()

    def _on_event(self, event: Event) -> None:
        match event:
            case Pong():
                self._pongs += 1
            case GoneAway():
                self._on_gone_away(event)
            case Reset():
                stream = self._streams.pop(event.stream, None)
                if stream is not None:
                    stream.fail(ControlError(f"the control server broke a request off (code {event.code})"))
            case Head() | Data() | End():
                known = self._streams.get(event.stream)
                if known is not None:
                    known.feed(event)
                    if isinstance(event, End):
                        del self._streams[event.stream]
                elif isinstance(event, Data):
                    self._h2.consumed(event.stream, event.credit)

    def _on_gone_away(self, event: GoneAway) -> None:
        why = f": {event.debug}" if event.debug else ""
        gone = ControlError(f"the control server is going away (code {event.code}{why})")
        if event.code:
            self.close(gone)
            return
        for ident in [i for i in self._streams if i > event.last]:
            self._streams.pop(ident).fail(gone)
        if not self._streams:
            self.close(gone)

    def _on_end(self, error: Exception | None) -> None:
        why = f": {error}" if error else ""
        self.close(ControlError(f"the control server closed the connection{why}"))

    def _flush(self) -> None:
        data = self._h2.to_send()
        if data and self.error is None and self.link.channel.is_open:
            self.link.pipe.write(self.link.channel.seal(data))


async def collect(stream: Stream, limit: int = CONTROL_REPLY_MAX) -> Reply:
    """The whole answer of a stream. RemoteProtocolError beyond `limit`."""
    head = await stream.answer()
    body = bytearray()
    while part := await stream.read():
        body += part
        if len(body) > limit:
            stream.cancel()
            raise RemoteProtocolError(f"the control server answered with more than {limit} bytes")
    return Reply(head.status, head.headers, bytes(body))
