"""Our relay client and our relay on loopback: plain and TLS, asyncio and uvloop, and what goes wrong."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshnode.base.addr import RegionId, parse_ip
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.engine.engine import Engine
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay.admit import allow_keys
from meshnode.relay.pool import RelayPool, RelayState
from meshnode.relay.server import RelayServer
from meshnode.run.clock import Clock
from meshnode.wire import derp
from meshnode.wire.disco import MAGIC

CLOCK = Clock()
REGION = RegionId(900)
DISCO = MAGIC + bytes(80)
LIMIT_S = 10.0


@dataclass
class Certificate:
    """A self-signed certificate for 127.0.0.1 and localhost."""

    path: Path
    pin: str

    def server(self) -> bytes:
        return self.path.read_bytes()


def make_certificate(folder: Path, *names: str, days: int = 1) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = []
    for text in names:
        is_ip = text[0].isdigit()
        alternatives.append(x509.IPAddress(ipaddress.ip_address(text)) if is_ip else x509.DNSName(text))
    start = now - datetime.timedelta(days=30 if days < 0 else 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{'-'.join(names)}{days}.pem"
    path.write_bytes(pem + secret)
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Certificate(path, "sha256-raw:" + hashlib.sha256(der).hexdigest())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certs"), "127.0.0.1", "localhost")


@dataclass
class Client:
    """A pool and what it was told."""

    pool: RelayPool
    key: NodePublic
    got: list[tuple[int, NodePublic, bytes]] = field(default_factory=list)
    gone: list[tuple[int, NodePublic, int]] = field(default_factory=list)
    states: list[RelayState] = field(default_factory=list)

    def state(self) -> RelayState:
        found = self.pool.status()
        return found[0].state if found else RelayState.CLOSED


async def until(wanted: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not wanted():
            await asyncio.sleep(0.002)


class Bed:
    """Pools and servers that are closed at the end."""

    def __init__(self) -> None:
        self.pools: list[RelayPool] = []
        self.servers: list[RelayServer] = []
        self.engines: list[Engine] = []

    async def server(self, port: int = 0, **about: Any) -> RelayServer:
        server = RelayServer(clock=CLOCK, **about)
        await server.start(port=port)
        self.servers.append(server)
        return server

    async def client(self, relays: RelayMap, *, connected: bool = True, **about: Any) -> Client:
        private = about.pop("private", None) or NodePrivate.generate(CLOCK.entropy)
        home = about.pop("home", REGION)
        if about.pop("carried", False):
            engine = await Engine.start(private)
            self.engines.append(engine)
            about["carrier"] = engine.adopt_relay
        client = Client(RelayPool(private, clock=about.pop("clock", CLOCK), **about), private.public())
        self.pools.append(client.pool)
        client.pool.on_packet = lambda *a: client.got.append(a)
        client.pool.on_peer_gone = lambda *a: client.gone.append(a)
        client.pool.on_state = lambda _, state: client.states.append(state)
        client.pool.set_map(relays)
        client.pool.set_home(home)
        if connected:
            await until(lambda: client.state() is RelayState.CONNECTED)
        return client

    async def aclose(self) -> None:
        for pool in self.pools:
            assert not pool.failed.done() or pool.failed.cancelled()
            await pool.aclose()
        for engine in self.engines:
            await engine.aclose()
        for server in self.servers:
            await server.aclose()
            assert not server.client_count


def run(scenario: Callable[[Bed], Awaitable[None]], *, uvloop: bool = False) -> None:
    async def main() -> None:
        bed = Bed()
        try:
            await scenario(bed)
        finally:
            await bed.aclose()

    if uvloop:
        factory = pytest.importorskip("uvloop").new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
    else:
        asyncio.run(main())


async def exchange(a: Client, b: Client, packet: bytes = b"\x04" + bytes(1000)) -> None:
    for sender, receiver in ((a, b), (b, a)):
        before = len(receiver.got)
        assert sender.pool.send(REGION, receiver.key, packet)
        await until(lambda r=receiver, n=before: len(r.got) > n)
        assert receiver.got[-1] == (REGION, sender.key, packet)


@pytest.mark.parametrize("uvloop", [False, True])
def test_plain(uvloop: bool) -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a, b = [await bed.client(server.relay_map(), plain=True) for _ in range(2)]
        await exchange(a, b)
        assert a.states == [RelayState.CONNECTING, RelayState.CONNECTED]
        await until(lambda: all(m.is_home for c in (a, b) for m in server.find(c.key)))

    run(scenario, uvloop=uvloop)


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("how", ["ca_file", "pin", "insecure", "name"])
def test_tls(how: str, uvloop: bool, certificate: Certificate) -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server(tls=certificate.server())
        region = server.region("127.0.0.1")
        about: dict[str, Any] = {"ca_file": str(certificate.path)} if how in ("ca_file", "name") else {}
        changes: dict[str, Any] = {}
        if how == "pin":
            changes = {"cert_name": certificate.pin}
        elif how == "name":
            changes = {"host": "relay.invalid", "cert_name": "localhost"}
        elif how == "insecure":
            changes, about = {"insecure": True}, {"allow_insecure": True}
        relays = with_node(region, **changes)
        await exchange(await bed.client(relays, **about), await bed.client(relays, **about))

    run(scenario, uvloop=uvloop)


def with_node(region: RelayRegion, **changes: Any) -> RelayMap:
    return RelayMap({region.id: replace(region, nodes=(replace(region.nodes[0], **changes),))})


@pytest.mark.parametrize(
    ("changes", "about", "words"),
    [
        ({}, {}, "not trusted"),
        ({"insecure": True}, {}, "not trusted"),
        ({"cert_name": "sha256-raw:" + "00" * 32}, {}, "not the one pinned"),
        ({"host": "other.example"}, {"ca": True}, "not for other.example"),
        ({"cert_name": "other.example"}, {"ca": True}, "not for other.example"),
    ],
)
def test_certificates_are_never_skipped(
    changes: dict[str, Any], about: dict[str, Any], words: str, certificate: Certificate
) -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server(tls=certificate.server())
        options = {"ca_file": str(certificate.path)} if about else {}
        relays = with_node(server.region("127.0.0.1"), **changes)
        client = await bed.client(relays, connected=False, **options)
        await until(lambda: client.pool.status()[0].error)
        assert words in client.pool.status()[0].error
        assert RelayState.CONNECTED not in client.states and not server.client_count

    run(scenario)


def test_a_pinned_certificate_must_be_in_date_and_for_the_host(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        for made, words in (
            (make_certificate(tmp_path, "127.0.0.1", days=-2), "outside its dates"),
            (make_certificate(tmp_path, "other.example"), "for other.example, not for 127.0.0.1"),
        ):
            server = await bed.server(tls=made.server())
            relays = with_node(server.region("127.0.0.1"), cert_name=made.pin)
            client = await bed.client(relays, connected=False)
            await until(lambda c=client: c.pool.status()[0].error)
            assert words in client.pool.status()[0].error

    run(scenario)


def test_nodes_are_tried_in_order_and_every_failure_is_named() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        with socket.create_server(("127.0.0.1", 0)) as unused:
            free = unused.getsockname()[1]
        dead = RelayNode("900z", REGION, "127.0.0.1", ipv4="127.0.0.1", port=free, stun_port=-1)
        stun = replace(dead, name="900s", stun_only=True)
        good = server.region("127.0.0.1").nodes[0]
        client = await bed.client(RelayMap({REGION: RelayRegion(REGION, "x", "x", (stun, dead, good))}), plain=True)
        assert client.pool.status()[0].node == good.name
        lost = await bed.client(
            RelayMap({REGION: RelayRegion(REGION, "x", "x", (stun, dead))}), plain=True, connected=False
        )
        await until(lambda: lost.pool.status()[0].error)
        assert f"127.0.0.1:{free}" in lost.pool.status()[0].error
        await until(lambda: lost.states[-1] is RelayState.DOWN)

    run(scenario)


def test_admission() -> None:
    async def scenario(bed: Bed) -> None:
        member = NodePrivate.generate(CLOCK.entropy)
        server = await bed.server(admit=allow_keys([member.public()]))
        await bed.client(server.relay_map(), plain=True, private=member)
        stranger = await bed.client(server.relay_map(), plain=True, connected=False)
        await until(lambda: stranger.pool.status()[0].error)
        assert "without admitting us" in stranger.pool.status()[0].error
        assert server.client_count == 1 and server.counters["refused"] >= 1
        server.close_keys([member.public()])
        assert server.client_count == 0

    run(scenario)


def test_admission_that_fails_or_hangs_is_a_no() -> None:
    async def scenario(bed: Bed) -> None:
        async def broken(key: NodePublic, source: str) -> bool:
            raise OSError("verifier is down")

        server = await bed.server(admit=broken)
        client = await bed.client(server.relay_map(), plain=True, connected=False)
        await until(lambda: client.pool.status()[0].error)
        assert not server.client_count

    run(scenario)


def test_absent_and_leaving_peers_are_told_of() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a, b = [await bed.client(server.relay_map(), plain=True) for _ in range(2)]
        absent = NodePrivate.generate(CLOCK.entropy).public()
        a.pool.send(REGION, absent, b"\x04data")
        a.pool.send(REGION, absent, DISCO)
        await until(lambda: a.gone)
        assert a.gone == [(REGION, absent, derp.GONE_NOT_HERE)]
        await exchange(a, b)
        await b.pool.aclose()
        await until(lambda: len(a.gone) == 2)
        assert a.gone[1] == (REGION, b.key, derp.GONE_DISCONNECTED)

    run(scenario)


def test_a_relay_that_restarts_is_found_again_and_packets_wait_for_it() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        relays = server.relay_map()
        a, b = [await bed.client(relays, plain=True) for _ in range(2)]
        port = server.port
        await server.aclose()
        await until(lambda: a.state() is RelayState.CONNECTING and b.state() is RelayState.CONNECTING)
        assert a.pool.send(REGION, b.key, b"\x04waiting")
        await bed.server(port, private=server.private)
        await until(lambda: a.state() is RelayState.CONNECTED and b.state() is RelayState.CONNECTED)
        await exchange(a, b)
        assert RelayState.DOWN not in a.states, "it was back within the second"

    run(scenario)


def test_a_call_outlives_dials_that_fail() -> None:
    """DISCO that is said while the relay is away is for the next connection, however many attempts that takes."""

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a = await bed.client(server.relay_map(), plain=True)
        absent, port = NodePrivate.generate(CLOCK.entropy).public(), server.port
        await server.aclose()
        await until(lambda: a.state() is not RelayState.CONNECTED)
        assert a.pool.send(REGION, absent, DISCO)
        await until(lambda: a.pool.status()[0].error.startswith("relay region"))
        await bed.server(port, private=server.private)
        await until(lambda: a.gone)
        assert a.gone == [(REGION, absent, derp.GONE_NOT_HERE)], "the relay answers what was said to somebody absent"

    run(scenario)


@pytest.mark.parametrize("carried", [False, True])
def test_a_connection_from_an_address_that_is_gone_is_dialled_anew(carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a = await bed.client(server.relay_map(), plain=True, carried=carried)
        b = await bed.client(server.relay_map(), plain=True)
        a.pool.on_network([parse_ip("192.0.2.77")])
        await exchange(a, b) if not carried else None
        assert a.states == [RelayState.CONNECTING, RelayState.CONNECTED], "not this one's"
        a.pool.on_network([parse_ip("127.0.0.1")])
        await until(lambda: a.states == [RelayState.CONNECTING, RelayState.CONNECTED] * 2)
        assert a.pool.status()[0].error == ""

    run(scenario)


def test_a_relay_that_stays_away_is_down() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        client = await bed.client(server.relay_map(), plain=True)
        await server.aclose()
        await until(lambda: client.states[-1] is RelayState.DOWN)
        assert client.pool.status()[0].error

    run(scenario)


def test_other_regions_open_with_the_first_packet_and_answers_follow_the_route() -> None:
    async def scenario(bed: Bed) -> None:
        east, west = await bed.server(), await bed.server()
        other = RegionId(901)
        relays = RelayMap({REGION: east.region("127.0.0.1"), other: west.region("127.0.0.1", number=901)})
        a = await bed.client(relays, plain=True)
        b = await bed.client(relays, plain=True, home=other)
        assert a.pool.send(other, b.key, b"\x04hello")
        await until(lambda: b.got)
        assert b.got == [(other, a.key, b"\x04hello")] and len(a.pool.status()) == 2
        assert b.pool.send(REGION, a.key, b"\x04answer")
        await until(lambda: a.got)
        assert a.got == [(other, b.key, b"\x04answer")] and len(b.pool.status()) == 1
        assert not a.pool.send(RegionId(555), a.key, b"x"), "no such region"
        assert not a.pool.send(other, b.key, bytes(65_537))
        a.pool._clients[other].written_at -= 61
        a.pool._sweep()
        assert [s.region for s in a.pool.status()] == [REGION]
        a.pool.set_home(other)
        await until(lambda: a.state() is RelayState.CONNECTED and a.pool.status()[0].region == other)

    run(scenario)


def test_a_new_map_and_a_new_key_redial() -> None:
    async def scenario(bed: Bed) -> None:
        first, second = await bed.server(), await bed.server()
        client = await bed.client(first.relay_map(), plain=True)
        client.pool.set_map(second.relay_map())
        await until(lambda: second.client_count == 1 and first.client_count == 0)
        fresh = NodePrivate.generate(CLOCK.entropy)
        client.pool.set_private_key(fresh)
        await until(lambda: second.find(fresh.public()) and second.client_count == 1)
        client.pool.set_map(RelayMap())
        await until(lambda: second.client_count == 0)
        assert not client.pool.status()

    run(scenario)


def test_a_slow_reader_loses_its_own_packets_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.relay.server.WRITE_STALL_S", 1.0)

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a, b = [await bed.client(server.relay_map(), plain=True) for _ in range(2)]
        slow = await Raw.login(server.port)
        for number in range(20_000):
            a.pool.send(REGION, slow.key, b"\x04" + bytes(1300))
            if number % 64 == 0:
                await asyncio.sleep(0)
        await exchange(a, b)
        await until(lambda: any(m.dropped for m in server.find(slow.key)))
        await until(lambda: not server.find(slow.key))
        slow.close()
        assert server.client_count == 2

    run(scenario)


@dataclass
class Raw:
    """A client of bytes, to misbehave with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    key: NodePublic
    frames: derp.Frames

    @classmethod
    async def login(cls, port: int, private: NodePrivate | None = None, *, mesh_key: str = "") -> Raw:
        private = private or NodePrivate.generate(CLOCK.entropy)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        raw = cls(reader, writer, private.public(), derp.Frames(derp.TO_CLIENT))
        try:
            await raw._log_in(derp.ClientLogin(private), mesh_key)
        except BaseException:
            raw.close()
            raise
        return raw

    async def _log_in(self, login: derp.ClientLogin, mesh_key: str) -> None:
        self.writer.write(b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: derp\r\nConnection: upgrade\r\n\r\n")
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ") and b"Derp-Version: 2\r\n" in head
        (kind, payload) = await self.next()
        assert kind == derp.SERVER_KEY
        login.consume_server_key(payload)
        self.writer.write(login.create_client_info(CLOCK.entropy(24), mesh_key=mesh_key))
        (kind, payload) = await self.next()
        assert login.consume_server_info(payload).version == 2

    async def next(self) -> tuple[int, bytes]:
        async with asyncio.timeout(LIMIT_S):
            head = await self.reader.readexactly(derp.HEADER_LEN)
            return head[0], await self.reader.readexactly(int.from_bytes(head[1:], "big"))

    def close(self) -> None:
        self.writer.transport.abort()


@pytest.mark.parametrize(
    "frame",
    [
        derp.emit_frame(derp.SEND_PACKET, bytes(31)),
        derp.emit_frame(derp.SEND_PACKET, bytes(32 + 65_537)),
        derp.emit_frame(derp.NOTE_PREFERRED),
        derp.emit_frame(derp.NOTE_PREFERRED, b"\1\1"),
        derp.emit_frame(derp.PING, bytes(7)),
        derp.emit_frame(derp.PING, bytes(1001)),
        derp.emit_frame(derp.WATCH_CONNS),
        derp.emit_frame(derp.CLOSE_PEER, bytes(32)),
        derp.emit_frame(derp.FORWARD_PACKET, bytes(70)),
        derp.emit_frame(derp.CLIENT_INFO, bytes(100)),
        b"\x04\xff\xff\xff\xff",
    ],
)
def test_rule_breakers_are_cut_off(frame: bytes) -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        raw = await Raw.login(server.port)
        raw.writer.write(frame)
        async with asyncio.timeout(LIMIT_S):
            with suppress(ConnectionResetError):
                assert await raw.reader.read() == b""
        raw.close()
        await until(lambda: server.client_count == 0)
        assert server.stats()["protocol_errors"] == 1

    run(scenario)


def test_what_a_client_may_do_besides() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        raw = await Raw.login(server.port)
        for length in (8, 9, 1000):
            raw.writer.write(
                derp.emit_frame(0x7F, bytes(1000)) + derp.emit_frame(derp.PING, bytes(range(8)) + bytes(length - 8))
            )
            assert await raw.next() == (derp.PONG, bytes(range(8)))
        client = await bed.client(server.relay_map(), plain=True)
        raw.writer.write(derp.emit_send(client.key.raw, b""))
        await until(lambda: client.got)
        assert client.got == [(REGION, raw.key, b"")]
        raw.close()

    run(scenario)


def test_nobody_stays_without_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.relay.server.LOGIN_S", 0.05)

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        for first in (
            b"",
            b"GET /derp",
            b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(first)
            async with asyncio.timeout(LIMIT_S):
                with suppress(ConnectionResetError):
                    await reader.read()
            writer.close()
        await until(lambda: not server.stats()["conns"])
        assert server.stats()["login_late"] == 3

    run(scenario)


class Wire:
    """A forwarder on loopback that can stop carrying bytes from the relay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.is_frozen = False
        self.accepts = 0
        self.port = 0
        self.server: asyncio.Server
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[Any]] = []

    @classmethod
    async def start(cls, target: int) -> Wire:
        wire = cls(target)
        wire.server = await asyncio.start_server(wire._serve, "127.0.0.1", 0)
        wire.port = wire.server.sockets[0].getsockname()[1]
        return wire

    async def aclose(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepts += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        self.writers.append(writer)
        with suppress(OSError, asyncio.CancelledError):
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
            self.writers.append(there)
            await self._carry(reader, writer, back, there)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        there: asyncio.StreamWriter,
    ) -> None:
        async def up() -> None:
            while data := await reader.read(65536):
                there.write(data)
            there.close()

        async def down() -> None:
            while data := await back.read(65536):
                if not self.is_frozen:
                    writer.write(data)
            writer.close()

        await asyncio.gather(up(), down())


def test_a_silent_relay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is open and dead: asked, then given up, then dialled anew."""
    for name in ("ACTIVE_S", "IDLE_S", "PONG_MIN_S"):
        monkeypatch.setattr(f"meshnode.core.liveness.{name}", 0.05)

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        wire = await Wire.start(server.port)
        client = await bed.client(with_node(server.region("127.0.0.1"), port=wire.port), plain=True)
        await until(lambda: client.pool.status()[0].rtt_s is not None)
        wire.is_frozen = True
        await until(lambda: "silent" in client.pool.status()[0].error or wire.accepts > 1)
        wire.is_frozen = False
        await until(lambda: client.state() is RelayState.CONNECTED)
        await wire.aclose()

    run(scenario)


def test_a_silent_relay_is_noticed_however_often_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each netcheck asks the home for a sign of life; that must not put off the verdict."""
    for name in ("ACTIVE_S", "IDLE_S", "PONG_MIN_S"):
        monkeypatch.setattr(f"meshnode.core.liveness.{name}", 0.2)

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        wire = await Wire.start(server.port)
        client = await bed.client(with_node(server.region("127.0.0.1"), port=wire.port), plain=True)
        wire.is_frozen = True

        def is_noticed() -> bool:
            client.pool.ask(REGION)
            return "silent" in client.pool.status()[0].error or wire.accepts > 1

        await until(is_noticed)
        wire.is_frozen = False
        await until(lambda: client.state() is RelayState.CONNECTED)
        await wire.aclose()

    run(scenario)


def test_something_else_on_the_port_is_no_relay() -> None:
    async def scenario(bed: Bed) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        node = RelayNode("900a", REGION, "127.0.0.1", port=port)
        client = await bed.client(
            RelayMap({REGION: RelayRegion(REGION, "x", "x", (node,))}), plain=True, connected=False
        )
        await until(lambda: client.pool.status()[0].error)
        assert "HTTP status 200" in client.pool.status()[0].error
        server.close()

    run(scenario)


def test_a_handler_that_fails_costs_one_packet_and_no_connection() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a, b = [await bed.client(server.relay_map(), plain=True) for _ in range(2)]
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        good = b.pool.on_packet

        def fail(*_: Any) -> None:
            raise RuntimeError("the engine does not keep up")

        b.pool.on_packet = fail
        a.pool.send(REGION, b.key, b"\x04x")
        await until(lambda: b.pool.unhandled_count == 1)
        b.pool.on_packet = good
        await exchange(a, b)
        assert told == ["a packet that came by relay could not be handled"] and b.states[-1] is RelayState.CONNECTED

    run(scenario)


# --- the same with connections that the engine serves ---


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("how", ["plain", "ca_file", "pin", "insecure", "name"])
def test_the_engine_carries(how: str, uvloop: bool, certificate: Certificate) -> None:
    """Both ends served by engines: every way to trust, DISCO both ways, notices, and a relay that restarts."""

    async def scenario(bed: Bed) -> None:
        tls = None if how == "plain" else certificate.server()
        server = await bed.server(tls=tls)
        about: dict[str, Any] = {"ca_file": str(certificate.path)} if how in ("ca_file", "name") else {}
        changes: dict[str, Any] = {}
        if how == "pin":
            changes = {"cert_name": certificate.pin}
        elif how == "name":
            changes = {"host": "relay.invalid", "cert_name": "localhost"}
        elif how == "insecure":
            changes, about = {"insecure": True}, {"allow_insecure": True}
        elif how == "plain":
            about = {"plain": True}
        relays = with_node(server.region("127.0.0.1"), **changes)
        a, b = [await bed.client(relays, carried=True, **about) for _ in range(2)]
        await exchange(a, b, DISCO)
        await until(lambda: all(m.is_home for c in (a, b) for m in server.find(c.key)))
        await until(lambda: a.pool.status()[0].tx_bytes > 0 and a.pool.status()[0].rx_bytes > 0)
        absent = NodePrivate.generate(CLOCK.entropy).public()
        a.pool.send(REGION, absent, DISCO)
        await until(lambda: (REGION, absent, derp.GONE_NOT_HERE) in a.gone)
        port = server.port
        await server.aclose()
        await until(lambda: a.state() is not RelayState.CONNECTED and b.state() is not RelayState.CONNECTED)
        await bed.server(port, private=server.private, tls=tls)
        await until(lambda: a.state() is RelayState.CONNECTED and b.state() is RelayState.CONNECTED)
        await exchange(a, b, DISCO)

    run(scenario, uvloop=uvloop)


@pytest.mark.parametrize(
    ("changes", "about", "words"),
    [
        ({}, {}, "its certificate is not trusted: self"),
        ({"host": "relay.invalid"}, {"ca": True}, "its certificate is not trusted: hostname mismatch"),
        ({"insecure": True}, {}, "its certificate is not trusted: self"),
        ({"cert_name": "sha256-raw:" + "0" * 64}, {}, "not the one pinned"),
        ({"cert_name": "other.example"}, {"ca": True}, "its certificate is not trusted: hostname mismatch"),
    ],
)
def test_the_engine_skips_no_certificate(
    changes: dict[str, Any], about: dict[str, Any], words: str, certificate: Certificate
) -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server(tls=certificate.server())
        options = {"ca_file": str(certificate.path)} if about else {}
        relays = with_node(server.region("127.0.0.1"), **changes)
        client = await bed.client(relays, connected=False, carried=True, **options)
        await until(lambda: client.pool.status()[0].error)
        assert words in client.pool.status()[0].error
        assert RelayState.CONNECTED not in client.states and not server.client_count

    run(scenario)


def test_the_engine_refuses_what_is_no_relay() -> None:
    async def scenario(bed: Bed) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        node = RelayNode("900a", REGION, "127.0.0.1", port=server.sockets[0].getsockname()[1])
        relays = RelayMap({REGION: RelayRegion(REGION, "x", "x", (node,))})
        plain = await bed.client(relays, plain=True, connected=False, carried=True)
        await until(lambda: plain.pool.status()[0].error)
        assert "HTTP status 200" in plain.pool.status()[0].error
        tls = await bed.client(relays, connected=False, carried=True)
        await until(lambda: tls.pool.status()[0].error)
        assert "TLS failed" in tls.pool.status()[0].error
        server.close()

    run(scenario)


def test_a_silent_relay_is_noticed_by_the_engines_link(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACTIVE_S", "IDLE_S", "PONG_MIN_S"):
        monkeypatch.setattr(f"meshnode.core.liveness.{name}", 0.05)

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        wire = await Wire.start(server.port)
        client = await bed.client(with_node(server.region("127.0.0.1"), port=wire.port), plain=True, carried=True)
        await until(lambda: client.pool.status()[0].rtt_s is not None)
        wire.is_frozen = True
        await until(lambda: "silent" in client.pool.status()[0].error or wire.accepts > 1)
        wire.is_frozen = False
        await until(lambda: client.state() is RelayState.CONNECTED)
        await wire.aclose()

    run(scenario)
