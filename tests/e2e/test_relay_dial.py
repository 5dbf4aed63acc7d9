"""How a region is reached: which node, which family, how long each is given, and what TLS is asked for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.base.addr import RegionId
from meshnode.base.errors import RelayError
from meshnode.base.keys import NodePrivate
from meshnode.control.dial import Route, Server, make_tls, open_pipe
from meshnode.core.lanes import Lanes
from meshnode.engine.engine import Engine
from meshnode.netmap.model import RelayNode, RelayRegion
from meshnode.relay import dial
from meshnode.relay.dial import connect_node, dial_region
from meshnode.relay.link import Link
from meshnode.relay.options import DialOptions
from meshnode.run.clock import Clock
from tests.e2e.town import LOOPS, run, until

loops = pytest.mark.parametrize("loop", LOOPS)
CLOCK = Clock()
REGION = RegionId(900)
REFUSAL = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


def make_link() -> Link:
    return Link(
        NodePrivate.generate(CLOCK.entropy), Lanes(), clock=CLOCK,
        on_packet=lambda *_: None, on_gone=lambda *_: None, on_health=lambda _: None,
    )  # fmt: skip


def region(*nodes: RelayNode) -> RelayRegion:
    return RelayRegion(REGION, "r", "r", nodes)


def node(name: str, port: int, **about: Any) -> RelayNode:
    return RelayNode(name, REGION, about.pop("host", "127.0.0.1"), port=port, stun_port=-1, **about)


@asynccontextmanager
async def listening(*hosts: str, heard: list[tuple[str, bytes]], **tls: Any) -> AsyncIterator[int]:
    """One port of these addresses; notes (local address, first bytes) and refuses."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            data = await reader.read(65536)
            heard.append((writer.get_extra_info("sockname")[0], data))
            writer.write(REFUSAL)
            await reader.read()
        writer.close()

    first = await asyncio.start_server(serve, hosts[0], 0, **tls)
    servers = [first]
    port = first.sockets[0].getsockname()[1]
    try:
        for host in hosts[1:]:
            servers.append(await asyncio.start_server(serve, host, port, **tls))
        yield port
    finally:
        for server in servers:
            server.close()


def play(loop: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def calm() -> None:
        await work()
        await until(lambda: len(asyncio.all_tasks()) <= 1, "every connection has ended")

    run(loop, calm)


@loops
def test_the_second_node_is_told_which_would_have_been_the_first(loop: str) -> None:
    async def work() -> None:
        heard: list[tuple[str, bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as unused:
            free = unused.getsockname()[1]
        async with listening("127.0.0.1", heard=heard) as port:
            nodes = region(node("a", free), node("b", port), node("c", port, stun_only=True))
            with pytest.raises(RelayError, match=r"127.0.0.1:\d+: .*refused.*; 127.0.0.1:\d+: HTTP status 503"):
                await dial_region(nodes, DialOptions(plain=True), make_link)
            with pytest.raises(RelayError):
                await dial_region(region(node("a", port)), DialOptions(plain=True), make_link)
        second, first = (data for _, data in heard)
        assert b"\r\nIdeal-Node: a\r\n" in second and b"Ideal-Node" not in first

    play(loop, work)


def test_a_node_that_says_nothing_has_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "NODE_S", 0.3)

    async def work() -> None:
        heard: list[tuple[str, bytes]] = []
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(8)]
            for each in waiting:  # more than its queue takes: the next SYN is dropped
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            async with listening("127.0.0.1", heard=heard) as port:
                with pytest.raises(RelayError, match=r"no answer in time; 127.0.0.1:\d+: HTTP status 503"):
                    await dial_region(
                        region(node("a", full.getsockname()[1]), node("b", port)), DialOptions(plain=True), make_link
                    )
            for each in waiting:
                each.close()
        assert len(heard) == 1

    play("asyncio", work)


def test_a_region_has_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that take a connection and say nothing: one time for all of them."""
    monkeypatch.setattr(dial, "TOTAL_S", 0.3)

    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(RelayError, match=r"no answer in time; 127.0.0.1:\d+: no answer in time"):
                await dial_region(region(node("a", port), node("b", port)), DialOptions(plain=True), make_link)
            assert 0.25 <= loop.time() - started < 5.0

    play("asyncio", work)


@loops
@pytest.mark.parametrize(
    ("about", "prefers_v6", "expected"),
    [
        ({"ipv4": "127.0.0.1", "ipv6": "::1"}, True, "::1"),
        ({"ipv4": "none", "host": "::1"}, False, "::1"),
        ({"ipv6": "none", "host": "localhost"}, True, "127.0.0.1"),
        ({"ipv4": "127.0.0.1", "ipv6": "none"}, True, "127.0.0.1"),
    ],
)
def test_families_are_used_as_the_map_and_the_network_want(
    loop: str, about: dict[str, str], prefers_v6: bool, expected: str
) -> None:
    async def work() -> None:
        heard: list[tuple[str, bytes]] = []
        async with listening("127.0.0.1", "::1", heard=heard) as port:
            options = DialOptions(plain=True, prefers_v6=prefers_v6)
            sock = await connect_node(node("a", port, **about), options)
            assert sock.getpeername()[0] == expected
            sock.close()
            await until(lambda: len(heard) == 1, "it was noticed")  # the other family was not even tried

    play(loop, work)


@loops
def test_ipv4_does_not_wait_for_an_ipv6_that_fails(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "V4_AFTER_S", 60.0)

    async def work() -> None:
        heard: list[tuple[str, bytes]] = []
        async with listening("127.0.0.1", heard=heard) as port:
            options = DialOptions(plain=True, prefers_v6=True)
            sock = await connect_node(node("a", port, ipv4="127.0.0.1", ipv6="::1"), options)
            assert sock.getpeername()[0] == "127.0.0.1"
            sock.close()

    play(loop, work)


def test_a_relay_that_goes_between_tls_and_the_first_word_is_a_failed_dial() -> None:
    """The end comes in the same turn as the end of the handshake: an error as any other, and nothing is cancelled."""

    async def work() -> None:
        async def adopt(sock: socket.socket, link: Link, *_: object) -> Any:
            sock.close()
            link.eof_received()
            return SimpleNamespace(certificate=b"", relay_key=b"")

        async with listening("127.0.0.1", heard=[]) as port:
            with pytest.raises(RelayError, match="the relay closed the connection"):
                await dial_region(region(node("a", port)), DialOptions(plain=True, carrier=adopt), make_link)

    play("asyncio", work)


def test_http2_is_never_agreed_on(certificates: tuple[Path, Path, Path]) -> None:
    """A server that would rather speak it is asked for nothing else than HTTP/1.1."""
    ca, certificate, key = certificates
    agreed: list[str | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agreed.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    async def work() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        tls.set_alpn_protocols(["h2", "http/1.1"])
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        engine = await Engine.start(NodePrivate.generate(CLOCK.entropy))
        for carrier in (None, engine.adopt_relay):
            with pytest.raises(RelayError):
                await dial_region(region(node("a", port)), DialOptions(str(ca), carrier=carrier), make_link)
        pipe = await open_pipe(Server.parse(f"https://127.0.0.1:{port}"), Route(make_tls(str(ca))))
        pipe.close()
        await until(lambda: len(agreed) == 3, "all three have agreed")
        await engine.aclose()
        server.close()
        assert agreed == [None, None, "http/1.1"]

    play("asyncio", work)
