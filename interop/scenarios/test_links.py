"""Addresses and links that change under two engines: plain WireGuard peers, in namespaces on one bridge.

`here` roams in the eyes of `there` and the other way round, so that no control plane helps. A connection is
held through everything; each step exchanges bytes both ways and asks which addresses the datagrams carried.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from interop.lab import Host, Lab, missing_tools
from meshnode.base.addr import IP, Endpoint, parse_ip, parse_prefix
from meshnode.base.keys import NodePrivate
from meshnode.engine.engine import PATH_DIRECT, PATH_NONE, Engine
from meshnode.engine.flow import TunnelSocket
from meshnode.netmap.rules import allow_all

BLOCK = 200_000
WAIT_S = 30.0


def ip(host: Host, *words: str) -> None:
    subprocess.run(["ip", "-n", host.namespace, *words], check=True, capture_output=True)


@dataclass
class Member:
    host: Host
    engine: Engine
    private: NodePrivate
    address: IPv4Address
    heard_from: list[IP] = field(default_factory=list)

    def underlay(self, version: int) -> IP:
        return parse_ip(self.host.v4 if version == 4 else self.host.v6)


@dataclass
class Two:
    here: Member
    there: Member
    client: TunnelSocket
    server: TunnelSocket

    async def exchange(self) -> None:
        """Bytes both ways; a change of the network may cost seconds, never the connection."""
        loop = asyncio.get_running_loop()

        async def take(sock: TunnelSocket) -> None:
            got = 0
            while got < BLOCK:
                got += len(await loop.sock_recv(sock, BLOCK - got))

        async with asyncio.timeout(WAIT_S):
            for source, target in ((self.server, self.client), (self.client, self.server)):
                await asyncio.gather(loop.sock_sendall(source, bytes(BLOCK)), take(target))

    def where_from(self, member: Member) -> set[IP]:
        """The addresses its last datagrams came from, since the last question."""
        found = set(member.heard_from)
        member.heard_from.clear()
        return found


async def start(host: Host, number: int) -> Member:
    private = NodePrivate.generate(os.urandom)
    with host.inside():
        engine = await Engine.start(private)
    member = Member(host, engine, private, IPv4Address(f"100.64.0.{number}"))
    engine.set_addresses([member.address])
    engine.set_filter(allow_all())

    def heard(_peer: object, direct: Endpoint | None, _region: int, _what: int) -> None:
        if direct is not None:
            member.heard_from.append(direct.ip)

    engine.on_peer_recv = heard
    return member


@contextlib.asynccontextmanager
async def two(lab: Lab, target: str | None = None, version: int = 4) -> AsyncIterator[Two]:
    """`here` knows where `there` is (at `target`, or its first address); `there` has to learn."""
    here, there = await start(lab.hosts["here"], 1), await start(lab.hosts["there"], 2)
    try:
        for member, other in ((here, there), (there, here)):
            ranges = [parse_prefix(f"{other.address}/32")]
            member.engine.upsert_peer(other.private.public(), ranges, roams=True)
        place = Endpoint(parse_ip(target) if target else there.underlay(version), there.engine.port4)
        here.engine.set_path(there.private.public(), place, 0, PATH_DIRECT)
        there.engine.set_path(here.private.public(), None, 0, PATH_NONE)
        listener = await there.engine.listen(None, 80)
        async with asyncio.timeout(WAIT_S):
            client, server = await asyncio.gather(here.engine.connect(there.address, 80), anext(listener))
        yield Two(here, there, client, server)
        client.close()
        server.close()
    finally:
        await here.engine.aclose()
        await there.engine.aclose()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab for one test; no real peer is needed."""
    if missing := missing_tools():
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"the interop suite needs: {', '.join(missing)}")
    with Lab(tmp_path / "lab") as made:
        made.host("here")
        made.host("there")
        yield made


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def until(claim: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < limit, f"never came true: {what}"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("version", [4, 6])
def test_answers_leave_from_the_address_that_was_asked(lab: Lab, version: int) -> None:
    """netns.sh 17 and 18: a second address of `there`; the system alone would answer from the first."""
    second = "10.77.0.202" if version == 4 else "fd77::202"
    first = lab.hosts["there"].v4 if version == 4 else lab.hosts["there"].v6
    ip(lab.hosts["there"], "address", "add", f"{second}/{24 if version == 4 else 64}", "dev", "eth0",
       *(() if version == 4 else ("nodad", "preferred_lft", "0")))  # fmt: skip

    async def work() -> None:
        async with two(lab, second, version) as t:
            await t.exchange()
            assert t.where_from(t.here) == {parse_ip(second)}
            prefix = 24 if version == 4 else 64
            ip(lab.hosts["there"], "address", "del", f"{second}/{prefix}", "dev", "eth0")
            t.where_from(t.here)
            await t.exchange()  # begins with bytes from `there`: `here` learns its other address from them
            assert t.where_from(t.here) == {parse_ip(first)}
            numbers = t.there.engine.stats()
            assert numbers["udp_tx_unpinned"] >= 1
            assert numbers["udp_tx_fallbacks"] == 0

    run(work)


def test_an_address_that_changes(lab: Lab) -> None:
    """netns.sh 6: `here` gets another address; `there` follows the first authentic datagram."""
    host = lab.hosts["here"]

    async def work() -> None:
        async with two(lab) as t:
            await t.exchange()
            port = t.here.engine.port4
            rebound: list[int] = []
            t.here.engine.on_rebound = rebound.append
            ip(host, "address", "del", f"{host.v4}/24", "dev", "eth0")
            ip(host, "address", "add", "10.77.0.111/24", "dev", "eth0")
            t.here.engine.rebind()
            await until(lambda: rebound, "the sockets are new")
            assert rebound == [0] and t.here.engine.port4 == port
            t.where_from(t.there)
            t.here.engine.kick(t.there.private.public())
            await t.exchange()
            assert t.where_from(t.there) == {parse_ip("10.77.0.111")}
            assert t.here.engine.stats()["wg_sessions"] >= 1

    run(work)


def test_a_cable_that_is_pulled(lab: Lab) -> None:
    """The interface goes, with its address and routes, and another comes: the connection lives through it."""
    host = lab.hosts["here"]

    async def work() -> None:
        async with two(lab) as t:
            await t.exchange()
            loop = asyncio.get_running_loop()
            subprocess.run(["ip", "-n", host.namespace, "link", "delete", "eth0"], check=True, capture_output=True)
            errors = t.here.engine.stats()["udp_tx_dropped"]
            sending = asyncio.ensure_future(loop.sock_sendall(t.client, b"while it is out"))
            await until(lambda: t.here.engine.stats()["udp_tx_dropped"] > errors, "there is no way out")
            await sending
            _plug_in(lab, host)
            t.here.engine.rebind()
            async with asyncio.timeout(WAIT_S):
                assert await loop.sock_recv(t.server, 100) == b"while it is out"
            await t.exchange()

    run(work)


def _plug_in(lab: Lab, host: Host) -> None:
    port = f"q{host.number}"
    subprocess.run(
        ["ip", "link", "add", "eth0", "netns", host.namespace, "type", "veth",
         "peer", "name", port, "netns", lab.hub.namespace],
        check=True, capture_output=True,
    )  # fmt: skip
    ip(lab.hub, "link", "set", port, "master", "br0", "up")
    ip(host, "address", "add", f"{host.v4}/24", "dev", "eth0")
    ip(host, "link", "set", "eth0", "up")
