"""HTTP/2 inside the control channel, over the h2 library: both ends and their flow control.

A half turns received bytes into events and calls into bytes to send (`to_send`). PING and SETTINGS
are answered inside. Bodies wait here for the other side's window; received bytes are credited back
only when the reader says so (`consumed`), or at once when nobody reads the stream any more.
Source: docs/protocol/control.md 2.9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from meshnode.base.errors import LocalProtocolError, RemoteProtocolError

STREAM_WINDOW: Final = 4 << 20
CONNECTION_WINDOW: Final = 1 << 30
DEFAULT_WINDOW: Final = 65_535
HEADER_LIST_MAX: Final = 65_536
STREAMS_MAX: Final = 100
FRAME_MAX: Final = 16_384 + 9
"""The largest frame we allow the other side, its header included."""
BODY_WAITING_MAX: Final = 8 << 20
"""Our own bytes waiting for the other side's window, per stream; a reader slower than that is dropped."""


@dataclass(frozen=True, slots=True)
class Head:
    """Client: the head of an answer. Server: the head of a request."""

    stream: int
    status: int
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Data:
    """Part of a body; `credit` goes to `consumed` once it was dealt with."""

    stream: int
    data: bytes = field(repr=False)
    credit: int


@dataclass(frozen=True, slots=True)
class End:
    """The other side finished the stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The other side broke the stream off."""

    stream: int
    code: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The other side takes no further streams; those up to `last` may finish."""

    code: int
    last: int
    debug: str


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to our ping."""

    payload: bytes


Event = Head | Data | End | Reset | GoneAway | Pong


class _Half:
    """What client and server share."""

    def __init__(self, *, is_client: bool) -> None:
        config = H2Configuration(client_side=is_client, header_encoding="utf-8")
        self._h2 = H2Connection(config)
        initial: dict[SettingCodes, int] = {
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
            SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_LIST_MAX,
        }
        if is_client:
            initial[SettingCodes.ENABLE_PUSH] = 0
        self._h2.local_settings = Settings(client=is_client, initial_values=initial)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - DEFAULT_WINDOW)
        self._waiting: dict[int, tuple[bytearray, bool]] = {}
        self.goes_away = False
        """Whether the other side said GOAWAY: new requests want a new connection."""

    def to_send(self) -> bytes:
        """Bytes for the channel since the last call."""
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> list[Event]:
        """Feed bytes. RemoteProtocolError: `to_send` still holds a farewell, then close."""
        try:
            raw = self._h2.receive_data(data)
            out: list[Event] = []
            for event in raw:
                self._take(event, out)
            if len(self._h2.incoming_buffer._data) > FRAME_MAX:
                # The library looks at a frame's length only once it has all of it.
                raise RemoteProtocolError(f"HTTP/2 frame of more than {FRAME_MAX} bytes")
            return out
        except (H2Error, ValueError, KeyError, IndexError, RecursionError) as error:
            # hpack and hyperframe let a few builtins through on rubbish.
            raise RemoteProtocolError(f"broken HTTP/2 from the other side: {type(error).__name__}: {error}") from None

    def consumed(self, stream: int, credit: int) -> None:
        """Give received bytes back to the other side's window."""
        if credit:
            self._quiet(lambda: self._h2.acknowledge_received_data(credit, stream))

    def send_body(self, stream: int, data: bytes, *, end: bool) -> None:
        """Queue body bytes and send what the window allows. LocalProtocolError beyond BODY_WAITING_MAX."""
        waiting, _ = self._waiting.get(stream, (bytearray(), False))
        waiting += data
        if len(waiting) > BODY_WAITING_MAX:
            raise LocalProtocolError("the other side reads too slowly; dropping its stream")
        self._waiting[stream] = (waiting, end)
        self._flush(stream)

    def cancel(self, stream: int) -> None:
        """Break a stream off; bytes that still arrive for it are discarded and credited."""
        self._waiting.pop(stream, None)
        self._quiet(lambda: self._h2.reset_stream(stream, ErrorCodes.CANCEL))

    def ping(self, payload: bytes) -> None:
        """Ask for a Pong with these eight bytes."""
        self._quiet(lambda: self._h2.ping(payload))

    def close(self) -> None:
        """Say goodbye."""
        self._quiet(self._h2.close_connection)

    def waiting_bytes(self, stream: int) -> int:
        """Our bytes of this stream that the other side has not given room for."""
        return len(self._waiting[stream][0]) if stream in self._waiting else 0

    def _quiet(self, call: Any) -> None:
        """A call about a stream or connection that may just have ended: then there is nothing to do."""
        try:
            call()
        except (H2Error, ValueError, KeyError):
            return

    def _flush(self, stream: int) -> None:
        waiting, end = self._waiting[stream]
        try:
            while waiting:
                room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
                if room <= 0:
                    return
                chunk = bytes(waiting[:room])
                del waiting[:room]
                last = end and not waiting
                self._h2.send_data(stream, chunk, end_stream=last)
                if last:
                    end = False
            if end:
                self._h2.end_stream(stream)
        except H2Error:
            pass  # the stream is gone; its body goes with it
        self._waiting.pop(stream, None)

    def _take(self, event: h2_events.Event, out: list[Event]) -> None:
        match event:
            case h2_events.DataReceived():
                out.append(Data(event.stream_id or 0, event.data or b"", event.flow_controlled_length or 0))
            case h2_events.ResponseReceived() | h2_events.RequestReceived():
                out.append(_head(event.stream_id or 0, event.headers or ()))
            case h2_events.StreamEnded():
                out.append(End(event.stream_id or 0))
            case h2_events.StreamReset():
                self._waiting.pop(event.stream_id or 0, None)
                out.append(Reset(event.stream_id or 0, int(event.error_code or 0)))
            case h2_events.ConnectionTerminated():
                self.goes_away = True
                debug = (event.additional_data or b"")[:200].decode("utf-8", "replace")
                out.append(GoneAway(int(event.error_code or 0), event.last_stream_id or 0, debug))
            case h2_events.PingAckReceived():
                out.append(Pong(event.ping_data or b""))
            case h2_events.WindowUpdated() | h2_events.RemoteSettingsChanged():
                for stream in list(self._waiting):
                    self._flush(stream)
            case _:
                pass  # trailers, informational heads, priorities: nothing to do


def _head(stream: int, raw: Iterable[Any]) -> Head:
    headers: dict[str, str] = {}
    for name, value in raw:
        headers[str(name)] = str(value)
    status = headers.pop(":status", "0")
    method, path = headers.pop(":method", ""), headers.pop(":path", "")
    return Head(stream, int(status) if status.isdigit() else 0, method, path, headers)


class ClientH2(_Half):
    """A client's half: prior knowledge, no push. The preface is in the first `to_send`."""

    def __init__(self, authority: str) -> None:
        super().__init__(is_client=True)
        self._authority = authority

    def request(self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> int:
        """Open a stream with a complete request; returns its number. LocalProtocolError after GOAWAY."""
        if self.goes_away:
            raise LocalProtocolError("the control server takes no further requests on this connection")
        lines = [(":method", method), (":scheme", "https"), (":authority", self._authority), (":path", path)]
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [*lines, *headers], end_stream=not body)
        except H2Error as error:
            raise LocalProtocolError(f"cannot open an HTTP/2 stream: {error}") from None
        if body:
            self.send_body(stream, body, end=True)
        return stream


class ServerH2(_Half):
    """A server's half."""

    def __init__(self) -> None:
        super().__init__(is_client=False)

    def respond(
        self, stream: int, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes | None = b""
    ) -> None:
        """Send an answer's head, and its whole body unless None: then `send_body` follows."""
        lines = [(":status", str(status)), *headers]
        try:
            self._h2.send_headers(stream, lines, end_stream=body == b"")
        except H2Error:
            return  # the client gave the stream up
        if body:
            self.send_body(stream, body, end=True)
