"""Relays behind nginx, which passes WebSocket and strips every other upgrade; and answers that are no WebSocket."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from interop.peers.front import nginx_words
from meshnode.control.server import ControlServer
from meshnode.node.netview import view_of
from meshnode.node.node import Node
from meshnode.relay.check import check
from meshnode.relay.server import RelayServer
from meshnode.run.clock import Clock
from meshnode.tunnel.streams import TunnelWriter
from tests.e2e.town import LOOPS, REGION, relay_json, run, see_each_other, until

loops = pytest.mark.parametrize("loop", LOOPS)
MIB = 1 << 20


@pytest.fixture(autouse=True)
def needs_nginx() -> None:
    if shutil.which("nginx") is None:
        assert not os.environ.get("CI"), "needs nginx"
        pytest.skip("needs nginx")


@dataclass
class Street:
    """A control server, and a relay that is reached through nginx only."""

    control: ControlServer
    relay: RelayServer
    port: int
    log: Path
    ca: str

    def node(self, name: str) -> Node:
        return Node(
            control_url=self.control.url, auth_key=self.control.add_key(), hostname=name, state_dir="mem:",
            plain_relays=not self.ca, ca_file=self.ca, use_loopback=True, paths="relay", proxy="off",
        )  # fmt: skip

    def answers(self) -> list[str]:
        """What nginx answered to /derp, in order; 101 when a WebSocket has ended."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split('"')[2].split()[0] for line in lines if '"GET /derp ' in line]

    @property
    def websockets(self) -> int:
        return self.relay.stats()["websockets"]


@asynccontextmanager
async def make_street(folder: Path, certificates: tuple[Path, Path, Path] | None = None) -> AsyncIterator[Street]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    relay = RelayServer()
    await relay.start()
    backend = f"http://127.0.0.1:{relay.port}"
    words = nginx_words(folder, "127.0.0.1", port, backend, certificates[1:] if certificates else None)
    process = await asyncio.create_subprocess_exec(*words)
    try:
        async with asyncio.timeout(20):
            while True:
                assert process.returncode is None, (folder / "error.log").read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        writer.transport.abort()
        regions = {"Regions": {str(REGION): relay_json(port)}}
        async with ControlServer(clock=Clock(), relays=regions) as control:
            yield Street(control, relay, port, folder / "access", str(certificates[0]) if certificates else "")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await relay.aclose()


async def digest(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
    """Answers with the SHA-256 of what it hears, and hears all."""
    found = hashlib.sha256()
    while data := await reader.read(65536):
        found.update(data)
    writer.write(found.digest())
    writer.write_eof()
    writer.close()


@loops
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_frames_pass_where_only_websocket_does(
    loop: str, tls: bool, tmp_path: Path, certificates: tuple[Path, Path, Path]
) -> None:
    async def work() -> None:
        async with make_street(tmp_path, certificates if tls else None) as street:
            async with street.node("one") as one, street.node("other") as other:
                await one.ready(timeout=15)
                await other.ready(timeout=15)
                await see_each_other(one, other)
                pong = await one.ping("other", timeout=10)
                assert pong.endpoint is None and pong.region == REGION
                assert view_of(one._running()).to_json()["Home"]["WebSocket"] is True
                assert street.websockets == 2 and street.answers() == ["426", "426"]
                await other.start_server(digest, 80)
                question = os.urandom(8 * MIB)
                reader, writer = await one.open_connection("other", 80)
                writer.write(question)
                writer.write_eof()
                assert await reader.read() == hashlib.sha256(question).digest()
                writer.close()
                await writer.wait_closed()

    run(loop, work, bound_s=60)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_look_from_outside_says_what_passes(tls: bool, tmp_path: Path, certificates: tuple[Path, Path, Path]) -> None:
    async def work() -> None:
        async with make_street(tmp_path, certificates if tls else None) as street:
            found = await check("127.0.0.1", street.port)
            (refused,) = [f for f in found if f.step == "upgrade"]
            assert refused.text == "HTTP status 426 instead of an upgrade; WebSocket passes" and not refused.ok
            assert "stock clients cannot" in refused.mend

    run("asyncio", work)


def test_the_way_is_remembered(tmp_path: Path) -> None:
    """After a break the first attempt is by WebSocket: no more answers that refuse an upgrade."""

    async def work() -> None:
        async with make_street(tmp_path) as street:
            async with street.node("one") as one:
                await one.ready(timeout=15)
                await until(lambda: street.websockets == 1, "connected")
                assert one.netmap is not None
                street.relay.close_keys([one.netmap.self_node.key])
                await until(lambda: street.websockets == 2, "connected again")
                await until(lambda: street.answers() == ["426", "101"], "one refusal in all")

    run("asyncio", work)
