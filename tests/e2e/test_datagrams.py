"""UDP and ICMP through the tunnel, as applications use them: endpoints, transports, refusals, bounds, echoes."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.bounds import DATAGRAM_QUEUE_MAX
from meshnode.base.errors import DialError, ListenError, NameNotFound, PeerOffline, Refused, TimedOut
from meshnode.base.keys import NodePublic
from meshnode.control.policy import Policy
from meshnode.engine.listener import Datagram
from meshnode.tunnel.datagram import DatagramEndpoint
from tests.e2e.town import LOOPS, make_town, run, until

KEY = bytes(range(32))
loops = pytest.mark.parametrize("loop", LOOPS)


async def answer(endpoint: DatagramEndpoint) -> None:
    """Says everything back, in capitals."""
    async for datagram in endpoint:
        endpoint.reply(datagram, datagram.data.upper())


@loops
def test_question_and_answer_both_ways_by_name_and_address(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            for here, there in ((one, other), (other, one)):
                server = await there.listen_packet(53)
                serving = asyncio.ensure_future(answer(server))
                for name in (there.name.partition(".")[0], *there.addresses):
                    async with await here.open_datagram(name, 53) as client:
                        client.send(b"who?")
                        got = await client.recv()
                        assert got.data == b"WHO?" and got.source == client.remote
                        assert got.to in here.addresses
                        assert there.netmap is not None and got.peer_key == there.netmap.self_node.key
                        identity = here.whois((str(got.source.ip), got.source.port))
                        assert identity is not None and identity.name == there.name
                server.close()
                await serving

    run(loop, work)


class Recorder(asyncio.DatagramProtocol):
    """What a DatagramProtocol is told."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.heard.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.heard.put_nowait(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.put_nowait("lost")


@loops
def test_protocols_written_for_asyncio(loop: str) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            server, served = await other.create_datagram_endpoint(Recorder, local_port=9)
            assert server.get_extra_info("sockname") == ("0.0.0.0", 9)
            client, heard = await one.create_datagram_endpoint(Recorder, remote=("other", 9))
            assert client.get_extra_info("peername") == (str(other.addresses[0]), 9)
            client.sendto(b"hello")
            data, addr = await served.heard.get()
            assert (data, addr[0]) == (b"hello", str(one.addresses[0]))
            server.sendto(b"and you", addr)
            assert await heard.heard.get() == (b"and you", (str(other.addresses[0]), 9))
            client.sendto(bytes(2000))
            too_large = await heard.heard.get()
            assert isinstance(too_large, DialError) and too_large.errno == errno.EMSGSIZE
            server.close()
            assert await served.heard.get() == "lost" and server.is_closing()
            client.sendto(b"hello?")
            assert isinstance(await heard.heard.get(), ConnectionRefusedError)
            client.abort()
            assert await heard.heard.get() == "lost"

    run(loop, work)


def test_what_does_not_fit_is_said_at_once() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            server = await other.listen_packet(7)
            for ip, limit in zip(other.addresses, (1252, 1232), strict=True):
                async with await one.open_datagram(ip, 7) as client:
                    assert client.max_size(ip.version) == limit
                    with pytest.raises(DialError, match=f"{limit + 1} bytes do not fit.*at most {limit}") as error:
                        client.send(bytes(limit + 1))
                    assert error.value.errno == errno.EMSGSIZE
                    client.send(bytes(limit))
                    assert len((await server.recv()).data) == limit

    run("asyncio", work)


def test_refusals_reach_the_connected_and_nobody_else() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            async with await one.open_datagram("other", 54) as client:
                client.send(b"anyone?")
                with pytest.raises(ConnectionRefusedError, match="54 refused") as refused:
                    await client.recv()
                assert isinstance(refused.value, Refused) and refused.value.errno == errno.ECONNREFUSED
                assert client.recv_nowait() is None  # told once
            async with await one.listen_packet() as loose:
                loose.send(b"anyone?", (str(other.addresses[0]), 54))
                loose.send(b"x", Endpoint(one.addresses[0], loose.port))
                assert (await loose.recv()).data == b"x"  # the refusal came before, and is not ours to hear

    run("asyncio", work)


def test_the_connected_hear_their_remote_only() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            right, wrong = await other.listen_packet(1000), await other.listen_packet(1001)
            client = await one.open_datagram("other", 1000)
            wrong.send(b"not me", (one.addresses[0], client.port))
            right.send(b"me", (one.addresses[0], client.port))
            assert (await client.recv()).data == b"me"
            assert client.foreign_count == 1
            with pytest.raises(DialError, match="connected to .*:1000 and cannot send"):
                client.send(b"", (str(other.addresses[0]), 1001))
            with pytest.raises(DialError, match="no remote; say where"):
                right.send(b"")
            with pytest.raises(DialError, match="'other' is no IP address; resolve"):
                right.send(b"", ("other", 5))
            with pytest.raises(NameNotFound, match="did you mean other"):
                await one.open_datagram("othr", 5)
            with pytest.raises(ListenError, match="UDP port 1000 cannot be opened.*in use; try another") as taken:
                await other.listen_packet(1000)
            assert taken.value.errno == errno.EADDRINUSE

    run("asyncio", work)


def test_nobody_reads_the_oldest_go_and_are_counted() -> None:
    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one")
            async with await one.listen_packet() as slow, await one.listen_packet() as fast:
                target = Endpoint(one.addresses[0], slow.port)
                total = DATAGRAM_QUEUE_MAX + 100

                def arrived() -> int:
                    return len(slow._waiting) + slow.dropped_count

                for number in range(total):
                    fast.send(b"%d" % number, target)
                    if number % 64 == 63 or number == total - 1:  # no faster than the engine takes them
                        sent = number + 1
                        await until(lambda: arrived() == sent, "all so far have arrived")  # noqa: B023
                assert (slow.dropped_count, fast.unsent_count) == (100, 0)
                assert [int(datagram.data) for datagram in slow._waiting] == list(range(100, total))

    run("asyncio", work)


def test_answers_enter_without_a_rule_and_questions_do_not() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            town.control.tailnet.set_policy(Policy.parse([{"src": ["*"], "dst": ["other:53"]}]))
            await until(lambda: other.netmap and len(other.netmap.rules) == 1, "other has the new rules")
            await until(lambda: one.netmap and not one.netmap.rules, "one has none")
            server, closed = await other.listen_packet(53), await other.listen_packet(54)
            client = await one.open_datagram("other", 53)
            client.send(b"question")
            got = await server.recv()
            server.send(b"answer", got.source)
            assert (await client.recv()).data == b"answer"
            server.send(b"unasked", (one.addresses[0], client.port + 1))
            async with await one.open_datagram("other", 54) as denied:
                denied.send(b"question")
                await until(lambda: other._inside().engine.stats()["ip_filter_drop"], "the question was dropped")
            assert closed.recv_nowait() is None
            await until(lambda: one._inside().engine.stats()["ip_filter_drop"], "what nobody asked for was dropped")

    run("asyncio", work)


def test_an_unreachable_peer_and_the_end_of_the_node() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, _other = await town.pair()
            idle = await one.listen_packet()
            waiting = asyncio.ensure_future(idle.recv())
            iterating = asyncio.ensure_future(answer(await one.listen_packet()))
            gone = await one.open_datagram("other", 5)
            key = one.names().node("other")
            assert key is not None
            one._inside().engine.remove_peer(key.key)
            gone.send(b"x")
            with pytest.raises(PeerOffline, match="cannot be reached"):
                await gone.recv()
            await one.aclose()
            with pytest.raises(DialError, match="closed") as closed:
                await waiting
            assert closed.value.errno == errno.EBADF
            await iterating
            with pytest.raises(DialError, match="closed"):
                idle.send(b"", ("100.64.0.2", 5))
            with pytest.raises(DialError, match="not running"):
                await one.listen_packet()

    run("asyncio", work)


def test_a_cancelled_reader_loses_nothing() -> None:
    async def work() -> None:
        async with make_town() as town:
            one = await town.join("one")
            async with await one.listen_packet() as endpoint:
                first, second = asyncio.ensure_future(endpoint.recv()), asyncio.ensure_future(endpoint.recv())
                await asyncio.sleep(0)
                endpoint._on_datagram(Datagram(b"x", Endpoint(one.addresses[0], 1), one.addresses[0], NodePublic(KEY)))
                first.cancel()  # after it was woken, before it ran
                assert (await second).data == b"x"
                with pytest.raises(asyncio.CancelledError):
                    await first

    run("asyncio", work)


def test_icmp_echo_inside_the_tunnel() -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()

            async def ping(host: Any, **options: Any) -> Any:
                return await one.ping(host, kind="icmp", **options)

            for host in ("other", *other.addresses):
                pong = await ping(host, size=1000)
                assert (pong.node.name, pong.kind) == (other.name, "icmp") and 0 < pong.latency_s < 5
            assert (await ping("one")).is_self
            with pytest.raises(DialError, match="too long") as large:
                await ping("other", size=1253)
            assert large.value.errno == errno.EMSGSIZE
            town.control.tailnet.set_policy(Policy.parse([]))
            await until(lambda: other.netmap and not other.netmap.rules, "other allows nothing")
            await until(lambda: not other.status().filter_rules, "the rules are in use")
            with pytest.raises(TimedOut):
                await ping("other", timeout=0.3)

    run("asyncio", work)
