"""Readers, writers and servers over TunnelSockets, under both event loops."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import uvloop

from meshnode.base.addr import Endpoint
from meshnode.base.keys import NodePublic
from meshnode.engine.flow import TunnelSocket
from meshnode.tunnel.listener import Server
from meshnode.tunnel.streams import TunnelWriter, open_streams

LOCAL = Endpoint(IPv6Address("fd7a:115c:a1e0::1"), 80)
REMOTE = Endpoint(IPv4Address("100.64.0.2"), 41000)
KEY = NodePublic(b"\x05" * 32)

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def go(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work, 10))

    return go


def pair() -> tuple[TunnelSocket, socket.socket]:
    """A TunnelSocket and the engine's end of it."""
    ours, engines = socket.socketpair()
    engines.setblocking(False)
    return TunnelSocket(ours.detach(), local=LOCAL, remote=REMOTE, peer_key=KEY, flow_id=1), engines


class FakeListener:
    port = 80

    def __init__(self) -> None:
        self._queue: asyncio.Queue[TunnelSocket | None] = asyncio.Queue()
        self._source = self._iterate()

    def connect(self) -> socket.socket:
        ours, engines = pair()
        self._queue.put_nowait(ours)
        return engines

    async def _iterate(self) -> AsyncIterator[TunnelSocket]:
        while (sock := await self._queue.get()) is not None:
            yield sock

    async def __anext__(self) -> TunnelSocket:
        return await anext(self._source)

    def close(self) -> None:
        self._queue.put_nowait(None)


def test_names_bytes_and_half_close(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        sock, engines = pair()
        reader, writer = await open_streams(sock)
        assert writer.get_extra_info("peername") == ("100.64.0.2", 41000)
        assert writer.get_extra_info("sockname") == ("fd7a:115c:a1e0::1", 80, 0, 0)
        assert writer.get_extra_info("meshnode.peer_key") == KEY
        assert writer.get_extra_info("nonsense", 7) == 7
        writer.write(b"to them")
        writer.write_eof()
        assert await loop.sock_recv(engines, 100) == b"to them"
        assert await loop.sock_recv(engines, 100) == b""
        await loop.sock_sendall(engines, b"to us")
        engines.close()
        assert await reader.read() == b"to us"
        writer.close()
        await writer.wait_closed()

    run(work())


def test_a_reset_is_no_clean_end(run: Run) -> None:
    async def work() -> None:
        sock, engines = pair()
        reader, writer = await open_streams(sock)
        await asyncio.get_running_loop().sock_sendall(engines, b"part")
        assert await reader.readexactly(4) == b"part"
        sock.error = errno.ECONNRESET
        engines.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    run(work())


def test_server_serves_and_ends(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        seen: list[Any] = []

        async def echo(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
            seen.append(writer.get_extra_info("peername"))
            writer.write(await reader.read())
            writer.close()

        listener = FakeListener()
        server = Server(listener, echo)  # type: ignore[arg-type]
        async with server:
            clients = [listener.connect() for _ in range(20)]
            for number, client in enumerate(clients):
                await loop.sock_sendall(client, b"%d" % number)
                client.shutdown(socket.SHUT_WR)
            for number, client in enumerate(clients):
                assert await loop.sock_recv(client, 10) == b"%d" % number
                client.close()
        assert not server.is_serving()
        assert seen == [("100.64.0.2", 41000)] * 20
        await server.aclose()

    run(work())


def test_a_failing_handler_ends_its_connection_only(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        reports: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: reports.append(context))

        async def fail(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
            if await reader.readexactly(1) == b"x":
                raise RuntimeError("boom")
            writer.write(b"fine")
            writer.close()

        listener = FakeListener()
        server = Server(listener, fail)  # type: ignore[arg-type]
        bad, good = listener.connect(), listener.connect()
        await loop.sock_sendall(bad, b"x")
        assert await loop.sock_recv(bad, 10) == b""
        await loop.sock_sendall(good, b"y")
        assert await loop.sock_recv(good, 10) == b"fine"
        assert [str(report["exception"]) for report in reports] == ["boom"]
        await server.aclose()
        bad.close()
        good.close()

    run(work())


def test_aclose_ends_handlers(run: Run) -> None:
    async def work() -> None:
        started = asyncio.Event()

        async def forever(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
            started.set()
            await asyncio.Event().wait()

        listener = FakeListener()
        server = Server(listener, forever)  # type: ignore[arg-type]
        client = listener.connect()
        await started.wait()
        await server.aclose()
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        client.close()

    run(work())
