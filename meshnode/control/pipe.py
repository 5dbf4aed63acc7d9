"""Pipe: one connection to the control server, TCP or TLS, perhaps WebSocket inside; read in turn, then by callback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from meshnode.wire.websocket import ClientStream

UNREAD_MAX: Final = 1 << 20
"""Bytes held for a reader that is not there yet; beyond, the socket is not read."""
UNSENT_MAX: Final = 32 << 20
"""Bytes the other side has not taken; beyond, it is given up."""


class Pipe(asyncio.Protocol):
    """One connection: `read` during set-up, callbacks after `attach`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.error: Exception | None = None
        self.ended = False
        self._unread = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._on_end: Callable[[Exception | None], None] | None = None
        self._websocket: ClientStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's callback, also after a TLS upgrade."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio's callback."""
        if self._websocket is not None:
            data = self._unwrap(self._websocket, data)
        if self._on_data is not None:
            if data:
                self._on_data(data)
            return
        self._unread += data
        if len(self._unread) > UNREAD_MAX and self.transport is not None:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """asyncio's callback: an end is an end, nothing half-open here."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's callback."""
        self.ended, self.error = True, exc
        self._wake()
        if self._on_end is not None:
            self._on_end(exc)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        """What has come, or b'' at the end of the stream. The caller bounds the wait."""
        while not self._unread and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self._unread)
        self._unread.clear()
        if self.transport is not None and not self.ended:
            self.transport.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        """Send; silently nothing once the connection ended, its reader learns of that."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(self._websocket.send(data) if self._websocket is not None else data)
        if self.transport.get_write_buffer_size() > UNSENT_MAX:
            self.transport.abort()

    def start_websocket(self, rest: bytes) -> None:
        """It speaks WebSocket from here on: what is read and written is the payload. rest: came with the upgrade."""
        self._websocket = ClientStream()
        if rest:
            self.data_received(rest)

    def _unwrap(self, websocket: ClientStream, data: bytes) -> bytes:
        """The payload; a pong that is owed leaves, and a goodbye or broken rules end the connection."""
        assert self.transport is not None
        data = websocket.receive(data)
        if owed := websocket.to_send():
            self.transport.write(owed)
        if websocket.is_closed:
            self.transport.close()
        return data

    def attach(self, on_data: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """From now on call back; bytes and an end that came before are handed over at once."""
        self._on_data, self._on_end = on_data, on_end
        data = bytes(self._unread)
        self._unread.clear()
        if self.transport is not None and not self.ended:
            self.transport.resume_reading()
        if data:
            on_data(data)
        if self.ended:
            on_end(self.error)

    def close(self) -> None:
        """Close now; what was written may be lost."""
        if self.transport is not None:
            self.transport.abort()

    def close_gently(self) -> None:
        """Close after what was written has left."""
        if self.transport is not None:
            self.transport.close()
