"""Control and relays through HTTP proxies on loopback: Debian's tinyproxy and squid, and odd ones of our own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from interop.peers.forward import Kind, credentials, squid_words, tinyproxy_words
from meshnode.base.addr import RegionId
from meshnode.base.errors import ProxyError, ProxyPassword
from meshnode.base.proxy import Proxy
from meshnode.control.server import ControlServer
from meshnode.core.proxies import Proxies
from meshnode.netmap.model import RelayNode
from meshnode.node.node import Node
from meshnode.relay.check import check
from meshnode.relay.dial import connect_node
from meshnode.relay.options import DialOptions
from meshnode.relay.server import RelayServer
from meshnode.run.clock import Clock
from meshnode.run.connect import connect_through
from tests.e2e.town import LOOPS, REGION, make_town, open_files, relay_json, run, see_each_other, until

loops = pytest.mark.parametrize("loop", LOOPS)
kinds = pytest.mark.parametrize("kind", ["tinyproxy", "squid"])


@pytest.fixture(autouse=True)
def needs_the_real_ones() -> None:
    missing = [name for name in ("tinyproxy", "squid") if shutil.which(name) is None]
    if missing:
        assert not os.environ.get("CI"), f"needs {', '.join(missing)}"
        pytest.skip(f"needs {', '.join(missing)}")


class Forward:
    """A running proxy."""

    def __init__(self, kind: Kind, folder: Path, port: int, guarded: bool) -> None:
        self.port = port
        self.where = f"127.0.0.1:{port}"
        self.url = f"http://{credentials(kind) if guarded else ''}{self.where}"
        self.open_url = f"http://{self.where}"
        self._log = folder / "access"

    def asked(self, target: str) -> int:
        """How many CONNECTs for host:port its log has."""
        return self._log.read_text(errors="replace").count(f"CONNECT {target} ") if self._log.exists() else 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of the proxy's own: squid gives root up, and pytest's are closed to others."""
    with tempfile.TemporaryDirectory(prefix="meshnode-proxy-") as made:
        Path(made).chmod(0o777)
        yield Path(made)


@asynccontextmanager
async def forward(kind: Kind, folder: Path, *, guarded: bool = False, port: int = 0) -> AsyncIterator[Forward]:
    """tinyproxy or squid on a port of loopback, any by default."""
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
    words = (tinyproxy_words if kind == "tinyproxy" else squid_words)(folder, "127.0.0.1", port, guarded=guarded)
    with (folder / "said").open("wb") as said:
        process = await asyncio.create_subprocess_exec(*words, stdout=said, stderr=said)
    try:
        async with asyncio.timeout(20):
            while True:
                assert process.returncode is None, (folder / "said").read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        writer.transport.abort()
        yield Forward(kind, folder, port, guarded)
    finally:
        if process.returncode is None:
            process.kill()  # squid would take two seconds over its end
        await process.wait()


async def reaches(one: Node, other: Node) -> None:
    """A pong, and it came by relay."""
    await see_each_other(one, other)
    pong = await one.ping(other.name, timeout=10)
    assert pong.endpoint is None and pong.region == REGION


@pytest.mark.parametrize(("kind", "loop"), [("tinyproxy", "asyncio"), ("tinyproxy", "uvloop"), ("squid", "asyncio")])
@pytest.mark.parametrize("guarded", [False, True], ids=["open", "password"])
def test_a_node_joins_and_is_relayed_through_a_proxy(loop: str, kind: Kind, guarded: bool, folder: Path) -> None:
    async def work() -> None:
        async with forward(kind, folder, guarded=guarded) as proxy:
            async with make_town(paths="relay") as town:
                targets = (town.control.url.rpartition("/")[2], f"127.0.0.1:{town.relay.port}")
                inside = await town.join("inside", proxy=proxy.url)
                outside = await town.join("outside")
                await reaches(inside, outside)
                await reaches(outside, inside)
            # squid writes a line when the connection has ended.
            await until(lambda: all(proxy.asked(target) for target in targets), "both are in the proxy's log")

    run(loop, work)


@asynccontextmanager
async def tls_town(certificates: tuple[Path, Path, Path]) -> AsyncIterator[tuple[ControlServer, RelayServer]]:
    """Control and relay with certificates of a private authority."""
    _, certificate, key = certificates
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    relay = RelayServer(tls=certificate.read_bytes() + key.read_bytes())
    await relay.start()
    try:
        regions = {"Regions": {str(REGION): relay_json(relay.port)}}
        async with ControlServer(clock=Clock(), relays=regions, tls=tls) as control:
            yield control, relay
    finally:
        await relay.aclose()


@asynccontextmanager
async def tls_front(certificates: tuple[Path, Path, Path], where: str) -> AsyncIterator[str]:
    """URL of a proxy that is spoken to over TLS: a front that passes what is inside on to `where`."""
    _, certificate, key = certificates
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    host, _, port = where.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@loops
@pytest.mark.parametrize("front", ["http", "https"])
def test_tls_inside_the_proxys_tunnel(
    loop: str, front: str, folder: Path, certificates: tuple[Path, Path, Path]
) -> None:
    """https: the proxy itself is spoken to over TLS as well, so that there is TLS within TLS."""

    async def work() -> None:
        async with forward("tinyproxy", folder) as proxy, tls_town(certificates) as (control, relay):
            async with tls_front(certificates, proxy.where) as secure:
                about: dict[str, Any] = {
                    "control_url": control.url, "state_dir": "mem:", "ca_file": str(certificates[0]), "paths": "relay",
                }  # fmt: skip
                way = proxy.url if front == "http" else secure
                inside = Node(hostname="inside", auth_key=control.add_key(), proxy=way, **about)
                outside = Node(hostname="outside", auth_key=control.add_key(), proxy="off", **about)
                async with inside, outside:
                    await inside.ready(timeout=15)
                    await outside.ready(timeout=15)
                    await reaches(inside, outside)
                    assert proxy.asked(control.url.rpartition("/")[2]) >= 1
                    assert proxy.asked(f"127.0.0.1:{relay.port}") >= 1
                await until(lambda: len(asyncio.all_tasks()) <= 1, "the front's connections end")

    run(loop, work)


def test_a_relay_is_looked_at_through_the_proxy(folder: Path, certificates: tuple[Path, Path, Path]) -> None:
    async def work() -> None:
        async with forward("tinyproxy", folder, guarded=True) as proxy, tls_town(certificates) as (_, relay):
            found = await check("127.0.0.1", relay.port, ca_file=str(certificates[0]), proxies=Proxies(proxy.url))
            steps = ["TCP", "TLS", "certificate", "upgrade", "latency", "clock"]
            assert [f.step for f in found] == steps and all(f.ok for f in found), found
            assert found[0].text.startswith(f"connected through the proxy {proxy.where} in ")
            found = await check("127.0.0.1", relay.port, proxies=Proxies(proxy.open_url))
            assert [(f.step, f.ok) for f in found] == [("proxy", False)] and "(407)" in found[0].text

    run("asyncio", work)


@kinds
def test_a_password_that_is_missing_or_wrong_is_said_so(kind: Kind, folder: Path) -> None:
    async def work() -> None:
        async with forward(kind, folder, guarded=True) as proxy, make_town() as town:
            wrong = f"http://clerk:secret@{proxy.where}"
            for url, said in (
                (proxy.open_url, f"the proxy {proxy.where} wants a user name and password (407)"),
                (wrong, f"the proxy {proxy.where} does not take the user name and password of proxy (40"),
            ):
                async with town.node("nobody", proxy=url) as node:
                    with pytest.raises(ProxyPassword) as caught:
                        await node.ready(timeout=20)
                    assert said in str(caught.value) and "secret" not in str(caught.value)

    run("asyncio", work)


@loops
def test_a_proxy_that_comes_back_is_used_again(loop: str, folder: Path) -> None:
    async def work() -> None:
        async with make_town(paths="relay") as town:
            async with forward("tinyproxy", folder) as proxy:
                inside = await town.join("inside", proxy=proxy.url)
                outside = await town.join("outside")
                await reaches(inside, outside)
            await until(lambda: town.relay.client_count == 1, "the relay lost the node inside")
            async with forward("tinyproxy", folder, port=proxy.port):
                await until(lambda: town.relay.client_count == 2, "the relay has it again", 20.0)
                await reaches(outside, inside)

    run(loop, work, bound_s=60)


def test_a_refused_password_is_not_tried_in_a_row(folder: Path) -> None:
    """Accounts are locked for that: the relay's next attempts fail by themselves for a while."""

    async def work() -> None:
        async with forward("tinyproxy", folder, guarded=True) as proxy:
            options = DialOptions(plain=True, proxies=Proxies(f"http://clerk:secret@{proxy.where}"))
            node = RelayNode("a", RegionId(REGION), "127.0.0.1", port=9, stun_port=-1)
            for _ in range(3):
                with pytest.raises(ProxyPassword, match="does not take the user name and password"):
                    await connect_node(node, options)
            assert proxy.asked("127.0.0.1:9") == 1

    run("asyncio", work)


def test_ports_that_squid_refuses_are_said_so(folder: Path) -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        words = squid_words(folder, "127.0.0.1", port, guarded=False, ports=(443,))
        process = await asyncio.create_subprocess_exec(*words)
        try:
            proxy = Proxy("127.0.0.1", port)
            error: ProxyError | None = None
            async with asyncio.timeout(20):
                while error is None or "cannot reach the proxy" in str(error):
                    with pytest.raises(ProxyError) as caught:
                        await connect_through(proxy, "127.0.0.1", 8080)
                    error = caught.value
                    await asyncio.sleep(0.02)
            assert str(error) == (
                f"the proxy {proxy} does not allow connections to 127.0.0.1:8080 (403 Forbidden); "
                "many allow port 443 only"
            )
        finally:
            process.kill()
            await process.wait()

    run("asyncio", work)


@asynccontextmanager
async def odd_proxy(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[Proxy]:
    """What hears something, answers as it likes, and waits for the client to go."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(65536)
            await answer(writer)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Proxy("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


@loops
def test_bytes_that_come_with_the_answer_stay_in_the_socket(loop: str) -> None:
    async def talkative(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nVia: odd\r\n\r\nhello from behind")
        writer.close()

    async def work() -> None:
        async with odd_proxy(talkative) as proxy:
            sock = await connect_through(proxy, "a", 443)
            reader, writer = await asyncio.open_connection(sock=sock)
            assert await reader.read() == b"hello from behind"
            writer.close()

    run(loop, work)


@loops
def test_what_is_wrong_with_a_proxy_is_said(loop: str) -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async def rude(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def foreign(writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")

    async def work() -> None:
        for way, wait_s, said in (
            (silent, 0.4, "no answer from the proxy {}: nothing within 0 s"),
            (rude, 10.0, "what answers at {} closed the connection without an answer; proxy names it as one"),
            (foreign, 10.0, "what answers at {} is no HTTP proxy; proxy names it as one"),
        ):
            async with odd_proxy(way) as proxy:
                with pytest.raises(ProxyError) as caught:
                    await connect_through(proxy, "a", 443, timeout_s=wait_s)
                assert str(caught.value) == said.format(proxy)
        async with odd_proxy(foreign) as proxy:
            with pytest.raises(ProxyError, match=rf"the proxy {proxy} does not speak TLS; try http:// in proxy"):
                await connect_through(Proxy("127.0.0.1", proxy.port, is_tls=True), "a", 443)
        with pytest.raises(ProxyError, match=r"cannot reach the proxy 127.0.0.1:1: connection refused"):
            await connect_through(Proxy("127.0.0.1", 1), "a", 443)
        with pytest.raises(ProxyError, match=r"cannot reach the proxy nowhere.invalid:1: its name does not resolve"):
            await connect_through(Proxy("nowhere.invalid", 1), "a", 443)

    run(loop, work)  # the first loop of its kind opens what it keeps
    before = open_files()
    run(loop, work)
    assert open_files() <= before
