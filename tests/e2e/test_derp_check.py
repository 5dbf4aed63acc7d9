"""`meshnode derp --check`: what it finds at relays that are not as they should be, and what it says to do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.units import Unix
from meshnode.relay.check import check, run_check
from meshnode.relay.check_tls import Finding
from meshnode.relay.plan import Plan
from meshnode.relay.station import Station
from meshnode.run.clock import Clock
from tests.e2e.test_relay import make_certificate

PLAN = Plan(listen=("127.0.0.1:0",), stun="127.0.0.1:0", hosts=("127.0.0.1",), self_signed=True, open=True)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def find(folder: Path, *, clock: Clock | None = None, stun: int | None = None, pin: str = "", **changes: Any) -> Any:
    """{step: Finding} of a relay of ours."""

    async def work() -> list[Finding]:
        station = await Station.start(replace(PLAN, folder=folder / "derp", **changes), clock=clock)
        try:
            port = station.stun.port if station.stun is not None and stun is None else stun or 0
            shown = station.pin if pin == "right" else pin
            return await check("127.0.0.1", station.server.port, stun_port=port, pin=shown)
        finally:
            await station.aclose()

    return {finding.step: finding for finding in asyncio.run(work())}


def find_at(serve: Serve, context: ssl.SSLContext | None) -> Any:
    """{step: Finding} of something else on the port."""

    async def work() -> list[Finding]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            return await check("127.0.0.1", server.sockets[0].getsockname()[1], stun_port=0)

    return {finding.step: finding for finding in asyncio.run(work())}


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path, "127.0.0.1").path)
    return context


def test_a_healthy_relay_is_ok_in_every_step(tmp_path: Path) -> None:
    found = find(tmp_path, pin="right")
    steps = ["DNS", "TCP", "TLS", "certificate", "pin", "upgrade", "latency", "clock", "STUN"]
    assert list(found) == steps and all(finding.ok for finding in found.values()), found
    assert not any(finding.mend for finding in found.values()), "a pinned certificate needs no authority"


def test_another_pin_is_shown_with_the_right_one(tmp_path: Path) -> None:
    found = find(tmp_path, pin="sha256-raw:" + "00" * 32)
    assert not found["pin"].ok and "sha256-raw:" in found["pin"].text and "CertName" in found["pin"].mend
    assert found["upgrade"].ok


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [(("127.0.0.1",), -1, "expired at 20"), (("127.0.0.2",), 1, "for 127.0.0.2, 0 days left")],
)
def test_a_certificate_out_of_date_or_for_another(
    tmp_path: Path, names: tuple[str, ...], days: int, words: str
) -> None:
    path = make_certificate(tmp_path, *names, days=days).path
    found = find(tmp_path, self_signed=False, cert=str(path))
    assert not found["certificate"].ok and words in found["certificate"].text and found["certificate"].mend
    assert found["upgrade"].ok, "the other steps are looked at all the same"


@pytest.mark.parametrize("skew", [-300.0, 300.0])
def test_a_clock_that_is_wrong(tmp_path: Path, skew: float) -> None:
    class Wrong(Clock):
        def wall(self) -> Unix:
            return Unix(super().wall() + skew)

    found = find(tmp_path, clock=Wrong())
    assert not found["clock"].ok and "by NTP" in found["clock"].mend
    assert abs(float(found["clock"].text.split()[0]) - skew) < 30


def test_stun_that_does_not_answer(tmp_path: Path) -> None:
    found = find(tmp_path, stun=1)
    assert not found["STUN"].ok and "is UDP 1 open in the firewall" in found["STUN"].mend
    assert "STUN" not in find(tmp_path, stun=0)


def test_plain_http_is_told_and_looked_at(tmp_path: Path) -> None:
    found = find(tmp_path, self_signed=False, plain=True)
    assert not found["TLS"].ok and "--plain" in found["TLS"].mend
    assert found["upgrade"].ok and found["latency"].ok


def test_an_ordinary_web_server(context: ssl.SSLContext) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    found = find_at(serve, context)
    assert found["TLS"].ok and not found["upgrade"].ok
    assert "404 instead of an upgrade, nor by WebSocket" in found["upgrade"].text and found["upgrade"].mend


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed before an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n", "without a greeting"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n\x05\x00\x00\x00\x28"
            + bytes(40),
            "is no relay",
        ),
    ],
)
def test_something_else_on_the_port(context: ssl.SSLContext, answer: bytes, words: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    found = find_at(serve, context)
    assert not found["upgrade"].ok and words in found["upgrade"].text, found
    assert found["upgrade"].mend


def test_a_name_that_does_not_resolve_and_a_port_that_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(run_check("relay.invalid", as_json=True)) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["step"] == "DNS" and not found["ok"] and "make a DNS record" in found["mend"]
    assert asyncio.run(run_check("127.0.0.1:1", stun="off")) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("FAIL TCP          127.0.0.1 port 1: connection refused")
    assert "→ is the relay running there" in said[2] and len(said) == 3


def test_a_healthy_relay_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> int:
        station = await Station.start(replace(PLAN, folder=tmp_path / "derp", stun="off"))
        try:
            return await run_check(f"127.0.0.1:{station.server.port}", stun="off")
        finally:
            await station.aclose()

    assert asyncio.run(work()) == 0
    assert "FAIL" not in capsys.readouterr().out
