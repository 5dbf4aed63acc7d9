"""Fast start on real sockets, by Python's TLS and the engine's: only where TLS tells the relay's key."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from meshnode.base.keys import NodePrivate
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay.identity import make_self_signed, meta_certificate, pin_of
from meshnode.relay.pool import RelayState
from meshnode.relay.station import Station
from meshnode.wire import derp
from tests.e2e.test_derp import plan_in, relays_of
from tests.e2e.test_relay import CLOCK, DISCO, REGION, Bed, exchange, run, until

links = pytest.mark.parametrize("carried", [False, True], ids=["python", "engine"])
PACKET = b"\x04said before anybody answered"
REFUSAL = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Front:
    """Ends TLS before a plain relay, or before nothing; its chain may end with a meta-certificate."""

    def __init__(
        self, bed: Bed, folder: Path, meta: NodePrivate | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> None:
        self.bed = bed
        pem = make_self_signed(["127.0.0.1"])
        self.pin = pin_of(x509.load_pem_x509_certificate(pem))
        extra = ssl.DER_cert_to_PEM_cert(meta_certificate(meta.public())).encode() if meta is not None else b""
        path = folder / "front.pem"
        path.write_bytes(pem + extra)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(path)
        self.tls.minimum_version = self.tls.maximum_version = version
        self.accepts = 0
        self.port = 0
        self.target: int | None = None
        """The plain relay's port; None: `answer` is given and nothing else."""
        self.answer = b""
        self.wanted: Callable[[bytes], bool] = bool
        """What must have come before anything of it is passed on."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Front:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Clients first: what they have begun ends, handshakes too, before the loop does."""
        for pool in self.bed.pools:
            await pool.aclose()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await until(lambda: not self._server._active_count)

    @property
    def relays(self) -> RelayMap:
        node = RelayNode(
            "900a", REGION, "127.0.0.1", ipv4="127.0.0.1", port=self.port, stun_port=-1, cert_name=self.pin
        )
        return RelayMap({REGION: RelayRegion(REGION, "own", "own", (node,))})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepts += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError):
                await self._pass_on(reader, writer)
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target is None:
            if self.answer:
                await reader.read(65536)
                writer.write(self.answer)
                await reader.read()
            return
        first = b""
        while not self.wanted(first):
            more = await reader.read(65536)
            if not more:
                return
            first += more
        back, there = await asyncio.open_connection("127.0.0.1", self.target)
        there.write(first)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        try:
            await asyncio.gather(copy(reader, there), copy(back, writer))
        finally:
            there.transport.abort()


@links
@pytest.mark.parametrize("uvloop", [False, True])
def test_our_client_starts_fast_at_our_relay(tmp_path: Path, carried: bool, uvloop: bool) -> None:
    async def scenario(bed: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        a, b = [await bed.client(relays_of(station), carried=carried) for _ in range(2)]
        assert a.pool.status()[0].is_fast and b.pool.status()[0].is_fast
        assert station.server.counters["fast_starts"] == 2
        await exchange(a, b, DISCO)
        await station.aclose()

    run(scenario, uvloop=uvloop)


@links
@pytest.mark.parametrize(
    ("version", "has_meta", "is_fast"),
    [
        (ssl.TLSVersion.TLSv1_3, True, True),
        (ssl.TLSVersion.TLSv1_3, False, False),
        (ssl.TLSVersion.TLSv1_2, True, False),
    ],
    ids=["1.3", "a-proxy-that-ends-tls", "1.2"],
)
def test_only_under_tls_1_3_with_the_meta_certificate(
    tmp_path: Path, carried: bool, version: ssl.TLSVersion, has_meta: bool, is_fast: bool
) -> None:
    """The pin is judged on the relay's own certificate in each case."""

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        async with Front(bed, tmp_path, server.private if has_meta else None, version) as front:
            front.target = server.port
            client = await bed.client(front.relays, carried=carried)
            other = await bed.client(server.relay_map(), plain=True)
            assert client.pool.status()[0].is_fast is is_fast
            assert server.counters["fast_starts"] == is_fast
            await exchange(client, other, DISCO)

    run(scenario)


@links
def test_what_waits_leaves_with_the_login(tmp_path: Path, carried: bool) -> None:
    """In front of the relay all of it has come before the relay could say a word."""

    async def scenario(bed: Bed) -> None:
        server = await bed.server()
        other = await bed.client(server.relay_map(), plain=True)
        async with Front(bed, tmp_path, server.private) as front:
            front.target, front.wanted = server.port, lambda first: first.endswith(PACKET)
            client = await bed.client(front.relays, carried=carried, connected=False)
            packets = [b"\x04" + bytes([n]) * 1300 for n in range(20)] + [PACKET]
            for packet in packets:
                assert client.pool.send(REGION, other.key, packet)
            await until(lambda: len(other.got) == len(packets))
            assert other.got == [(REGION, client.key, packet) for packet in packets]
            await until(lambda: client.state() is RelayState.CONNECTED)
            assert front.accepts == 1

    run(scenario)


@links
def test_a_certificate_that_tells_another_key_is_fatal(tmp_path: Path, carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        told, said = (NodePrivate.generate(CLOCK.entropy) for _ in range(2))
        async with Front(bed, tmp_path, told) as front:
            front.answer = derp.ServerLogin(said).create_server_key()
            client = await bed.client(front.relays, carried=carried, connected=False)
            await until(lambda: client.pool.status()[0].error)
            assert "another key than before" in client.pool.status()[0].error
            assert RelayState.CONNECTED not in client.states


@links
def test_a_refusal_after_a_fast_start_is_one(tmp_path: Path, carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        station = await Station.start(plan_in(tmp_path, open=False, allow_keys=str(nobody)))
        client = await bed.client(relays_of(station), carried=carried, connected=False)
        await until(lambda: client.pool.status()[0].error)
        assert "without admitting us" in client.pool.status()[0].error
        assert station.server.counters["refused"] >= 1
        await station.aclose()

    nobody = tmp_path / "keys"
    nobody.write_text("")
    run(scenario)

    run(scenario)


@links
def test_an_answer_in_http_is_said_as_such(tmp_path: Path, carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        async with Front(bed, tmp_path, NodePrivate.generate(CLOCK.entropy)) as front:
            front.answer = REFUSAL
            client = await bed.client(front.relays, carried=carried, connected=False)
            await until(lambda: client.pool.status()[0].error)
            error = client.pool.status()[0].error
            assert "HTTP status 404" in error and ("by WebSocket" in error) is carried

    run(scenario)


@links
def test_a_relay_that_closes_after_tls_is_dialled_again(tmp_path: Path, carried: bool) -> None:
    async def scenario(bed: Bed) -> None:
        async with Front(bed, tmp_path, None) as front:
            client = await bed.client(front.relays, carried=carried, connected=False)
            await until(lambda: front.accepts >= 5)
            assert client.pool.status()[0].error

    run(scenario)
