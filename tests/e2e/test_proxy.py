"""The SOCKS5 door: names by the node, refusals by their reason, halves and resets carried."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

import pytest

from meshnode.base.errors import (
    AccessDenied,
    ConfigError,
    DialError,
    ListenError,
    MeshError,
    NameNotFound,
    PeerOffline,
    Refused,
    TimedOut,
)
from meshnode.tunnel.proxy import Socks5Door, is_loopback, reply_for, socks5_door
from meshnode.tunnel.splice import splice
from meshnode.tunnel.streams import TunnelWriter
from meshnode.wire.socks5 import Reply
from tests.e2e.town import LOOPS, make_town, open_files, run, until

loops = pytest.mark.parametrize("loop", LOOPS)


async def through(door: Socks5Door, host: bytes, port: int) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """The door's answer to a request for a name, and the streams."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes([len(host)]) + host + port.to_bytes(2, "big"))
    assert await reader.readexactly(2) == b"\x05\x00"
    head = await reader.readexactly(4)
    await reader.readexactly(6 if head[3] == 1 else 18)
    return head[1], reader, writer


async def backwards(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
    """Answers only once the caller has ended its half."""
    data = await reader.read()
    writer.write(data[::-1])
    await writer.drain()
    writer.close()


@loops
def test_names_are_resolved_by_the_node_and_halves_travel(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            await other.start_server(backwards, 80)
            data = os.urandom(1 << 20)
            async with socks5_door("127.0.0.1:0")(one) as door:
                for host in ("other", other.name, str(other.addresses[0])):
                    code, reader, writer = await through(door, host.encode(), 80)
                    assert code == Reply.SUCCEEDED
                    writer.write(data)
                    writer.write_eof()
                    assert await reader.read() == data[::-1]
                    writer.close()

    run(loop, work)


@loops
def test_many_at_once_and_nothing_left(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            await other.start_server(backwards, 80)
            async with socks5_door("127.0.0.1:0")(one) as door:

                async def ask(number: int) -> None:
                    code, reader, writer = await through(door, b"other", 80)
                    assert code == Reply.SUCCEEDED
                    writer.write(b"%d" % number)
                    writer.write_eof()
                    assert await reader.read() == (b"%d" % number)[::-1]
                    writer.close()

                await ask(0)
                before = open_files()
                await asyncio.gather(*(ask(number) for number in range(100)))
                await until(lambda: open_files() <= before + 2, "descriptors are given back")

    run(loop, work, bound_s=60)


def test_refusals_say_why() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, _ = await town.pair()
            async with socks5_door("127.0.0.1:0")(one) as door:
                for host, port, wanted in (
                    (b"other", 81, Reply.REFUSED),
                    (b"nobody", 80, Reply.HOST_UNREACHABLE),
                    (b"127.0.0.1", 22, Reply.NETWORK_UNREACHABLE),
                    (b"169.254.169.254", 80, Reply.NETWORK_UNREACHABLE),
                    (b"localhost", 22, Reply.HOST_UNREACHABLE),
                ):
                    code, reader, writer = await through(door, host, port)
                    assert code == wanted, host
                    assert await reader.read() == b""
                    writer.close()
                assert door.refused_count == 5

    run("asyncio", work)


@pytest.mark.parametrize(
    ("error", "host", "code"),
    [
        (NameNotFound("x"), "x", Reply.HOST_UNREACHABLE),
        (NameNotFound("x"), "10.0.0.1", Reply.NETWORK_UNREACHABLE),
        (AccessDenied("x"), "x", Reply.NOT_ALLOWED),
        (Refused("x"), "x", Reply.REFUSED),
        (PeerOffline("x"), "x", Reply.HOST_UNREACHABLE),
        (TimedOut("x"), "x", Reply.HOST_UNREACHABLE),
        (DialError("x"), "x", Reply.GENERAL_FAILURE),
    ],
)
def test_each_error_has_its_reply(error: MeshError, host: str, code: Reply) -> None:
    assert reply_for(error, host) is code


async def nowhere(host: str, port: int) -> Any:
    raise NameNotFound(f"no {host}")


def test_other_protocols_and_silent_clients_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with Socks5Door(nowhere, "127.0.0.1", 0) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"GET http://other/ HTTP/1.1\r\n\r\n")
            assert await _rest(reader) == b""
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            async with asyncio.timeout(5):
                assert await _rest(reader) == b""
            writer.close()

    monkeypatch.setattr("meshnode.tunnel.proxy.HANDSHAKE_S", 0.2)
    run("asyncio", work)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_a_password_guards_a_door_for_others() -> None:
    async def work() -> None:
        def check(user: bytes, password: bytes) -> bool:
            return (user, password) == (b"ada", b"secret")

        async with Socks5Door(nowhere, "0.0.0.0", 0, check=check) as door:
            for password, wanted in ((b"wrong!", b"\x05\x02\x01\x01"), (b"secret", b"\x05\x02\x01\x00")):
                reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
                writer.write(b"\x05\x01\x02" + b"\x01\x03ada\x06" + password)
                assert await reader.readexactly(4) == wanted
                writer.close()

    run("asyncio", work)


@pytest.mark.parametrize("text", ["0.0.0.0:1080", "[::]:1080", "192.0.2.1:1080", "example.com:1080"])
def test_doors_that_others_reach_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"use 127\.0\.0\.1:1080"):
        socks5_door(text)


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))


def test_a_taken_port_is_one_sentence() -> None:
    async def work() -> None:
        async with Socks5Door(nowhere, "127.0.0.1", 0) as door:
            with pytest.raises(ListenError, match="another program has it; choose another port"):
                async with Socks5Door(nowhere, "127.0.0.1", door.port):
                    pass

    run("asyncio", work)


@loops
def test_a_reset_on_one_side_is_a_reset_on_the_other(loop: str) -> None:
    async def work() -> None:
        near, far = _tcp_pair(), _tcp_pair()
        joined = asyncio.ensure_future(splice(near[1], far[0]))
        near[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        near[0].close()
        async with asyncio.timeout(5):
            await joined
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(far[1], 1)
        far[1].close()

    run(loop, work)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other
