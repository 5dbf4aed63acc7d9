"""The server's end of a control channel in memory: a scripted partner for Session and MapPoll."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from meshnode.base.keys import MachinePrivate
from meshnode.control.dial import Link, Pipe, Server
from meshnode.control.session import Session
from meshnode.wire.control import ClientChannel, accept
from meshnode.wire.h2 import Event, Head, ServerH2
from meshnode.wire.mapstream import emit_frame

CLIENT, SERVER = MachinePrivate(b"\x11" * 32), MachinePrivate(b"\x33" * 32)


class FarSide:
    """Answers what the test tells it to; `events` holds what the client sent."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False
        self.h2 = ServerH2()
        self._client = ClientChannel(CLIENT, SERVER.public(), 131, lambda n: b"\x22" * n)
        _, _, answer, self.channel = accept(self._client.initiation, SERVER, lambda n: b"\x44" * n)
        self._client.receive(answer)
        self.on_data: Callable[[bytes], None] | None = None
        self.on_end: Callable[[Exception | None], None] | None = None
        self.is_silent = False

    def session(self) -> Session:
        """A client's session whose other end this is."""
        link = Link(Server("http", "hs.example", 80), cast(Pipe, self), self._client, SERVER.public(), b"")
        return Session(link)

    # --- what Session needs of a Pipe ---------------------------------------------------------------

    def attach(self, on_data: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        self.on_data, self.on_end = on_data, on_end
        self.flush()

    def write(self, data: bytes) -> None:
        plaintext = self.channel.receive(data)
        if not self.is_silent:
            self.events += self.h2.receive(plaintext)
            asyncio.get_running_loop().call_soon(self.flush)

    def close(self) -> None:
        self.closed = True

    close_gently = close

    # --- what the server does -------------------------------------------------------------------------

    def flush(self) -> None:
        data = self.h2.to_send()
        if data and not self.closed and self.on_data is not None:
            self.raw(data)

    def raw(self, plaintext: bytes) -> None:
        """Send these bytes as HTTP/2, whatever they are."""
        assert self.on_data is not None
        self.on_data(self.channel.seal(plaintext))

    def hang_up(self) -> None:
        assert self.on_end is not None
        self.on_end(None)

    async def request(self, path: str, count: int = 1) -> int:
        """The stream of the count-th request for `path`, once it came."""
        async with asyncio.timeout(5):
            while True:
                found = [e.stream for e in self.events if isinstance(e, Head) and e.path == path]
                if len(found) >= count:
                    return found[count - 1]
                await asyncio.sleep(0)

    def respond(self, stream: int, status: int = 200, body: bytes | None = b"") -> None:
        self.h2.respond(stream, status, body=body)
        self.flush()

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_body(stream, data, end=end)
        self.flush()

    def frame(self, stream: int, payload: bytes) -> None:
        self.send(stream, emit_frame(payload))


def run(scenario: Callable[[], Any]) -> None:
    """One scenario in a loop of its own, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())
