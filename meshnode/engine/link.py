"""RelayStream: one connection to a relay, served by the engine: an asyncio transport until the login, frames after it.

Until `start_frames` it is an ordinary byte stream for its protocol. From there on WireGuard packets go straight
between relay and tunnel; the protocol gets `frame_received` for DISCO and for what the relay says of itself, and
`pulse` now and then, because it no longer sees traffic.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from struct import Struct
from typing import Any, Protocol, cast

from meshnode.base.errors import RelayError
from meshnode.engine import _native

_BYTES = Struct("=QQ")
WRITE_MAX = 64 * 1024


class RelayProtocol(Protocol):
    """What a protocol of a RelayStream has besides asyncio.Protocol's methods."""

    def connection_made(self, transport: asyncio.BaseTransport, /) -> None:
        """The stream stands, TLS included."""

    def data_received(self, data: bytes, /) -> None:
        """Bytes, until start_frames."""

    def frame_received(self, kind: int, payload: bytes, /) -> None:
        """A frame, after it; no WireGuard packets."""

    def pulse(self, heard: bool, /) -> None:
        """Bytes came (True) or left."""

    def connection_lost(self, exc: Exception | None, /) -> None:
        """The end, if it was not ours."""

    def eof_received(self) -> bool:
        """The relay closed the connection."""


class RelayStream(asyncio.Transport):
    """One link of an engine. Made by `Engine.adopt_relay`."""

    def __init__(
        self, native: _native.Engine, req: int, protocol: RelayProtocol, forget: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._native = native
        self._req = req
        self._protocol = protocol
        self._forget = forget
        self._closed = False
        self._is_open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.certificate = b""
        """The relay's, as DER; b'' without TLS."""
        self.relay_key = b""
        """The relay's key, if TLS 1.3 told it; else b''."""
        self.rx_bytes = 0
        self.tx_bytes = 0

    # --- asyncio.Transport ---

    def write(self, data: Any) -> None:
        """Bytes; after start_frames whole frames, at most WRITE_MAX at once."""
        if not self._closed:
            self._native.link_write(self._req, bytes(data))

    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing to set: the engine's lanes are bounded by themselves."""

    def abort(self) -> None:
        """End it now."""
        if self._closed:
            return
        self._closed = True
        self._forget(self._req)
        self._native.link_close(self._req)

    close = abort

    def start_websocket(self, rest: bytes) -> None:
        """It speaks WebSocket from here on. rest: bytes of the first messages that came already; their payload comes as
        data, as that of all others will.
        """
        if not self._closed:
            self._native.link_websocket(self._req, rest)

    def start_frames(self, region: int, rest: bytes) -> None:
        """It is logged in and carries the packets of `region`. rest: frames, or a part of one, that came already."""
        if not self._closed:
            self._is_open = True
            self._native.link_open(self._req, region, rest)

    # --- events of the engine ---

    def on_ready(self, certificate: bytes, relay_key: bytes) -> None:
        """The handshake is done."""
        self.certificate, self.relay_key = certificate, relay_key
        if not self.ready.done():
            self.ready.set_result(None)

    def on_data(self, data: bytes) -> None:
        """Bytes before start_frames. The engine reads on once they were dealt with."""
        self._protocol.data_received(data)
        if not self._is_open and not self._closed:
            self._native.link_write(self._req, b"")

    def on_frame(self, kind: int, payload: bytes) -> None:
        """A frame after it."""
        self._protocol.frame_received(kind, payload)

    def on_pulse(self, heard: int, counts: bytes) -> None:
        """Bytes moved."""
        self.rx_bytes, self.tx_bytes = _BYTES.unpack(counts)
        self._protocol.pulse(bool(heard))

    def on_ended(self, why: str) -> None:
        """It is over, and not by us."""
        if self._closed:
            return
        self._closed = True
        self._forget(self._req)
        if not self.ready.done():
            self.ready.set_exception(RelayError(why or "the relay closed the connection"))
        elif why:
            self._protocol.connection_lost(OSError(why))
        else:
            self._protocol.eof_received()


class Streams:
    """Every relay link of one engine, by its number."""

    def __init__(self, native: _native.Engine) -> None:
        self._native = native
        self._streams: dict[int, RelayStream] = {}

    def handlers(self) -> dict[int, Callable[..., None]]:
        """Handlers by kind of event, for an Inbox."""
        return {
            _native.EV_LINK_READY: self._on_link_ready,
            _native.EV_LINK_DATA: self._on_link_data,
            _native.EV_LINK_FRAME: self._on_link_frame,
            _native.EV_LINK_PULSE: self._on_link_pulse,
            _native.EV_LINK_ENDED: self._on_link_ended,
        }

    async def adopt(
        self, req: int, sock: socket.socket, protocol: Any, tls: object | None, host: str, verified: str
    ) -> RelayStream:
        """Hand a connected socket to the engine and wait for TLS, which the caller bounds. RelayError: it failed."""
        stream = RelayStream(self._native, req, cast(RelayProtocol, protocol), self._forget)
        self._streams[req] = stream
        self._native.link_adopt(req, sock.detach(), tls, host, verified)
        try:
            await stream.ready
        except BaseException:
            stream.abort()
            raise
        protocol.connection_made(stream)
        return stream

    def close(self) -> None:
        """The engine has stopped: every link ends."""
        for stream in list(self._streams.values()):
            stream.on_ended("the engine stopped")

    def _forget(self, req: int) -> None:
        self._streams.pop(req, None)

    def _on_link_ready(self, req: int, certificate: bytes, relay_key: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_ready(certificate, relay_key)

    def _on_link_data(self, req: int, data: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_data(data)

    def _on_link_frame(self, req: int, kind: int, payload: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_frame(kind, payload)

    def _on_link_pulse(self, req: int, heard: int, counts: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_pulse(heard, counts)

    def _on_link_ended(self, req: int, was_open: int, why: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_ended(why.decode("utf-8", "replace"))
