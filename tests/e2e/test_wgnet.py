"""Plain WireGuard networks of one process with one another over loopback: everything but the peer is real."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from meshnode import WireGuardNetwork
from meshnode.base.addr import IP, Endpoint
from meshnode.base.errors import ConfigError, DialError, ListenError, NameNotFound, PeerOffline, Refused, TimedOut
from meshnode.base.keys import NodePrivate, NodePublic, PresharedKey
from meshnode.config.wgconf import WgConfig, WgPeer
from meshnode.core.whereabouts import TRIES
from meshnode.run import log
from tests.e2e.town import LOOPS, open_files, run, until

loops = pytest.mark.parametrize("loop", LOOPS)
PSK = PresharedKey(bytes(range(32)))


@dataclass
class End:
    """One end of a pair, as its file would say it."""

    private: NodePrivate
    addresses: tuple[IP, ...]
    port: int = 0

    def peer(self, **options: Any) -> WgPeer:
        """This end as the other's peer."""
        endpoint = {"host": "127.0.0.1", "port": self.port} if self.port else {}
        values = {"allowed": tuple(map(ip_network, self.addresses))} | endpoint | options
        return WgPeer(self.private.public(), **values)

    def config(self, *peers: WgPeer, **options: Any) -> WgConfig:
        return WgConfig(self.private, self.addresses, peers, **({"port": self.port} | options))


def end(number: int, port: int = 0) -> End:
    addresses = (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number}"))
    return End(NodePrivate.generate(os.urandom), addresses, port)


def free_port() -> int:
    import socket

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def pair(psk: PresharedKey | None = None, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """(one that knows where the other is, the other that does not)"""
    one, other = end(1), end(2, free_port())
    async with (
        WireGuardNetwork(other.config(one.peer(psk=psk)), name="other") as there,
        WireGuardNetwork(one.config(other.peer(psk=psk, **options)), name="one") as here,
    ):
        yield here, there


async def echo(reader: asyncio.StreamReader, writer: Any) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def ask(network: WireGuardNetwork, host: str, port: int, question: bytes = b"hello") -> bytes:
    reader, writer = await network.open_connection(host, port)
    writer.write(question)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@loops
def test_connections_datagrams_and_echoes_both_ways(loop: str) -> None:
    async def work() -> None:
        async with pair(PSK) as (here, there):
            await here.start_server(echo, 7)
            await there.start_server(echo, 7)
            for one, other in ((here, there), (there, here)):
                for ip in other.addresses:
                    assert await ask(one, str(ip), 7) == b"hello"
                    assert (await one.ping(ip)).ip == ip
                    async with await other.listen_packet(53) as server, await one.open_datagram(ip, 53) as client:
                        client.send(b"who?")
                        question = await server.recv()
                        assert question.peer_key == one.config.private.public()
                        server.reply(question, b"me")
                        assert (await client.recv()).data == b"me"
                with pytest.raises(Refused):
                    await one.connect(other.addresses[0], 8)
            question = bytes(range(256)) * 8192
            assert await ask(here, "10.0.0.2", 7, question) == question
            sock = await here.connect("10.0.0.2", 7)
            assert sock.peer_key == there.config.private.public() == here.peer_of("10.0.0.2").key
            sock.close()

    run(loop, work)


def test_status_tells_peers_handshakes_and_bytes() -> None:
    async def work() -> None:
        async with pair(keepalive_s=25) as (here, there):
            before = there.status().peers[0]
            assert (before.last_handshake, before.rx_bytes, before.endpoint) == (None, 0, None) or before.rx_bytes
            await here.ping("10.0.0.2")
            (peer,) = here.status().peers
            assert peer.last_handshake is not None and abs(here.clock.wall() - peer.last_handshake) < 30
            assert peer.endpoint == Endpoint(ip_address("127.0.0.1"), there.port) and peer.keepalive_s == 25
            await until(lambda: there.status().peers[0].endpoint, "it knows where we are")
            assert there.status().peers[0].endpoint == Endpoint(ip_address("127.0.0.1"), here.port)
            told = here.status().to_json()
            assert told["ListenPort"] == here.port and told["Peers"][0]["RxBytes"] > 0
            assert told["Peers"][0]["PublicKey"] == there.config.private.public().base64
            assert base64.b64encode(here.config.private.reveal()).decode() not in str(told) + repr(here.config)

    run("asyncio", work)


def test_keepalives_alone_begin_the_session() -> None:
    async def work() -> None:
        async with pair(keepalive_s=25) as (here, there):
            await until(lambda: there.status().peers[0].last_handshake, "a handshake without any data")

    run("asyncio", work)


def test_another_preshared_key_lets_nothing_through() -> None:
    async def work() -> None:
        one, other = end(1), end(2, free_port())
        async with (
            WireGuardNetwork(other.config(one.peer(psk=PSK))) as there,
            WireGuardNetwork(one.config(other.peer(psk=PresharedKey(bytes(31) + b"\1")))) as here,
        ):
            with pytest.raises(TimedOut):
                await here.ping("10.0.0.2", timeout=0.5)
            assert here.status().peers[0].last_handshake is None
            del there

    run("asyncio", work)


def test_several_networks_with_the_same_addresses_at_once() -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            networks: dict[str, Any] = {}
            for name in ("red", "blue", "green"):
                here, there = await stack.enter_async_context(pair())
                networks[name] = here

                async def say(reader: asyncio.StreamReader, writer: Any, name: str = name) -> None:
                    await reader.read()
                    writer.write(name.encode())
                    writer.close()

                await there.start_server(say, 80)
            for name, network in [*networks.items()] * 2:
                assert await ask(network, "10.0.0.2", 80) == name.encode()
                assert await ask(network, "fd00::2", 80) == name.encode()

    run("asyncio", work)


def test_a_peer_is_followed_where_it_goes() -> None:
    async def work() -> None:
        one, other = end(1), end(2, free_port())
        async with WireGuardNetwork(other.config(one.peer())) as there:
            ports = []
            for _ in range(2):
                async with WireGuardNetwork(one.config(other.peer())) as here:
                    await here.start_server(echo, 7)
                    await here.ping("10.0.0.2")
                    ports.append(here.port)
                    last = here.clock.wall()
                    await until(lambda: here.clock.wall() > last + 0.05, "one initiation per 20 ms and peer is taken")  # noqa: B023
                    await until(lambda: there.status().peers[0].endpoint.port == ports[-1], "it was followed")
                    assert await ask(there, "10.0.0.1", 7) == b"hello"
            assert ports[0] != ports[1]

    run("asyncio", work)


@dataclass
class Names:
    """A resolver whose answers the test decides."""

    answers: list[list[str]]
    asked: int = 0

    async def __call__(self, host: str, port: int) -> list[IP]:
        assert host == "vpn.test"
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if not answer:
            raise OSError(errno.ENOENT, "no such name")
        return [ip_address(text) for text in answer]


def test_a_name_is_resolved_again_while_nobody_answers() -> None:
    async def work() -> None:
        one, other = end(1), end(2, free_port())
        names = Names([[], ["127.0.0.3", "127.0.0.2"], ["127.0.0.3", "127.0.0.1"]])
        peer = replace(other.peer(), host="vpn.test")
        async with (
            WireGuardNetwork(other.config()) as there,
            WireGuardNetwork(one.config(peer), look_up=names) as here,
        ):
            where = here._where[peer.key]
            await until(lambda: where.retry_at is not None, "the first question failed")
            where.retry_at = here.clock.now()
            here.check()
            await until(lambda: where.endpoint, "the second question was answered")
            # Nobody answers anywhere, the other does not know us: pretend initiations of 15 s, and of 15 more, twice.
            engine = here._inside().engine
            sent = 0
            real = engine.peer_stats

            def stats(key: NodePublic) -> dict[str, int]:
                return real(key) | ({"initiations_sent": sent} if sent else {})

            engine.peer_stats = stats  # type: ignore[method-assign]
            tried = [str(where.endpoint)]
            for _ in range(2):
                here._busy[peer.key] = None
                sent += TRIES
                asked = names.asked
                here.check()
                await until(lambda: names.asked > asked or str(where.endpoint) != tried[-1], "it looks elsewhere")  # noqa: B023
                await until(lambda: not where._is_resolving, "the answer came")
                tried.append(str(where.endpoint))
            assert [text.partition(":")[0] for text in tried] == ["127.0.0.3", "127.0.0.2", "127.0.0.3"]
            sent += TRIES
            here._busy[peer.key] = None
            here.check()
            assert str(where.endpoint).startswith("127.0.0.1:")
            engine.peer_stats = real  # type: ignore[method-assign]
            there.reconfigure(other.config(one.peer()))
            await asyncio.gather(until_known(here, peer.key), here.ping("10.0.0.2", timeout=12))
            told = here.status().peers[0].to_json()
            assert told["EndpointName"] == f"vpn.test:{other.port}" and told["Endpoint"].startswith("127.0.0.1:")

    run("asyncio", work)


async def until_known(network: WireGuardNetwork, key: NodePublic) -> None:
    """Do not wait 5 s for the next initiation."""

    def known() -> bool:
        engine = network._inside().engine
        engine.kick(key)
        return bool(engine.peer_stats(key)["handshakes"])

    await until(known, "a handshake")


def test_what_cannot_be_reached_says_why() -> None:
    async def work() -> None:
        one, mute = end(1), end(2)
        async with WireGuardNetwork(one.config(mute.peer()), name="office") as net:
            with pytest.raises(NameNotFound, match=r"10\.9\.9\.9 is in no peer's AllowedIPs of network office"):
                await net.connect("10.9.9.9", 80)
            with pytest.raises(NameNotFound, match="db: network office has no names; use an IP address"):
                await net.connect("db", 80)
            with pytest.raises(PeerOffline, match="peer of 10.0.0.2 in network office has no Endpoint") as mute_error:
                await net.connect("10.0.0.2", 80)
            assert mute_error.value.errno == errno.EHOSTUNREACH
            with pytest.raises(ConfigError, match="no 'disco' ping"):
                await net.ping("10.0.0.2", kind="disco")
            with pytest.raises(ListenError, match=f"UDP port {net.port} cannot be used: another program has it"):
                async with WireGuardNetwork(replace(one.config(), port=net.port), name="again"):
                    pass
            assert await ask_self(net) == b"hello"
        with pytest.raises(DialError, match="network office is not running"):
            await net.connect("10.0.0.2", 80)
        with pytest.raises(RuntimeError, match="entered once"):
            await net.__aenter__()

    run("asyncio", work)


async def ask_self(net: WireGuardNetwork) -> bytes:
    await net.start_server(echo, 7)
    return await ask(net, "10.0.0.1", 7)


def test_a_sender_outside_its_ranges_is_not_heard() -> None:
    async def work() -> None:
        one, other = end(1), end(2, free_port())
        narrow = replace(one.peer(), allowed=(ip_network("10.0.0.99/32"),))
        async with (
            WireGuardNetwork(other.config(narrow)) as there,
            WireGuardNetwork(one.config(other.peer())) as here,
        ):
            with pytest.raises(TimedOut):
                await here.ping("10.0.0.2", timeout=0.5)
            stats = there._inside().engine.peer_stats(one.private.public())
            assert stats["drop_source"] > 0 and stats["handshakes"] > 0
            assert there.status().peers[0].endpoint is not None  # its address was learned all the same

    run("asyncio", work)


def test_changes_while_it_runs() -> None:
    async def work() -> None:
        one, other, third = end(1), end(2, free_port()), end(3)
        async with (
            WireGuardNetwork(other.config(one.peer())) as there,
            WireGuardNetwork(one.config(other.peer(), port=0)) as here,
        ):
            await there.start_server(echo, 7)
            await here.ping("10.0.0.2")
            # Another private key: a handshake at once, with it.
            fresh = replace(one, private=NodePrivate.generate(os.urandom))
            there.reconfigure(replace(there.config, peers=(fresh.peer(),)))
            here.reconfigure(replace(here.config, private=fresh.private))
            await here.ping("10.0.0.2", timeout=3)
            # A range moves between peers and back, repeatedly; connections of a peer that stays go on.
            reader, writer = await here.open_connection("10.0.0.2", 7)
            for _ in range(20):
                taken = WgPeer(third.private.public(), (ip_network("10.0.0.0/24"),))
                here.reconfigure(replace(here.config, peers=(other.peer(), taken)))
                here.reconfigure(replace(here.config, peers=(taken, other.peer())))
                here.reconfigure(replace(here.config, peers=(other.peer(),)))
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            with pytest.raises(ConfigError, match="ListenPort and MTU cannot change"):
                here.reconfigure(replace(here.config, mtu=1300))
            # Its peer removed, the connection ends.
            here.reconfigure(replace(here.config, peers=()))
            with pytest.raises(OSError):
                await reader.readexactly(1)
                writer.write(b"x")
                await writer.drain()
            writer.close()
            with pytest.raises(NameNotFound):
                await here.connect("10.0.0.2", 7)

    run("asyncio", work)


LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_points_of_low_order_get_no_packet() -> None:
    async def work() -> None:
        one, other = end(1), end(2, free_port())
        bad = [
            WgPeer(NodePublic(bytes.fromhex(text)), (ip_network(f"10.1.0.{n}/32"),), None, "127.0.0.1", other.port, 1)
            for n, text in enumerate(LOW_ORDER)
        ]
        async with (
            WireGuardNetwork(other.config(one.peer())),
            WireGuardNetwork(one.config(*bad, other.peer())) as here,
        ):
            await here.ping("10.0.0.2")
            for peer in bad:
                with pytest.raises(OSError):
                    await here.ping(str(peer.allowed[0].network_address), timeout=0.1)
            assert here._inside().engine.stats()["wg_tx_initiation"] == 1  # the good peer's

    run("asyncio", work)


def test_a_peer_that_is_ourselves() -> None:
    """A peer whose endpoint is our own port: what is sent there comes back, is nobody's, and makes no storm."""

    async def work() -> None:
        one, other = end(1, free_port()), end(2, free_port())
        loop = replace(end(9).peer(), host="127.0.0.1", port=one.port, keepalive_s=1)
        async with WireGuardNetwork(other.config(one.peer())), WireGuardNetwork(one.config(loop, other.peer())) as here:
            with pytest.raises(TimedOut):
                await here.ping("10.0.0.9", timeout=0.5)
            stats = here._inside().engine.stats()
            assert stats["wg_tx_initiation"] <= 3 and stats["wg_tx_response"] == 0
            await here.ping("10.0.0.2")

    run("asyncio", work)


def test_very_large_configurations() -> None:
    async def work() -> None:
        one, other = end(1), end(2, free_port())
        many = tuple(ip_network((f"10.{a}.{b}.0", 24)) for a in range(2, 200) for b in range(256))
        crowd = [WgPeer(NodePublic(bytes([9, n] + [7] * 30)), (ip_network((0xAC100000 + n, 32)),)) for n in range(200)]
        wide = replace(other.peer(), allowed=(*other.peer().allowed, *many))
        async with WireGuardNetwork(other.config(one.peer())), WireGuardNetwork(one.config(wide, *crowd)) as here:
            await here.ping("10.0.0.2", timeout=10)
            told = here.status().peers
            assert len(told) == 201 and len(told[0].allowed) == len(many) + 2
            assert here.route(ip_address("10.199.255.7")) == ip_network("10.199.255.0/24")

    run("asyncio", work)


def test_tcp_memory_bounds_every_connection_together() -> None:
    """A receiver that reads nothing fills no more than its network may hold."""

    async def work() -> None:
        one, other = end(1), end(2, free_port())
        async with (
            WireGuardNetwork(other.config(one.peer()), tcp_memory=1 << 20, tcp_ecn="ask") as there,
            WireGuardNetwork(one.config(other.peer()), tcp_ecn="off") as here,
        ):
            listener = await there.listen(7)
            async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
                senders = []
                for _ in range(8):
                    sock = await here.connect(str(other.addresses[0]), 7)
                    stack.callback(sock.close)
                    stack.callback((await anext(listener)).close)
                    loop = asyncio.get_running_loop()
                    senders.append(tasks.create_task(loop.sock_sendall(sock, bytes(4 << 20))))
                engine = there._inside().engine
                await until(lambda: engine.stats()["ip_memory_refused"], "the memory is used up")
                assert engine.stats()["ring_bytes"] <= 1 << 20
                for sender in senders:
                    sender.cancel()

    run("asyncio", work)
    one = end(1)
    with pytest.raises(ConfigError, match="tcp_memory: 5 is no amount of memory; use 1048576 bytes or more, or 0"):
        WireGuardNetwork(one.config(), tcp_memory=5)
    with pytest.raises(ConfigError, match="tcp_ecn: 'maybe' is none of accept, ask, off"):
        WireGuardNetwork(one.config(), tcp_ecn="maybe")


FILE = """[Interface]
PrivateKey = {private}
Address = 10.0.0.{number}/24, fd00::{number}/64
{port}PostUp = touch {marker}
PreDown = touch {marker}
[Peer]
PublicKey = {public}
AllowedIPs = 10.0.0.0/24, fd00::/64
{endpoint}"""


def test_files_are_used_and_their_commands_are_not(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"

    def write(name: str, own: End, peer: End) -> Path:
        path = tmp_path / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text(
            FILE.format(
                private=base64.b64encode(own.private.reveal()).decode(),
                number=str(own.addresses[0])[-1],
                port=f"ListenPort = {own.port}\n" if own.port else "",
                marker=marker,
                public=peer.private.public().base64,
                endpoint=f"Endpoint = 127.0.0.1:{peer.port}\n" if peer.port else "",
            )
        )
        return path

    async def work() -> None:
        one, other = end(1), end(2, free_port())
        there_file, here_file = write("there", other, one), write("here", one, other)
        async with WireGuardNetwork.from_file(there_file), WireGuardNetwork.from_file(str(here_file)) as here:
            assert here.name == "here"
            await here.ping("fd00::2")
        here_file.chmod(0o644)
        WireGuardNetwork.from_file(here_file)
        with pytest.raises(ConfigError, match="cannot read .*/none.conf: no such file"):
            WireGuardNetwork.from_file(tmp_path / "none.conf")

    stream = io.StringIO()
    log.configure(stream=stream)
    try:
        run("asyncio", work)
    finally:
        log.configure(level="off")
    said = stream.getvalue()
    assert f"PostUp would run a command: it is refused and never run  ({tmp_path}/there.conf:5)" in said
    assert f"{tmp_path}/here.conf holds a private key and others can read it (mode 0644); chmod 600" in said
    assert "others can read it (mode 0600)" not in said and "there.conf holds a private key" not in said
    assert not marker.exists()


def test_nothing_is_left_behind() -> None:
    counts: list[int] = []

    async def work() -> None:
        async with pair(keepalive_s=25) as (here, there):
            await there.start_server(echo, 7)
            await ask(here, "10.0.0.2", 7)
            await here.listen_packet(5)
            await here.listen(6)

    for _ in range(3):
        run("asyncio", work)
        counts.append(open_files())
    assert counts[1] == counts[2]
