"""Nodes against the embedded control server and relay: joining, talking, refusing, leaving."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
from pathlib import Path

import pytest

from meshnode.base.errors import (
    ControlError,
    DialError,
    KeyRejected,
    ListenError,
    NameNotFound,
    NotReady,
    Refused,
    StateError,
    TimedOut,
)
from meshnode.control.policy import Policy
from meshnode.node.events import NetmapChanged, PathChanged
from meshnode.node.node import Node
from meshnode.tunnel.streams import TunnelWriter
from tests.e2e.town import LOOPS, make_town, open_files, run, see_each_other, until

loops = pytest.mark.parametrize("loop", LOOPS)


async def echo(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
    """Says who calls, then repeats what it hears."""
    writer.write(f"{writer.get_extra_info('peername')[0]}\n".encode())
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    writer.close()


async def ask(node: Node, host: str, port: int, question: bytes = b"hello") -> tuple[str, bytes]:
    """(our address as the other side sees it, its echo)"""
    reader, writer = await node.open_connection(host, port)
    writer.write(question)
    writer.write_eof()
    seen = (await reader.readline()).decode().strip()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return seen, answer


@loops
def test_two_nodes_talk_by_every_name_both_ways(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            await one.start_server(echo, 80)
            await other.start_server(echo, 80)
            for here, there in ((one, other), (other, one)):
                v4, v6 = there.addresses
                names = [there.name, there.name.partition(".")[0].upper(), there.name + ".", str(v4), str(v6)]
                for name in names:
                    seen, answer = await ask(here, name, 80)
                    assert answer == b"hello"
                    assert seen == str(here.addresses[1 if name == str(v6) else 0])
                identity = there.whois((seen, 1))
                assert identity is not None and identity.name == here.name
            question = bytes(range(256)) * 8192
            assert (await ask(one, "other", 80, question))[1] == question

    run(loop, work)


@loops
def test_tls_inside_the_tunnel(loop: str, certificates: tuple[Path, Path, Path]) -> None:
    ca, certificate, key = certificates
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    async def repeat(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def work() -> None:
        question = bytes(range(256)) * 8192
        async with make_town() as town:
            one, other = await town.pair()
            await other.start_server(repeat, 443, ssl=tls)
            with pytest.raises(ssl.SSLCertVerificationError):
                await one.open_connection("other", 443, ssl=ssl.create_default_context())
            trusting = ssl.create_default_context(cafile=str(ca))
            reader, writer = await one.open_connection("other", 443, ssl=trusting, server_hostname="127.0.0.1")
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert writer.get_extra_info("peername") == (str(other.addresses[0]), 443)
            async with asyncio.TaskGroup() as group:
                answer = group.create_task(reader.readexactly(len(question)))
                writer.write(question)
                await writer.drain()
            assert answer.result() == question
            writer.close()
            await writer.wait_closed()

    run(loop, work)


@loops
def test_listen_and_connect_are_plain_sockets(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            listener = await other.listen(7)
            sock = await one.connect("other", 7)
            accepted = await anext(listener)
            assert sock.getpeername() == (str(other.addresses[0]), 7)
            assert accepted.getpeername() == sock.getsockname()
            assert one.netmap is not None
            assert accepted.peer_key == one.netmap.self_node.key
            aio = asyncio.get_running_loop()
            await aio.sock_sendall(sock, b"x")
            assert await aio.sock_recv(accepted, 9) == b"x"
            accepted.close()
            assert await aio.sock_recv(sock, 9) == b""
            sock.close()
            listener.close()

    run(loop, work)


def test_a_node_reaches_itself() -> None:
    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one")
            await one.start_server(echo, 80)
            assert await ask(one, "one", 80) == (str(one.addresses[0]), b"hello")

    run("asyncio", work)


def test_refusals_are_typed_and_say_what_to_try() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            with pytest.raises(NameNotFound, match="did you mean other") as unknown:
                await one.connect("othr", 80)
            assert unknown.value.near[0] == "other"
            with pytest.raises(ConnectionRefusedError, match="other: 100.64.0.2:81 refused") as refused:
                await one.connect("other", 81)
            assert isinstance(refused.value, Refused)
            assert refused.value.errno == errno.ECONNREFUSED
            with pytest.raises(NameNotFound, match=r"100\.64\.9\.9 belongs to no node"):
                await one.connect("100.64.9.9", 80)
            assert one.whois("100.64.9.9") is None
            await other.start_server(echo, 80)
            with pytest.raises(ListenError, match="port 80 cannot be listened on"):
                await other.listen(80)

    run("asyncio", work)


def test_policy_is_enforced_and_changes_take_effect() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            await other.start_server(echo, 80)
            await other.start_server(echo, 81)
            tailnet = town.control.tailnet
            tailnet.set_policy(Policy.parse([{"src": ["*"], "dst": ["other:80"]}]))
            await until(lambda: other.netmap and len(other.netmap.rules) == 1, "other has the new rules")
            await until(lambda: "81" not in str(other.status().filter_rules), "the rules are in use")
            assert (await ask(one, "other", 80))[1] == b"hello"
            with pytest.raises(TimedOut):
                await one.connect("other", 81, timeout=0.5)
            tailnet.set_policy(Policy.allow_all())
            await until(lambda: "80" not in str(other.status().filter_rules), "the old rules are back")
            assert (await ask(one, "other", 81))[1] == b"hello"

    run("asyncio", work)


def test_restart_keeps_name_and_address_without_the_key(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
                before = (node.name, node.addresses)
            async with town.node("one", state_dir=tmp_path, auth_key="") as node:
                await node.ready(10)
                assert (node.name, node.addresses) == before
            assert len(town.control.tailnet.members) == 1

    run("asyncio", work)


def port_of(node: Node) -> int:
    return node._running().engine.port4


def test_restart_keeps_the_port_unless_somebody_else_has_it(tmp_path: Path) -> None:
    """What peers send to where they knew us arrives."""

    async def work() -> None:
        async with make_town() as town:
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
                port = port_of(node)
            async with town.node("one", state_dir=tmp_path, auth_key="") as node:
                assert port_of(node) == port
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("0.0.0.0", port))
                async with town.node("one", state_dir=tmp_path, auth_key="") as node:
                    assert port_of(node) not in (0, port)

    run("asyncio", work)


def test_handshake_stamps_do_not_go_back_over_a_restart(tmp_path: Path) -> None:
    """WG-07: the wall clock was an hour ahead in the last run, in which peers heard of it, and is right again."""

    async def work() -> None:
        async with make_town() as town:
            other = await town.join("other")
            await other.start_server(echo, 80)
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
                await see_each_other(node, other)
                await ask(node, "other", 80)
            (path,) = (path for path in tmp_path.rglob("*.json") if "timestamp_floor" in path.read_text())
            state = json.loads(path.read_text())
            stamp = bytes.fromhex(state["timestamp_floor"])
            seconds = int.from_bytes(stamp[:8], "big")
            assert seconds > 1 << 62
            ahead = (seconds + 3600).to_bytes(8, "big") + stamp[8:]
            path.write_text(json.dumps(state | {"timestamp_floor": ahead.hex()}))
            async with town.node("one", state_dir=tmp_path, auth_key="") as node:
                await node.ready(10)
                await see_each_other(node, other)
                await ask(node, "other", 80)
            kept = bytes.fromhex(json.loads(path.read_text())["timestamp_floor"])
            assert kept > ahead

    run("asyncio", work)


def test_logout_keeps_the_address_for_the_next_login(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
                before = node.addresses
                await node.logout()
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
                assert node.addresses == before

    run("asyncio", work)


@pytest.mark.parametrize("options", [{"state_dir": "mem:"}, {"ephemeral": True, "state_dir": ""}])
def test_ephemeral_nodes_are_gone_at_once(options: dict[str, object]) -> None:
    async def work() -> None:
        async with make_town() as town:
            key = town.control.add_key(ephemeral=True)
            async with town.node("brief", auth_key=key, **options) as node:
                await node.ready(10)
                assert town.control.tailnet.find("brief") is not None
            assert town.control.tailnet.find("brief") is None

    run("asyncio", work)


def test_two_nodes_never_share_a_state_directory(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            await town.join("one", state_dir=tmp_path)
            with pytest.raises(StateError, match="in use by another meshnode"):
                await town.join("two", state_dir=tmp_path)

    run("asyncio", work)


def test_what_control_refuses_ends_the_node() -> None:
    async def work() -> None:
        async with make_town() as town:
            for _ in range(2):
                async with town.node("one", auth_key="nonsense") as node:
                    with pytest.raises(KeyRejected):
                        await node.ready(10)
                    assert isinstance(await node.wait_failed(), KeyRejected)
                    with pytest.raises(KeyRejected):
                        await node.connect("other", 80)

    run("asyncio", work)


def test_not_ready_names_what_it_waits_for() -> None:
    async def work() -> None:
        async with make_town() as town:
            url = town.control.url
            node = town.node("one", control_url=url.rpartition(":")[0] + ":1")
            async with node:
                with pytest.raises(DialError, match="no netmap yet"):
                    await node.connect("other", 80)
                with pytest.raises(NotReady, match=r"not ready after 0\.3 s: .*127\.0\.0\.1:1") as caught:
                    await node.ready(timeout=0.3)
                assert isinstance(caught.value.__cause__, ControlError)

    run("asyncio", work)


def test_ping_status_and_events() -> None:
    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one")
            events = one.events()
            other = await town.join("other")
            await see_each_other(one, other)
            pong = await one.ping("other")
            assert pong.node.name == other.name
            assert 0 < pong.latency_s < 5

            async def first_path() -> PathChanged:
                seen_netmap = False
                async for event in events:
                    seen_netmap = seen_netmap or isinstance(event, NetmapChanged)
                    if isinstance(event, PathChanged) and event.new == "direct":
                        assert seen_netmap
                        return event
                raise AssertionError("the events ended")

            await other.start_server(echo, 80)
            assert (await ask(one, "other", 80))[1] == b"hello"
            path = await asyncio.wait_for(first_path(), 10)
            assert path.peer.name == other.name
            status = one.status().to_json()
            assert status["BackendState"] == "Running"
            (peer,) = status["Peer"].values()
            assert peer["DNSName"] == "other.mesh.test."
            assert peer["PathState"] == "direct"
            assert peer["CurAddr"] and peer["RxBytes"] > 0 and peer["Online"] is True
            assert peer["Relay"] == "own"
            assert (await one.ping("one")).is_self
            with pytest.raises(NameNotFound):
                await one.ping("nobody")

    run("asyncio", work)


@loops
def test_leaving_is_quick_and_complete(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            async with town.node("warm-up") as node:
                await node.ready(10)
            before = open_files()
            for number in range(3):
                async with town.node(f"a{number}") as one, town.node(f"b{number}") as other:
                    await one.ready(10)
                    await other.ready(10)
                    await see_each_other(one, other)
                    await other.start_server(echo, 80)
                    _, writer = await one.open_connection(f"b{number}", 80)
                    await other.listen(81)
                    started = asyncio.get_running_loop().time()
                assert asyncio.get_running_loop().time() - started < 2.0
                writer.close()
            del node, one, other
            await until(lambda: open_files() <= before, "every descriptor is closed again")

    run(loop, work)


def test_cancelling_a_start_leaves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            for _ in range(3):
                node = town.node("one", state_dir=tmp_path)
                async with node:
                    pass
            async with town.node("one", state_dir=tmp_path) as node:
                await node.ready(10)
            assert len(town.control.tailnet.members) == 1

    run("asyncio", work)


def test_an_advertised_address_is_told_to_peers_before_those_found() -> None:
    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one", advertise=["203.0.113.5:41641", "[2001:db8::5]:41641"])
            other = await town.join("other")
            await see_each_other(one, other)

            def told() -> list[str]:
                assert other.netmap is not None
                return [str(e) for p in other.netmap.peers.values() for e in p.endpoints]

            await until(lambda: len(told()) > 2, "control passes the endpoints on")
            assert told()[:2] == ["203.0.113.5:41641", "[2001:db8::5]:41641"]
            assert any(text.startswith("127.0.0.1:") for text in told()[2:])

    run("asyncio", work)
