"""What happens to a node over its life: keys rotate, paths and servers fail, others come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.errors import ConfigError, EngineError, KeyExpired, NameNotFound
from meshnode.base.keys import NodePublic
from meshnode.config.model import Config, Disco, Tunnel
from meshnode.control.server import ControlServer
from meshnode.netmap.model import Peer
from meshnode.node.node import Node
from meshnode.run.clock import Clock
from meshnode.tunnel.streams import TunnelWriter
from tests.e2e.town import Town, make_town, run, see_each_other, until


async def echo(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def talk(node: Node, host: str, question: bytes = b"hello") -> bytes:
    reader, writer = await node.open_connection(host, 80)
    writer.write(question)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def peer_of(node: Node, name: str) -> Peer | None:
    peers = node.netmap.peers.values() if node.netmap else ()
    return next((peer for peer in peers if peer.label == name), None)


def key_of(node: Node) -> NodePublic:
    assert node.netmap is not None
    return node.netmap.self_node.key


def path_of(node: Node, name: str) -> dict[str, object]:
    peers: dict[str, dict[str, object]] = node.status().to_json()["Peer"]
    return next(p for p in peers.values() if str(p["DNSName"]).startswith(name + "."))


async def serving_pair(town: Town) -> tuple[Node, Node]:
    one, other = await town.pair()
    await one.start_server(echo, 80)
    await other.start_server(echo, 80)
    return one, other


def test_without_endpoints_everything_goes_by_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.underlay.endpoints.local_endpoints", lambda *_, **__: [])

    async def work() -> None:
        async with make_town() as town:
            one, other = await serving_pair(town)
            data = bytes(range(256)) * 4096
            assert await talk(one, "other", data) == data
            assert await talk(other, "one") == b"hello"
            pong = await one.ping("other")
            assert (pong.endpoint, pong.region_code) == (None, "own")
            path = path_of(one, "other")
            assert (path["CurAddr"], path["Relay"]) == ("", "own")

    run("asyncio", work)


def test_with_endpoints_it_becomes_direct() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await serving_pair(town)
            assert await talk(one, "other") == b"hello"
            await until(lambda: path_of(one, "other")["CurAddr"], "one goes direct")
            await until(lambda: path_of(other, "one")["CurAddr"], "the other goes direct")
            assert (await one.ping("other")).endpoint is not None

    run("asyncio", work)


def test_the_tunnel_outlives_the_relay_once_direct() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, _ = await serving_pair(town)
            assert await talk(one, "other") == b"hello"
            await until(lambda: path_of(one, "other")["CurAddr"], "one goes direct")
            await town.relay.aclose()
            assert await talk(one, "other") == b"hello"

    run("asyncio", work)


def test_an_expired_node_rotates_its_key_and_peers_follow() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await serving_pair(town)
            assert await talk(one, "other") == b"hello"
            before = key_of(one)
            member = town.control.tailnet.find("one")
            assert member is not None
            town.control.tailnet.expire(member.id, Clock().wall())
            await until(lambda: key_of(one) != before, "one has a new key")

            def followed() -> bool:
                peer = peer_of(other, "one")
                return peer is not None and peer.key == key_of(one)

            await until(followed, "the other knows it")
            assert await talk(one, "other") == b"hello"
            assert await talk(other, "one") == b"hello"

    run("asyncio", work)


def test_a_peer_that_leaves_is_unknown_at_once() -> None:
    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one")
            async with town.node("brief", auth_key=town.control.add_key(ephemeral=True)) as brief:
                await brief.ready(10)
                await see_each_other(one, brief)
                assert one.resolve("brief") == brief.addresses
            await until(lambda: peer_of(one, "brief") is None, "it is gone")
            with pytest.raises(NameNotFound):
                one.resolve("brief")

    run("asyncio", work)


def test_without_control_the_last_netmap_serves_and_control_is_found_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            clock = Clock()
            second = ControlServer(clock=clock, relays=town.control.tailnet.relays)
            async with second:
                port = int(second.url.rpartition(":")[2])
                key = second.add_key()
                options = {"control_url": second.url, "auth_key": key}
                one = await town.join("one", **options)
                other = await town.join("other", **options)
                await see_each_other(one, other)
                await other.start_server(echo, 80)
                assert await talk(one, "other") == b"hello"
            await until(lambda: one.status().reason, "one notices")
            status = one.status().to_json()
            assert (status["BackendState"], status["Self"]["Online"]) == ("Running", False)
            assert await talk(one, "other") == b"hello"
            third = ControlServer(clock=clock, relays=second.tailnet.relays, port=port, key=second.key)
            third.tailnet = second.tailnet
            async with third:
                await until(lambda: not one.status().reason, "one is back")
                assert await talk(one, "other") == b"hello"

    run("asyncio", work)


def test_an_identity_that_is_no_longer_good_needs_a_key(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
            member = town.control.tailnet.find("one")
            assert member is not None
            town.control.tailnet.expire(member.id, Clock().wall())
            async with town.node("one", state_dir=tmp_path, auth_key="") as node:
                with pytest.raises(KeyExpired):
                    await node.ready(10)
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
                assert node.addresses == member.ips

    run("asyncio", work)


def test_a_bug_ends_the_node_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("a bug for the test")

    async def work() -> None:
        async with make_town() as town:
            async with town.node("one") as node:
                monkeypatch.setattr("meshnode.node.follow.Follower.apply", break_down)
                with pytest.raises(EngineError, match="RuntimeError: a bug for the test; please report"):
                    await node.ready(10)
                assert isinstance((await node.wait_failed()).__cause__, RuntimeError)

    run("asyncio", work)


def test_tcp_settings_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.engine.engine import Engine

    given: list[tuple[object, object]] = []
    start = Engine.start

    async def note(*args: Any, **options: Any) -> Engine:
        given.append((options["tcp_memory"], options["tcp_ecn"]))
        return await start(*args, **options)

    monkeypatch.setattr(Engine, "start", note)

    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one", tcp_memory=2 << 20, tcp_ecn="ask")
            other = await town.join("other")
            await see_each_other(one, other)
            await other.start_server(echo, 80)
            assert await talk(one, "other") == b"hello"

    run("asyncio", work)
    assert given == [(2 << 20, "ask"), (0, "accept")]
    node = Node.from_config(Config(tunnel=Tunnel(tcp_memory=3 << 20, tcp_ecn="off")))
    assert (node.tcp_memory, node.tcp_ecn) == (3 << 20, "off")
    with pytest.raises(ConfigError, match="tcp_memory: 7 is no amount of memory"):
        Node(tcp_memory=7)
    with pytest.raises(ConfigError, match="tcp_ecn: 'maybe' is none of accept, ask, off"):
        Node(tcp_ecn="maybe")


def test_the_section_disco_tunes_the_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.core.path_values import Tuning
    from meshnode.underlay.disco import Discovery

    given: list[object] = []
    make = Discovery.__init__

    def note(*args: Any, **options: Any) -> None:
        given.append(options["tuning"])
        make(*args, **options)

    monkeypatch.setattr(Discovery, "__init__", note)

    async def work() -> None:
        async with make_town() as town:
            await town.join("one", disco=Disco(0.5, 90.0, 2.0, 5, 20.0))
            await town.join("other")

    run("asyncio", work)
    assert given == [Tuning(0.5, 90.0, 2.0, 5, 20.0), Tuning()]
    assert Node.from_config(Config(disco=Disco(probe_timeout=1.5))).disco.probe_timeout == 1.5
    with pytest.raises(ConfigError, match="heartbeat_interval: 0.01 s is outside 0.1 to 60 s"):
        Node(disco=Disco(heartbeat_interval=0.01))
