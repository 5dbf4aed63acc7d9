"""Two real engines over loopback: the whole native path, seen from Python as its users see it."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.addr import Endpoint, parse_prefix
from meshnode.base.errors import AccessDenied, Refused, TimedOut
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.engine import _native
from meshnode.engine.engine import GSO_NEVER_EQUAL, GSO_OFF, KEYS_CLOCK_BEHIND, Engine
from meshnode.engine.flow import TunnelSocket
from meshnode.engine.listener import Datagram
from tests.e2e.engines import (
    LOOPS,
    PATH_BOTH,
    PATH_DIRECT,
    PATH_NONE,
    PATH_RELAY,
    Side,
    filter_blob,
    introduce,
    pair,
    run,
    start_side,
)

both_loops = pytest.mark.parametrize("loop", LOOPS)
MIB = 1 << 20


async def read_all(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    parts = []
    while data := await loop.sock_recv(sock, 256 * 1024):
        parts.append(data)
    return b"".join(parts)


async def hash_all(sock: socket.socket) -> tuple[str, int]:
    loop = asyncio.get_running_loop()
    digest, total = hashlib.sha256(), 0
    while data := await loop.sock_recv(sock, 256 * 1024):
        digest.update(data)
        total += len(data)
    return digest.hexdigest(), total


async def connected(a: Side, b: Side, *, port: int = 80, family: int = 4) -> tuple[TunnelSocket, TunnelSocket]:
    """A connection a → b: both ends."""
    listener = await b.engine.listen(None, port)
    client, server = await asyncio.gather(a.engine.connect(b.address(family), port), anext(listener))
    listener.close()
    return client, server


async def until(claim: Any, what: str) -> None:
    """Wait for a condition that events bring about; bounded."""
    limit = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < limit, f"never came true: {what}"
        await asyncio.sleep(0)


@both_loops
@pytest.mark.parametrize("family", [4, 6])
def test_bytes_both_ways_and_names(loop: str, family: int) -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b, family=family)
            here = asyncio.get_running_loop()
            await here.sock_sendall(client, b"question")
            assert await here.sock_recv(server, 100) == b"question"
            await here.sock_sendall(server, b"answer")
            assert await here.sock_recv(client, 100) == b"answer"
            assert client.peer_key == b.key and server.peer_key == a.key
            assert client.remote.ip == b.address(family) and client.remote.port == 80
            assert server.remote == client.local and server.local == client.remote
            assert server.getpeername()[:2] == (str(a.address(family)), client.local.port)
            assert len(client.getsockname()) == (2 if family == 4 else 4)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.close()
            assert await here.sock_recv(server, 100) == b""
            server.close()
            assert True in a.handshakes and True in b.handshakes
            assert False in a.sends
            assert any(direct == b.underlay and region == 0 for direct, region, _ in a.recvs)
            assert {what for _, _, what in b.recvs} >= {_native.WHAT_DATA, _native.WHAT_HANDSHAKE}

    run(loop, work)


def test_underlay_of_ipv6() -> None:
    async def work() -> None:
        async with pair(PATH_NONE) as (a, b):
            if not (a.engine.port6 and b.engine.port6):
                pytest.skip("this machine has no IPv6 loopback")
            here = IPv6Address("::1")
            a.engine.set_path(b.key, Endpoint(here, b.engine.port6), 0, PATH_DIRECT)
            b.engine.set_path(a.key, Endpoint(here, a.engine.port6), 0, PATH_DIRECT)
            client, server = await connected(a, b)
            client.send(b"x" * 5000)
            client.shutdown(socket.SHUT_WR)
            assert len(await read_all(server)) == 5000
            assert {direct.ip for direct, _, _ in b.recvs if direct} == {here}
            client.close()
            server.close()

    run("asyncio", work)


def test_send_errors_are_told() -> None:
    """A path whose family has no socket, and a port nobody may send to."""

    async def work() -> None:
        private = NodePrivate.generate(os.urandom)
        a = await start_side(1)
        told: list[Any] = []
        a.engine.on_send_error = lambda *got: told.append(got)
        a.engine.upsert_peer(private.public(), [parse_prefix("100.64.0.2/32")])
        nowhere = Endpoint(IPv4Address("203.0.113.1"), 9)  # from a socket bound to loopback: not routable
        a.engine.set_path(private.public(), nowhere, 0, PATH_DIRECT)
        a.engine.kick(private.public())
        await until(lambda: told, "the failed send is told")
        assert told[0][0] == nowhere and told[0][1] in (errno.EINVAL, errno.ENETUNREACH, errno.EPERM)
        await a.engine.aclose()

    run("asyncio", work)


def test_rebind_and_offloads_under_a_connection() -> None:
    """New sockets, then other settings: the connection does not notice."""

    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            rebound: list[int] = []
            a.engine.on_rebound = rebound.append
            port = a.engine.port4
            for turn in range(4):
                if turn == 1:
                    a.engine.rebind()
                    await until(lambda: rebound, "the sockets are new")
                if turn == 2:
                    a.engine.set_offloads(GSO_OFF, False)
                if turn == 3:
                    a.engine.set_offloads(GSO_NEVER_EQUAL, True)
                here = asyncio.get_running_loop()
                got = 0
                sending = asyncio.create_task(here.sock_sendall(client, bytes(MIB)))
                while got < MIB:
                    got += len(await here.sock_recv(server, MIB))
                await sending
            assert rebound == [0] and a.engine.port4 == port
            assert a.engine.stats()["udp_rebinds"] == 1
            with pytest.raises(ValueError, match="GSO_AUTO"):
                a.engine.set_offloads(9, True)
            client.close()
            server.close()

    run("asyncio", work)


def test_a_clock_that_is_behind_is_told() -> None:
    """The last handshake of an earlier run is a day ahead of the clock: sessions come up all the same."""

    async def work() -> None:
        ahead = struct.pack(">QI", 0x400000000000000A + int(time.time()) + 86400, 0)
        a = await start_side(1, timestamp_floor=ahead)
        b = await start_side(2)
        told: list[tuple[NodePublic, int]] = []
        a.engine.on_keys = lambda *got: told.append(got)
        introduce(a, b, PATH_DIRECT)
        introduce(b, a, PATH_DIRECT)
        a.engine.kick(b.key)
        await until(lambda: True in a.handshakes, "the session is up")
        assert told == [(b.key, KEYS_CLOCK_BEHIND)]
        assert a.engine.last_timestamp() > ahead
        await a.engine.aclose()
        await b.engine.aclose()

    run("asyncio", work)


def test_roaming_peer_with_a_preshared_key() -> None:
    """Plain WireGuard: b learns from authentic packets where a is; a wrong preshared key means no session."""

    async def work() -> None:
        async with pair() as (a, b):
            ranges = [parse_prefix("100.64.0.0/16")]
            a.engine.upsert_peer(b.key, ranges, psk=b"\x01" * 32, keepalive_s=1)
            b.engine.upsert_peer(a.key, ranges, psk=b"\x02" * 32, roams=True)
            b.engine.set_path(a.key, None, 0, PATH_NONE)
            await until(lambda: a.engine.stats()["wg_drop_AUTH"], "a refuses the response made with another key")
            assert not a.handshakes
            b.engine.upsert_peer(a.key, ranges, psk=b"\x01" * 32, roams=True)
            a.engine.kick(b.key)
            await until(lambda: True in a.handshakes, "the session is up")
            client, server = await connected(a, b)
            await asyncio.get_running_loop().sock_sendall(server, b"found you")
            assert await asyncio.get_running_loop().sock_recv(client, 100) == b"found you"
            assert b.engine.stats()["rx_roamed"] == 1
            client.close()
            server.close()

    run("asyncio", work)


@both_loops
@pytest.mark.parametrize("mode", [PATH_DIRECT, PATH_RELAY, PATH_BOTH], ids=["direct", "relay", "both"])
def test_transfer_is_whole(loop: str, mode: int) -> None:
    size = 32 * MIB if mode == PATH_DIRECT else 4 * MIB
    block = os.urandom(MIB)
    want = hashlib.sha256(block * (size // MIB)).hexdigest()

    async def send(sock: socket.socket) -> None:
        here = asyncio.get_running_loop()
        for _ in range(size // MIB):
            await here.sock_sendall(sock, block)
        sock.shutdown(socket.SHUT_WR)

    async def work() -> None:
        async with pair(mode) as (a, b):
            client, server = await connected(a, b)
            _, got = await asyncio.gather(send(client), hash_all(server))
            assert got == (want, size)
            _, back = await asyncio.gather(send(server), hash_all(client))
            assert back == (want, size)
            numbers = a.engine.peer_stats(b.key)
            assert (numbers["tx_direct_bytes"] > size) == (mode != PATH_RELAY)
            least = {PATH_DIRECT: -1, PATH_RELAY: size, PATH_BOTH: size // 16}[mode]
            assert numbers["tx_relay_bytes"] > least, "copies are paid out of an allowance"
            assert (a.relayed > 0) == (mode != PATH_DIRECT)
            client.close()
            server.close()

    run(loop, work)


@both_loops
def test_half_close(loop: str) -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            here = asyncio.get_running_loop()
            await here.sock_sendall(client, b"all I have")
            client.shutdown(socket.SHUT_WR)
            assert await read_all(server) == b"all I have"
            await here.sock_sendall(server, b"x" * 300_000)
            server.close()
            assert len(await read_all(client)) == 300_000
            assert client.error == 0
            client.close()
            await until(lambda: a.engine.stats()["flows"] == 0 == b.engine.stats()["flows"], "flows end")

    run(loop, work)


@both_loops
def test_refused(loop: str) -> None:
    async def work() -> None:
        async with pair() as (a, b):
            with pytest.raises(Refused) as caught:
                await a.engine.connect(b.ip4, 81)
            assert caught.value.errno == errno.ECONNREFUSED
            assert a.engine.stats()["flows"] == 0

    run(loop, work)


def test_filter_denies_until_it_allows() -> None:
    async def work() -> None:
        async with pair() as (a, b):
            listener = await b.engine.listen(None, 8080)
            b.engine.set_filter(filter_blob(ports=(80, 80)))
            with pytest.raises(AccessDenied, match="policy"):
                await a.engine.connect(b.ip4, 8080)
            assert b.engine.stats()["ip_filter_drop"] > 0
            b.engine.set_filter(filter_blob(ports=(8080, 8080)))
            client, server = await asyncio.gather(a.engine.connect(b.ip4, 8080), anext(listener))
            client.close()
            server.close()
            with pytest.raises(ValueError, match="malformed"):
                b.engine.set_filter(b"nonsense")

    run("asyncio", work)


def test_nothing_enters_before_the_first_filter() -> None:
    async def work() -> None:
        a = await start_side(1)
        private = NodePrivate.generate(os.urandom)
        native = await Engine.start(private)
        b = Side(native, private, IPv4Address("100.64.0.2"), IPv6Address("fd7a:115c:a1e0::2"))
        native.set_addresses([b.ip4, b.ip6])
        introduce(a, b, PATH_DIRECT)
        introduce(b, a, PATH_DIRECT)
        listener = await native.listen(None, 80)
        attempt = asyncio.ensure_future(a.engine.connect(b.ip4, 80))
        await until(lambda: native.stats()["ip_filter_drop"] > 0, "the SYN is dropped")
        assert native.stats()["flows"] == 0
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        listener.close()
        await a.engine.aclose()
        await native.aclose()

    run("asyncio", work)


def test_a_path_that_comes_late_carries_what_waited() -> None:
    async def work() -> None:
        async with pair(PATH_NONE) as (a, b):
            listener = await b.engine.listen(None, 80)
            attempt = asyncio.ensure_future(a.engine.connect(b.ip4, 80))
            await until(lambda: True in a.sends, "the engine asks for a path")
            started = time.monotonic()
            a.engine.set_path(b.key, b.underlay, 0, PATH_DIRECT)
            b.engine.set_path(a.key, a.underlay, 0, PATH_DIRECT)
            client, server = await asyncio.gather(attempt, anext(listener))
            assert time.monotonic() - started < 2.0, "the waiting handshake left at once"
            client.close()
            server.close()

    run("asyncio", work)


def test_answer_goes_back_by_the_relay_it_came_by() -> None:
    async def work() -> None:
        async with pair(PATH_RELAY) as (a, b):
            b.engine.set_path(a.key, None, 0, PATH_NONE)
            b.engine.on_peer_send = lambda peer, wanted: wanted and b.engine.set_path(a.key, None, 9, PATH_RELAY)
            client, server = await connected(a, b)
            assert all(region == 9 for _, region, _ in b.recvs)
            client.close()
            server.close()

    run("asyncio", work)


@both_loops
def test_ping_and_its_timeout(loop: str) -> None:
    async def work() -> None:
        async with pair() as (a, b):
            assert 0 < await a.engine.ping(b.ip4) < 5
            assert 0 < await b.engine.ping(a.ip6, size=1000) < 5
            b.engine.set_path(a.key, None, 0, PATH_NONE)
            with pytest.raises(TimedOut):
                await a.engine.ping(b.ip4, timeout_s=0.2)

    run(loop, work)


def test_datagrams() -> None:
    async def work() -> None:
        async with pair() as (a, b):
            arrived: asyncio.Queue[Datagram] = asyncio.Queue()
            answered: asyncio.Queue[Datagram] = asyncio.Queue()
            errors: asyncio.Queue[tuple[Endpoint, int]] = asyncio.Queue()
            server = await b.engine.open_datagrams(None, 53, arrived.put_nowait)
            client = await a.engine.open_datagrams(
                a.ip4, 0, answered.put_nowait, lambda *error: errors.put_nowait(error)
            )
            assert server.port == 53 and client.port != 0
            client.send(b.ip4, 53, b"who?")
            got = await arrived.get()
            assert got == (b"who?", Endpoint(a.ip4, client.port), b.ip4, a.key)
            server.send(got.source.ip, got.source.port, b"me", got.to)
            assert await answered.get() == (b"me", Endpoint(b.ip4, 53), a.ip4, b.key)
            client.send(b.ip4, 54, b"anyone?")
            assert await errors.get() == (Endpoint(b.ip4, 54), errno.ECONNREFUSED)
            server.close()
            client.close()

    run("asyncio", work)


def test_raw_datagrams_reach_the_right_callback() -> None:
    async def work() -> None:
        async with pair() as (a, b):
            disco: asyncio.Queue[Any] = asyncio.Queue()
            stun: asyncio.Queue[Any] = asyncio.Queue()
            b.engine.on_disco = lambda *got: disco.put_nowait(got)
            b.engine.on_stun = lambda *got: stun.put_nowait(got)
            sealed = bytes.fromhex("5453f09f92ac") + bytes(100)
            binding = bytes.fromhex("0001 0000 2112a442") + bytes(12)
            a.engine.send_raw(b.underlay.ip, b.underlay.port, sealed)
            a.engine.send_raw(b.underlay.ip, b.underlay.port, binding)
            assert await disco.get() == (a.underlay.ip, a.underlay.port, sealed)
            assert await stun.get() == (a.underlay.ip, a.underlay.port, binding)

    run("asyncio", work)


@both_loops
def test_five_hundred_connections(loop: str) -> None:
    count = 500

    async def serve(sock: TunnelSocket) -> None:
        here = asyncio.get_running_loop()
        data = await here.sock_recv(sock, 100)
        await here.sock_sendall(sock, data[::-1])
        sock.close()

    async def ask(a: Side, b: Side, number: int) -> None:
        here = asyncio.get_running_loop()
        sock = await a.engine.connect(b.ip4, 80)
        await here.sock_sendall(sock, f"{number:08}".encode())
        assert await read_all(sock) == f"{number:08}"[::-1].encode()
        sock.close()

    async def work() -> None:
        async with pair() as (a, b):
            fds = len(os.listdir("/proc/self/fd"))
            listener = await b.engine.listen(None, 80, backlog=1024)
            async with asyncio.TaskGroup() as group:
                asks = [group.create_task(ask(a, b, i)) for i in range(count)]

                async def accept() -> None:
                    for _ in range(count):
                        group.create_task(serve(await anext(listener)))

                group.create_task(accept())
            assert all(t.done() for t in asks)
            listener.close()
            await until(lambda: a.engine.stats()["flows"] == 0 == b.engine.stats()["flows"], "flows end")
            gc.collect()
            await until(lambda: len(os.listdir("/proc/self/fd")) <= fds, "descriptors come back")

    run(loop, work)


def test_a_full_backlog_makes_peers_try_again() -> None:
    """Whoever finds it full is not refused: all get in as those before them are taken."""
    count = 8

    async def work() -> None:
        async with pair() as (a, b):
            here = asyncio.get_running_loop()
            listener = await b.engine.listen(None, 80, backlog=2)
            clients = await asyncio.gather(*(a.engine.connect(b.ip4, 80) for _ in range(count)))
            for number, client in enumerate(clients):
                await here.sock_sendall(client, bytes([number]))
            await until(lambda: b.engine.stats()["ip_tcp_accept_full"] >= count - 2, "the backlog is full")
            assert b.engine.stats()["ip_tcp_accepted"] == 2
            said = b""
            for _ in range(count):
                server = await anext(listener)
                said += await here.sock_recv(server, 1)
                await here.sock_sendall(server, b"hello")
                server.close()
            assert sorted(said) == list(range(count))
            for client in clients:
                assert await read_all(client) == b"hello"
                client.close()
            assert a.engine.stats()["ip_tcp_rst_in"] == 0 == b.engine.stats()["ip_tcp_rst_in"]
            listener.close()

    run("asyncio", work)


@both_loops
def test_reset_is_no_clean_end(loop: str) -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            here = asyncio.get_running_loop()
            await here.sock_sendall(client, b"never read")
            await here.sock_sendall(server, b"partial")
            assert await here.sock_recv(client, 100) == b"partial"
            await until(lambda: b.engine.stats()["app_bytes_out"] >= 10, "the bytes reach the other application")
            server.close()  # unread data: a reset
            with pytest.raises(ConnectionResetError):
                while await here.sock_recv(client, 100):
                    pass
            assert client.error == errno.ECONNRESET
            client.close()

    run(loop, work)


def test_removed_peer_ends_its_connections() -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            a.engine.remove_peer(b.key)
            with pytest.raises(OSError) as caught:
                await asyncio.get_running_loop().sock_recv(client, 100)
            assert caught.value.errno == errno.ECONNABORTED
            with pytest.raises(OSError):
                await a.engine.connect(b.ip4, 80)
            client.close()
            server.close()

    run("asyncio", work)


def test_back_pressure_bounds_memory() -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            block = bytes(64 * 1024)
            sent = 0
            quiet = 0
            while quiet < 50:  # nothing more fits for a while: the whole way is full
                try:
                    sent += client.send(block)
                    quiet = 0
                except BlockingIOError:
                    quiet += 1
                    await a.engine.ping(b.ip4)
            assert sent < 64 * MIB
            client.shutdown(socket.SHUT_WR)
            assert len(await read_all(server)) == sent
            client.close()
            server.close()

    run("asyncio", work)


def test_cancelled_connect_leaves_nothing() -> None:
    async def work() -> None:
        async with pair(PATH_NONE) as (a, b):
            attempt = asyncio.ensure_future(a.engine.connect(b.ip4, 80))
            await until(lambda: a.engine.stats()["flows"] == 1, "the attempt is under way")
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            await until(lambda: a.engine.stats()["flows"] == 0, "the attempt is gone")

    run("asyncio", work)


def test_listening_twice_is_an_error() -> None:
    async def work() -> None:
        async with pair() as (a, _):
            first = await a.engine.listen(None, 80)
            with pytest.raises(OSError, match="80"):
                await a.engine.listen(None, 80)
            first.close()
            again = await a.engine.listen(None, 80)
            again.close()
            with pytest.raises(StopAsyncIteration):
                await anext(again)

    run("asyncio", work)


def test_taken_udp_port() -> None:
    async def work() -> None:
        async with pair() as (a, _):
            with pytest.raises(OSError) as caught:
                await Engine.start(NodePrivate.generate(os.urandom), port=a.engine.port4, bind4=a.underlay.ip)
            assert caught.value.errno == errno.EADDRINUSE

    run("asyncio", work)


def test_closing_during_traffic() -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            client.send(bytes(100_000))
            await a.engine.aclose()
            await a.engine.aclose()
            with pytest.raises(OSError):
                while await asyncio.get_running_loop().sock_recv(client, 1000):
                    pass
            with pytest.raises(OSError):
                await a.engine.connect(b.ip4, 80)
            client.close()
            server.close()

    run("asyncio", work)


@both_loops
def test_last_bytes_leave_before_the_engine_ends(loop: str) -> None:
    async def work() -> None:
        async with pair() as (a, b):
            client, server = await connected(a, b)
            await asyncio.get_running_loop().sock_sendall(client, bytes(150_000))
            client.close()
            await a.engine.aclose()
            assert len(await read_all(server)) == 150_000
            server.close()

    run(loop, work)


async def crowd(a: Side, b: Side, count: int) -> tuple[list[TunnelSocket], list[TunnelSocket]]:
    """`count` open connections from a to b: both ends of each."""
    listener = await b.engine.listen(None, 90, backlog=count)
    ours, theirs = [], []
    for _ in range(0, count, 100):
        ours += await asyncio.gather(*(a.engine.connect(b.ip4, 90) for _ in range(100)))
        theirs += [await anext(listener) for _ in range(100)]
    listener.close()
    return ours, theirs


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """How many connections, each of four descriptors, this process may hold here, up to two thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield min(2000, (hard - 200) // 400 * 100)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", ["open", "with bytes nobody reads", "half closed", "in TIME-WAIT", "unanswered"])
def test_thousands_of_connections_do_not_hold_up_the_end(left: str, many_descriptors: int) -> None:
    """The promise is a second whatever they do; a stop that waits for a peer or a timer takes many."""

    async def work() -> None:
        async with pair() as (a, b):
            if left == "unanswered":  # 192.0.2.1 belongs to the peer by prefix, and to nobody there
                a.engine.upsert_peer(b.key, [parse_prefix(str(b.ip4)), parse_prefix("192.0.2.1")])
                connects = [
                    asyncio.ensure_future(a.engine.connect(IPv4Address("192.0.2.1"), 90))
                    for _ in range(many_descriptors)
                ]
                while a.engine.stats()["flows"] < many_descriptors:
                    await asyncio.sleep(0)
                assert await seconds_to_close(a) < 1
                ends = await asyncio.gather(*connects, return_exceptions=True)
                assert all(isinstance(end, OSError) for end in ends)
                return
            ours, theirs = await crowd(a, b, many_descriptors)
            if left == "with bytes nobody reads":
                for sock in ours:
                    sock.send(bytes(50_000))
            if left in ("half closed", "in TIME-WAIT"):
                for sock in ours:
                    sock.close()
            if left == "in TIME-WAIT":
                for sock in theirs:
                    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
                    sock.close()
                while a.engine.stats()["tcp_time_wait"] < many_descriptors:
                    await asyncio.sleep(0)
            assert await seconds_to_close(a) < 1
            for sock in ours + theirs:
                sock.close()

    run("asyncio", work)


async def seconds_to_close(side: Side) -> float:
    started = time.monotonic()
    await side.engine.aclose()
    return time.monotonic() - started


SCRIPT_HEAD = """
import os, sys
from meshnode.engine import _native
engine = _native.Engine(private_key=bytes(31) + b"@")
"""


def script(body: str) -> subprocess.CompletedProcess[str]:
    root = Path(_native.__file__).resolve().parents[2]
    env = dict(os.environ, PYTHONPATH=str(root))
    return subprocess.run(
        [sys.executable, "-c", SCRIPT_HEAD + body], capture_output=True, text=True, timeout=30, env=env, check=False
    )


def test_child_of_a_fork_cannot_use_the_engine() -> None:
    done = script(
        """
pid = os.fork()
if pid == 0:
    names = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    links = [os.readlink(n) for n in names if os.path.lexists(n)]
    try:
        engine.stats()
    except RuntimeError as error:
        ok = "after fork" in str(error) and not [l for l in links if l.startswith("socket")]
        del engine
        os._exit(0 if ok else 3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert engine.stats()["turns"] > 0
engine.close(1.0)
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "body",
    ["", "del engine", "engine.close(1.0); engine.close(1.0); engine.poll_events()", "raise SystemExit(0)"],
    ids=["no close", "collected", "closed twice", "exit"],
)
def test_interpreter_ends_cleanly(body: str) -> None:
    done = script(body)
    assert (done.returncode, done.stderr) == (0, "")


def test_tcp_memory_and_marks_have_bounds() -> None:
    for ecn in ("accept", "off", "ask"):
        _native.Engine(private_key=os.urandom(32), tcp_memory=1 << 20, tcp_ecn=ecn).close(1.0)
    with pytest.raises(ValueError, match="tcp_memory 1048575 is below 1048576 bytes; 0 lets the engine choose"):
        _native.Engine(private_key=os.urandom(32), tcp_memory=(1 << 20) - 1)
    with pytest.raises(ValueError, match="tcp_ecn maybe is none of accept, off, ask"):
        _native.Engine(private_key=os.urandom(32), tcp_ecn="maybe")


def test_congestion_control_has_a_name() -> None:
    for name in ("cubic", "newreno"):
        _native.Engine(private_key=os.urandom(32), congestion=name).close(1.0)
    with pytest.raises(ValueError, match="vegas is unknown; there are forbearing, cubic and newreno"):
        _native.Engine(private_key=os.urandom(32), congestion="vegas")


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.upsert_peer(b"short", []),
        lambda e: e.upsert_peer(bytes(32), [(b"\x01", 8)]),
        lambda e: e.upsert_peer(bytes(32), [(bytes(4), 33)]),
        lambda e: e.set_path(bytes(32), bytes(4), 70000, 0, 0, 0, 1, 0, b""),
        lambda e: e.set_path(bytes(32), bytes(4), 1, 0, 0, 0, 9, 0, b""),
        lambda e: e.set_path(bytes(32), bytes(4), 1, 0, 257, 0, 1, 0, b""),
        lambda e: e.set_extra(257, 1, 1),
        lambda e: e.inject(0, bytes(32), b"x"),
        lambda e: e.send_raw(bytes(5), 1, b"x"),
        lambda e: e.connect(1, b"", 1),
        lambda e: e.poll_events(0),
        lambda e: e.send_raw(bytes(4), 1, bytes(70000)),
    ],
)
def test_bad_arguments_are_refused(call: Any) -> None:
    engine = _native.Engine(private_key=os.urandom(32))
    with pytest.raises(ValueError):
        call(engine)
    engine.close(1.0)
    with pytest.raises(RuntimeError, match="closed"):
        engine.stats()
