"""Our relay while everybody misbehaves at once: a pair that behaves loses nothing, and the others are gone soon.

In small; tests/bench/relay_abuse.py has the figures, native/tests/test_relay_lobby.c each limit by itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from meshnode.base.keys import NodePrivate
from meshnode.netmap.model import RelayMap
from meshnode.relay.admit import Gate, allow_keys
from meshnode.relay.server import RelayServer, listen_on
from meshnode.wire import derp
from tests.e2e.test_relay import CLOCK, REGION, Bed, Client, Raw, make_certificate, run, until

HALF_OPEN, DRIPPERS, SAME_KEY, STRANGERS = 200, 50, 20, 100
LOGIN_S, STALL_S = 6.0, 2.0
GONE_S = 60.0
"""For a slow machine: an idle one needs LOGIN_S and a little."""
PACKETS = 300
FAST_START = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n"
HELLO = bytes.fromhex("16030100c8010000c40303")


@dataclass
class Abusers:
    """All kinds of them at one relay; each method ends when its kind is gone."""

    server: RelayServer
    plain_port: int
    known: list[NodePrivate]
    one_key: list[Raw] = field(default_factory=list)

    async def half_open(self) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        with sock, suppress(OSError):
            await loop.sock_connect(sock, ("127.0.0.1", self.server.port))
            await loop.sock_sendall(sock, HELLO)
            assert await loop.sock_recv(sock, 1) == b""

    async def drip(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, ssl=context)
            while not reader.at_eof():
                writer.write(b"G")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        assert await reader.read(1) == b""
            writer.transport.abort()

    async def say_a_huge_length(self) -> None:
        raw = await Raw.login(self.plain_port, self.known[0])
        raw.writer.write(bytes((derp.SEND_PACKET, 0xFF, 0xFF, 0xFF, 0xFF)) + bytes(1000))
        with suppress(OSError):
            await raw.reader.read()
        raw.close()

    async def read_nothing(self) -> None:
        deaf = await Raw.login(self.plain_port, self.known[1])
        sender = await Raw.login(self.plain_port, self.known[2])
        packets = derp.emit_send(deaf.key.raw, b"\x04" + bytes(1279)) * 20
        while self.server.find(deaf.key):
            sender.writer.write(packets)
            await sender.writer.drain()
            await asyncio.sleep(0.002)
        deaf.close()
        sender.close()

    async def share_a_key(self) -> None:
        raw = await Raw.login(self.plain_port, self.known[3])
        self.one_key.append(raw)
        for _ in range(20):
            raw.writer.write(derp.emit_preferred(True))
            await asyncio.sleep(0.02)

    async def be_a_stranger(self) -> None:
        login = derp.ClientLogin(NodePrivate.generate(CLOCK.entropy))
        login.server = self.server.public
        reader, writer = await asyncio.open_connection("127.0.0.1", self.plain_port)
        writer.write(FAST_START + login.create_client_info(CLOCK.entropy(derp.NONCE_LEN)))
        with suppress(OSError):
            await reader.read()
        writer.transport.abort()

    async def all_at_once(self) -> None:
        async with asyncio.timeout(GONE_S), asyncio.TaskGroup() as tasks:
            for count, kind in (
                (HALF_OPEN, self.half_open),
                (DRIPPERS, self.drip),
                (1, self.say_a_huge_length),
                (1, self.read_nothing),
                (SAME_KEY, self.share_a_key),
                (STRANGERS, self.be_a_stranger),
            ):
                for _ in range(count):
                    tasks.create_task(kind())


async def talk(a: Client, b: Client, abuse: asyncio.Task[None]) -> int:
    """Packets there and back, one after the other, while the abuse lasts and at least PACKETS of them."""
    count = 0
    while count < PACKETS or not abuse.done():
        packet = b"\x04" + count.to_bytes(4, "big") + bytes(500)
        for sender, receiver in ((a, b), (b, a)):
            assert sender.pool.send(REGION, receiver.key, packet)
            await until(lambda r=receiver, n=count: len(r.got) > n, GONE_S)
            assert receiver.got[-1] == (REGION, sender.key, packet)
        count += 1
        await asyncio.sleep(0.001)
    return count


def test_all_abuse_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.relay.server.LOGIN_S", LOGIN_S)
    monkeypatch.setattr("meshnode.relay.server.WRITE_STALL_S", STALL_S)
    certificate = make_certificate(tmp_path, "127.0.0.1")

    async def scenario(bed: Bed) -> None:
        known = [NodePrivate.generate(CLOCK.entropy) for _ in range(7)]
        admit = Gate(allow_keys([private.public() for private in known]), clock=CLOCK)
        server = await bed.server(tls=certificate.server(), admit=admit)
        second = listen_on("127.0.0.1", 0)
        plain_port = second.getsockname()[1]
        server.take(second, tls=False)
        region = server.region("127.0.0.1")
        relays = RelayMap({region.id: replace(region, nodes=(replace(region.nodes[0], cert_name=certificate.pin),))})
        a, b = [await bed.client(relays, private=private) for private in known[:2]]

        abusers = Abusers(server, plain_port, known[2:])
        abuse = asyncio.create_task(abusers.all_at_once())
        count = await talk(a, b, abuse)
        await abuse
        newcomer = await bed.client(relays, private=known[6])

        assert [len(c.got) for c in (a, b)] == [count, count]
        assert len(a.states) == len(b.states) == 2, "the pair was cut off"
        assert newcomer.key
        stats = server.stats()
        assert stats["login_late"] == HALF_OPEN + DRIPPERS
        assert stats["stalled"] == 1
        assert stats["protocol_errors"] == 1
        assert server.counters["refused"] == STRANGERS
        assert stats["pending"] == stats["half_open"] == stats["crowded_out"] == 0
        assert stats["fights"] >= 1 and len(server.find(abusers.one_key[0].key)) == SAME_KEY
        for raw in abusers.one_key:
            raw.close()

    run(scenario)


async def allow_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"Allow": true}')
        await writer.drain()
    writer.close()


def processor_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_with_few_descriptors_members_still_come_in(tmp_path: Path) -> None:
    """A crowd takes every descriptor that clients may have: newcomers take the crowd's place, and nobody spins."""

    async def main() -> None:
        verifier = await asyncio.start_server(allow_all, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{verifier.sockets[0].getsockname()[1]}/verify"
        relay = await asyncio.create_subprocess_exec(
            "sh", "-c", 'ulimit -n 128; exec "$@"', "sh", sys.executable, "-m", "meshnode", "derp",
            "--listen", "127.0.0.1:0", "--stun", "off", "--plain", "--dir", str(tmp_path), "--verify-url", url,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert relay.stdout is not None
        async with asyncio.timeout(GONE_S):
            port = int((await relay.stdout.readline()).split()[1].rpartition(b":")[2])
        first = await Raw.login(port)
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(150)]
        before = processor_s(relay.pid)
        second = await Raw.login(port)
        for number in range(50):
            first.writer.write(derp.emit_send(second.key.raw, bytes([4, number]) * 100))
            kind, payload = await second.next()
            assert kind == derp.RECV_PACKET and payload == first.key.raw + bytes([4, number]) * 100
            await asyncio.sleep(0.01)
        assert processor_s(relay.pid) - before < 0.4
        for writer in [w for _, w in crowd]:
            writer.transport.abort()
        first.close()
        second.close()
        relay.terminate()
        async with asyncio.timeout(GONE_S):
            assert await relay.wait() == 0
        verifier.close()

    asyncio.run(main())
