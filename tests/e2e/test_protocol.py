"""Our relay and our client held to the protocol's fine print, each by an end that writes bytes.

The checklist is docs/protocol/paths.md 11, lines 1 to 31; docs/protocol/conformance.md says which test shows which.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from meshnode.base.keys import NodePrivate
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay.pool import RelayState
from meshnode.relay.station import Station
from meshnode.wire import derp
from tests.e2e.test_derp import MESH_KEY, fetch, free_port, plan_in, relays_of
from tests.e2e.test_relay import CLOCK, DISCO, LIMIT_S, REGION, Bed, Raw, exchange, make_certificate, run, until

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"

# --- the server ---


def test_a_login_for_another_relay_is_cut_off_without_a_word() -> None:
    async def scenario(bed: Bed) -> None:
        server, private = await bed.server(), NodePrivate.generate(CLOCK.entropy)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        login = derp.ClientLogin(private)
        login.consume_server_key(derp.MAGIC + NodePrivate.generate(CLOCK.entropy).public().raw)
        writer.write(login.create_client_info(CLOCK.entropy(24)))
        with suppress(ConnectionResetError):
            rest = await asyncio.wait_for(reader.read(), LIMIT_S)
            assert [kind for kind, _ in derp.Frames(derp.TO_CLIENT).receive(rest)] == [derp.SERVER_KEY]
        writer.transport.abort()
        assert server.counters["protocol_errors"] == 1 and not server.client_count

    run(scenario)


def test_the_longest_packet_passes() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a, b = [await Raw.login(server.port) for _ in range(2)]
        packet = os.urandom(65_536)
        a.writer.write(derp.emit_send(b.key.raw, packet))
        assert await b.next() == (derp.RECV_PACKET, a.key.raw + packet)
        a.close()
        b.close()

    run(scenario)


def test_pings_in_a_burst_are_answered() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        raw = await Raw.login(server.port)
        tokens = [number.to_bytes(8, "big") for number in range(100)]
        raw.writer.write(b"".join(derp.emit_frame(derp.PING, token) for token in tokens))
        assert [await raw.next() for _ in tokens] == [(derp.PONG, token) for token in tokens]
        raw.close()

    run(scenario)


def test_who_calls_it_home_is_counted() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        raw = await Raw.login(server.port)
        for home in (True, False, True):
            raw.writer.write(derp.emit_preferred(home))
            await until(lambda wanted=home: server.stats()["homes"] == wanted)
        raw.close()
        await until(lambda: server.stats()["homes"] == 0)

    run(scenario)


def test_keep_alives_come_under_constant_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.relay.server.KEEP_ALIVE_S", 0.24)

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        a, b = [await Raw.login(server.port) for _ in range(2)]
        began, heard, packets = CLOCK.now(), 0, 0
        while heard < 5:
            a.writer.write(derp.emit_send(b.key.raw, bytes(1000)))
            while (kind := (await b.next())[0]) == derp.KEEP_ALIVE:
                heard += 1
            packets += kind == derp.RECV_PACKET
        assert heard <= (CLOCK.now() - began) / 0.24, "no more often than said"
        assert packets > 5
        a.close()
        b.close()

    run(scenario)


def test_two_connections_with_one_key() -> None:
    """Who spoke last receives; when they take turns both are told; the one that stays is well and loses nothing."""

    async def scenario(bed: Bed) -> None:
        server, private = await bed.server(), NodePrivate.generate(CLOCK.entropy)
        first, second = [await Raw.login(server.port, private) for _ in range(2)]
        sender = await Raw.login(server.port)

        async def speak(raw: Raw) -> None:
            raw.writer.write(derp.emit_frame(derp.PING, bytes(8)))
            while (await raw.next())[0] != derp.PONG:
                pass

        async def packet_at(raw: Raw, packet: bytes) -> None:
            sender.writer.write(derp.emit_send(private.public().raw, packet))
            assert await raw.next() == (derp.RECV_PACKET, sender.key.raw + packet)

        await packet_at(second, b"\x04 to the newest")
        await speak(first)
        await packet_at(first, b"\x04 to whoever spoke last")
        for raw in (second, first):
            raw.writer.write(derp.emit_frame(derp.PING, bytes(8)))
            kinds = {(await raw.next())[0]}
            while derp.PONG not in kinds:
                kinds.add((await raw.next())[0])
        kind, text = await second.next()
        assert kind == derp.HEALTH and b"another connection uses this node's key" in text
        second.close()
        while (await first.next()) != (derp.HEALTH, b""):
            pass
        for number in range(200):
            await packet_at(first, b"\x04" + number.to_bytes(4, "big"))
        first.close()
        sender.close()

    run(scenario)


def test_a_region_of_three_relays(tmp_path: Path) -> None:
    """Each is told of all, itself too: every pair meets, nothing goes round, a relay that is gone is forgotten."""

    async def scenario(bed: Bed) -> None:
        ports = [free_port() for _ in range(3)]
        everybody = tuple(f"127.0.0.1:{port}" for port in ports)
        stations = [
            await Station.start(
                plan_in(
                    tmp_path / str(n), listen=(f"127.0.0.1:{port}",), stun="off", plain=True, self_signed=False,
                    mesh_key=MESH_KEY, mesh=everybody,
                )
            )
            for n, port in enumerate(ports)
        ]  # fmt: skip
        clients = [await bed.client(relays_of(station), plain=True) for station in stations]
        for number, station in enumerate(stations):
            await until(
                lambda s=station: s.server.stats()["watchers"] == 2 and s.server.stats()["keys_remote"] >= 2, 30
            )
            others = {f"mesh{n}" for n in range(3) if n != number}
            assert station.server.mesh is not None and station.server.mesh.up == others, "and not itself"
        for a, b in ((0, 1), (1, 2), (2, 0)):
            await exchange(clients[a], clients[b], DISCO)
        await clients[1].pool.aclose()
        for n in (0, 2):
            await until(lambda c=clients[n]: (REGION, clients[1].key, derp.GONE_DISCONNECTED) in c.gone)
        clients[0].gone.clear()
        clients[0].pool.send(REGION, clients[1].key, DISCO)
        await until(lambda: clients[0].gone == [(REGION, clients[1].key, derp.GONE_NOT_HERE)])
        totals = [sum(s.server.stats()[name] for s in stations) for name in ("forwarded_out", "forwarded_in")]
        assert totals == [6, 6], "each packet once"
        await stations[2].aclose()
        await until(lambda: (REGION, clients[2].key, derp.GONE_DISCONNECTED) in clients[0].gone)
        await until(lambda: stations[0].server.stats()["keys_remote"] == 0)
        for station in stations[:2]:
            await station.aclose()

    run(scenario)


# --- HTTP and TLS of the server ---


def test_http2_is_not_agreed_on_and_old_tls_is_refused(tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        reader, writer = await asyncio.open_connection("127.0.0.1", station.server.port, ssl=context)
        tls = writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() in (None, "http/1.1")
        writer.write(UPGRADE)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.transport.abort()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python finds it old as well
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", station.server.port, ssl=context)
        await station.aclose()

    run(scenario)


async def chain_of(port: int, version: str) -> list[x509.Certificate]:
    """What a stranger is shown, in order."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-showcerts", version, "-connect", f"127.0.0.1:{port}",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await process.communicate()
    pems = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", out.decode(), re.DOTALL)
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in dict.fromkeys(pems)]


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
def test_the_meta_certificate_stands_behind_the_chain(version: str, tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        leaf, meta = await chain_of(station.server.port, version)
        assert station.pin.endswith(leaf.fingerprint(leaf.signature_hash_algorithm or pytest.fail()).hex())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # longer than X.509 wants: clients know it so
            (name,) = meta.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        assert name.value == "derpkey" + station.server.public.raw.hex() and meta.serial_number == derp.VERSION
        signer = meta.public_key()
        assert isinstance(signer, ed25519.Ed25519PublicKey)
        signer.verify(meta.signature, meta.tbs_certificate_bytes)
        constraints = meta.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert constraints.ca and meta.not_valid_before_utc < leaf.not_valid_after_utc
        await station.aclose()

    run(scenario)


def expiry(page: str) -> float:
    return float(re.findall(r"^meshnode_derp_certificate_expiry_timestamp_seconds (\d+)$", page, re.MULTILINE)[0])


def test_a_certificate_is_read_again_and_nobody_is_dropped(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        old, new = (make_certificate(tmp_path, "127.0.0.1", days=days) for days in (2, 5))
        file = tmp_path / "relay.pem"
        file.write_bytes(old.path.read_bytes())
        page = f"127.0.0.1:{free_port()}"
        station = await Station.start(plan_in(tmp_path, self_signed=False, cert=str(file), metrics=page))
        a, b = [await bed.client(relays_of(station, cert_name=old.pin), carried=c) for c in (True, False)]
        before = expiry((await fetch(f"http://{page}/metrics"))[2])
        file.write_bytes(new.path.read_bytes())
        station.reload()
        after = expiry((await fetch(f"http://{page}/metrics"))[2])
        assert 2.9 * 86400 < after - before < 3.1 * 86400
        c = await bed.client(relays_of(station, cert_name=new.pin))
        await exchange(a, b, DISCO)
        await exchange(a, c, DISCO)
        assert station.server.stats()["logins"] == 3, "who was here stayed"
        file.write_text("no certificate")
        station.reload()
        assert (await chain_of(station.server.port, "-tls1_3"))[0].not_valid_after_utc.timestamp() == after
        await station.aclose()

    run(scenario)


def test_a_signal_reads_the_certificate_again(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        old, new = (make_certificate(tmp_path, "127.0.0.1", days=days) for days in (2, 5))
        file = tmp_path / "relay.pem"
        file.write_bytes(old.path.read_bytes())
        command = f"-m meshnode derp --listen 127.0.0.1:0 --stun off --open --cert {file} --dir {tmp_path}/d"
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command.split(), stdout=asyncio.subprocess.PIPE
        )  # fmt: skip
        assert process.stdout is not None
        port = int((await process.stdout.readline()).split()[1].rpartition(b":")[2])
        node = RelayNode("900a", REGION, "127.0.0.1", ipv4="127.0.0.1", port=port, stun_port=-1, cert_name=old.pin)
        client = await bed.client(RelayMap({REGION: RelayRegion(REGION, "own", "own", (node,))}))
        file.write_bytes(new.path.read_bytes())
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(LIMIT_S):
            while (await chain_of(port, "-tls1_3"))[0].serial_number != serial_of(new.path):
                await asyncio.sleep(0.02)
        assert client.state() is RelayState.CONNECTED and client.states.count(RelayState.CONNECTED) == 1
        process.kill()
        await process.wait()

    run(scenario)


def serial_of(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def test_pages_of_the_relay_itself(tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        https = f"https://127.0.0.1:{station.server.port}"
        assert (await fetch(f"{https}/"))[::2] == (200, "a meshnode relay\n")
        assert json.loads((await fetch(f"{https}/bootstrap-dns?q=a.example"))[2]) == {}
        assert "Disallow: /" in (await fetch(f"{https}/robots.txt"))[2]
        assert (await fetch(f"{https}/derp"))[0] == 426
        await station.aclose()

    run(scenario)


# --- the client, and a relay that is a script ---

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, NodePrivate], "asyncio.Future[None] | object"]


class Stage:
    """A relay that logs clients in and then sends what a test wants."""

    def __init__(self) -> None:
        self.private = NodePrivate.generate(CLOCK.entropy)
        self.logins: list[float] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.heard: list[tuple[int, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            login = derp.ServerLogin(self.private)
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: upgrade\r\n\r\n")
            writer.write(login.create_server_key())
            frames = derp.Frames(derp.TO_SERVER)
            while data := await reader.read(65536):
                for kind, payload in frames.receive(data):
                    if kind == derp.CLIENT_INFO:
                        login.consume_client_info(payload)
                        writer.write(login.create_server_info(CLOCK.entropy(24)))
                        self.logins.append(CLOCK.now())
                        self.writers.append(writer)
                    elif kind == derp.PING:
                        writer.write(derp.emit_frame(derp.PONG, payload))
                    else:
                        self.heard.append((kind, payload))
        writer.transport.abort()


@asynccontextmanager
async def staged() -> AsyncIterator[tuple[Stage, RelayMap]]:
    stage = Stage()
    server = await asyncio.start_server(stage.serve, "127.0.0.1", 0)
    node = RelayNode("900a", REGION, "127.0.0.1", ipv4="127.0.0.1", port=server.sockets[0].getsockname()[1])
    try:
        yield stage, RelayMap({REGION: RelayRegion(REGION, "own", "own", (node,))})
    finally:
        server.close()
        for writer in stage.writers:
            writer.transport.abort()


@pytest.mark.parametrize("carried", [False, True], ids=["python", "engine"])
def test_what_a_relay_may_say_besides(carried: bool) -> None:
    """Unknown frames, frames cut short, keep-alives, a second greeting, health: none of them ends a connection."""

    async def scenario(bed: Bed) -> None:
        async with staged() as (stage, relays):
            client = await bed.client(relays, plain=True, carried=carried)
            stranger = NodePrivate.generate(CLOCK.entropy).public()
            (writer,) = stage.writers
            for length in (0, 1000, 1 << 20):
                writer.write(derp.emit_frame(0x7F, bytes(length)))
            writer.write(derp.emit_frame(derp.KEEP_ALIVE) + derp.emit_frame(derp.KEEP_ALIVE, b"with a tail"))
            writer.write(derp.emit_frame(derp.SERVER_KEY, derp.MAGIC + stage.private.public().raw))
            writer.write(derp.emit_frame(derp.PEER_GONE, stranger.raw[:31]) + derp.emit_frame(derp.RESTARTING, b"\0"))
            writer.write(derp.emit_frame(derp.RECV_PACKET, stranger.raw[:31]))
            writer.write(derp.emit_frame(derp.PEER_GONE, stranger.raw + b"\x77"))
            writer.write(derp.emit_frame(derp.HEALTH, b"two of you") + derp.emit_recv(stranger.raw, DISCO))
            await until(lambda: client.got)
            assert client.got == [(REGION, stranger, DISCO)], "from whomever the relay says, for others to judge"
            assert client.gone == [(REGION, stranger, derp.GONE_DISCONNECTED)]
            assert client.pool.status()[0].health == "two of you"
            writer.write(derp.emit_frame(derp.HEALTH) + derp.emit_frame(derp.PING, b"12345678"))
            await until(lambda: (derp.PONG, b"12345678") in stage.heard)
            assert client.pool.status()[0].health == ""
            assert client.states.count(RelayState.CONNECTED) == len(stage.logins) == 1
            await client.pool.aclose()

    run(scenario)


@pytest.mark.parametrize("carried", [False, True], ids=["python", "engine"])
def test_a_relay_that_changes_its_key_is_left(carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        async with staged() as (stage, relays):
            client = await bed.client(relays, plain=True, carried=carried)
            other = NodePrivate.generate(CLOCK.entropy).public()
            stage.writers[0].write(derp.emit_frame(derp.SERVER_KEY, derp.MAGIC + other.raw))
            await until(lambda: len(stage.logins) == 2)
            assert client.states.count(RelayState.CONNECTED) >= 1
            await client.pool.aclose()

    run(scenario)


@pytest.mark.parametrize("carried", [False, True], ids=["python", "engine"])
def test_a_restarting_relay_is_given_its_time(carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        async with staged() as (stage, relays):
            client = await bed.client(relays, plain=True, carried=carried)
            (writer,) = stage.writers
            writer.write(derp.emit_restarting(700, 60_000))
            await writer.drain()
            writer.close()
            ended = CLOCK.now()
            await until(lambda: len(stage.logins) == 2)
            assert stage.logins[1] - ended >= 0.65, "not before it said"
            await client.pool.aclose()

    run(scenario)


def test_by_websocket_our_messages_are_short_enough_for_stock_relays() -> None:
    """derper reads 32 KiB of a message and no more; what waits for our client is longer than that."""

    async def scenario(bed: Bed) -> None:
        private, lengths, packets = NodePrivate.generate(CLOCK.entropy), list[int](), list[bytes]()

        async def relay(request: web.Request) -> web.StreamResponse:
            if request.headers["Upgrade"].lower() != "websocket":
                return web.Response(status=426)
            socket = web.WebSocketResponse(protocols=["derp"], max_msg_size=32769)  # it refuses that length already
            await socket.prepare(request)
            login, frames = derp.ServerLogin(private), derp.Frames(derp.TO_SERVER)
            await socket.send_bytes(login.create_server_key())
            async for message in socket:
                lengths.append(len(message.data))
                for kind, payload in frames.receive(message.data):
                    if kind == derp.CLIENT_INFO:
                        login.consume_client_info(payload)
                        await socket.send_bytes(login.create_server_info(CLOCK.entropy(24)))
                    elif kind == derp.SEND_PACKET:
                        packets.append(payload[32:])
            return socket

        application = web.Application()
        application.router.add_get("/derp", relay)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", free_port())
        await site.start()
        node = RelayNode("900a", REGION, "127.0.0.1", ipv4="127.0.0.1", port=site._port)
        relays = RelayMap({REGION: RelayRegion(REGION, "own", "own", (node,))})
        client = await bed.client(relays, plain=True, carried=True)
        sent = [number.to_bytes(2, "big") + bytes(1300) for number in range(12)] + [bytes(40_000)]
        for packet in sent:
            assert client.pool.send(REGION, private.public(), packet)
        await until(lambda: len(packets) == len(sent))
        assert packets == sent and max(lengths) <= 32768
        assert client.states.count(RelayState.CONNECTED) == 1
        await client.pool.aclose()
        await runner.cleanup()

    run(scenario)
