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
from meshnode.core.network import Change, Network, compare
from meshnode.engine.engine import PATH_DIRECT, PATH_NONE, Engine
from meshnode.engine.flow import TunnelSocket
from meshnode.netmap.rules import allow_all
from meshnode.run.clock import Clock
from meshnode.underlay.endpoints import choose
from meshnode.underlay.interfaces import read_network
from meshnode.underlay.linkwatch import LinkWatch

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


class Watched:
    """A LinkWatch in a host's namespace, and what it saw."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.looks: list[Network] = [self._read()]
        with host.inside():
            self.watch = LinkWatch(Clock(), on_change=self._look, on_tick=lambda _: None)
            self.watch.start()

    def _read(self) -> Network:
        with self._host.inside():
            return read_network()

    def _look(self) -> None:
        self.looks.append(self._read())

    async def until_changed(self, what: str) -> Change:
        """The next look that differs from the one before; the others are forgotten."""

        def change() -> Change | None:
            pairs = zip(self.looks, self.looks[1:], strict=False)
            return next((c for a, b in pairs if (c := compare(a, b)) is not None), None)

        await until(change, what)
        found = change()
        assert found is not None
        del self.looks[:-1]
        return found


def test_the_watch_sees_addresses_ways_out_and_cables(lab: Lab) -> None:
    host = lab.hosts["here"]
    v4, v6 = parse_ip(host.v4), parse_ip(host.v6)

    async def work() -> None:
        watched = Watched(host)
        assert watched.watch.is_watching and {v4, v6} <= watched.looks[0].ips
        ip(host, "address", "add", "10.9.9.9/24", "dev", "eth0")
        assert (await watched.until_changed("an address came")).came == {parse_ip("10.9.9.9")}
        ip(host, "route", "delete", "default")
        assert (await watched.until_changed("the default route went")).moved == {4}
        ip(host, "route", "add", "default", "via", "10.77.0.1")
        assert (await watched.until_changed("the default route came")).moved == {4}
        port = lab.far_end(host)
        ip(lab.hub, "link", "set", port, "down")
        gone = await watched.until_changed("the cable is out")
        assert gone.gone >= {v4, v6} and not gone.is_minor
        ip(lab.hub, "link", "set", port, "up")
        assert (await watched.until_changed("the cable is in")).came >= {v4}
        ip(host, "link", "delete", "eth0")
        assert v4 in (await watched.until_changed("the interface went")).gone
        watched.watch.close()

    run(work)


def test_containers_that_start_and_stop_are_no_change(lab: Lab) -> None:
    """Stubs come and go on a bridge; the bridge's carrier with them. Nothing of it reaches a path."""
    host = lab.hosts["here"]
    ip(host, "link", "add", "docker0", "type", "bridge")
    ip(host, "address", "add", "172.17.0.1/16", "dev", "docker0")
    ip(host, "link", "set", "docker0", "up")

    async def work() -> None:
        watched = Watched(host)
        for number in range(10):
            name = f"veth{number}"
            ip(host, "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
            ip(host, "link", "set", name, "master", "docker0", "up")
            ip(host, "link", "set", f"{name}p", "up")
            await asyncio.sleep(0)
            ip(host, "link", "delete", name)
        ip(host, "address", "add", "10.9.9.9/24", "dev", "eth0")
        await watched.until_changed("a change that is one")
        assert watched.watch.counters["link_looks"] <= 40
        watched.watch.close()

    async def count() -> None:
        watched = Watched(host)
        before = watched.looks[0]
        ip(host, "link", "add", "veth77", "type", "veth", "peer", "name", "veth77p")
        ip(host, "link", "set", "veth77", "master", "docker0", "up")
        ip(host, "link", "set", "veth77p", "up")
        with host.inside():
            after = read_network()
        change = compare(before, after)
        assert change is None or (change.is_minor and choose_all(before) == choose_all(after))
        watched.watch.close()

    run(work)
    run(count)


def choose_all(network: Network) -> list[IP]:
    return choose(network.addresses, loopback_ok=False)


def test_notices_that_overflow_lead_to_a_look(lab: Lab) -> None:
    host = lab.hosts["here"]
    flood = "".join(f"address add 10.8.{n >> 8}.{n & 255}/32 dev lo\n" for n in range(3000))

    async def work() -> None:
        watched = Watched(host)
        done = subprocess.run(["ip", "-n", host.namespace, "-batch", "-"], input=flood, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        await until(lambda: parse_ip("10.8.11.183") in watched.looks[-1].ips, "the last address is seen")
        assert watched.watch.counters["link_overruns"] >= 1 and watched.watch.counters["link_looks"] <= 5
        watched.watch.close()

    run(work)


@pytest.mark.parametrize("left", ["IPv6 alone", "link-local IPv4 beside it"])
def test_new_sockets_where_no_ipv4_leads_out(lab: Lab, left: str) -> None:
    """Sockets are renewed on a host with IPv6 alone, or with an IPv4 address that leads nowhere: IPv6 goes on."""
    for host in (lab.hosts["here"], lab.hosts["there"]):
        ip(host, "-4", "address", "flush", "dev", "eth0")
        if left != "IPv6 alone":
            ip(host, "address", "add", f"169.254.0.{host.number}/16", "dev", "eth0")

    async def work() -> None:
        async with two(lab, version=6) as t:
            await t.exchange()
            rebound: list[int] = []
            t.here.engine.on_rebound = rebound.append
            port = t.here.engine.port6
            t.here.engine.rebind()
            await until(lambda: rebound, "the sockets are new")
            assert rebound == [0] and t.here.engine.port6 == port
            await t.exchange()

    run(work)
