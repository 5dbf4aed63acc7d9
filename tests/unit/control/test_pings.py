"""Pings of the server: what is answered, over which way, and what is refused."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest
from farside import FarSide, run

from meshnode.base.errors import RemoteProtocolError
from meshnode.control.dial import Server
from meshnode.control.pings import PingAnswerer, serve_c2n
from meshnode.netmap.tailcfg import WirePing
from meshnode.run.scope import Scope
from meshnode.wire.h2 import Data, Head

HERE = Server("http", "hs.example", 80)


def c2n(head: str, body: bytes = b"") -> str:
    return b64encode(f"{head} HTTP/1.1\r\nHost: c2n\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body).decode()


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        ("POST /echo", b"200", b"hello"),
        ("GET /echo?x=1", b"200", b"hello"),
        ("GET /update", b"200", b'{"Enabled":false,"Supported":false}'),
        ("POST /update", b"405", b"bad method\n"),
        ("GET /remoteapi/x", b"400", b"unknown c2n path\n"),
    ],
)
def test_c2n_routes(head: str, status: bytes, body: bytes) -> None:
    answer = serve_c2n(c2n(head, b"hello"))
    assert answer.startswith(b"HTTP/1.1 " + status) and answer.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("payload", ["!", "AAAA", "", b64encode(b"GET / HTTP/1.1\r\n").decode()])
def test_c2n_rubbish(payload: str) -> None:
    with pytest.raises(RemoteProtocolError):
        serve_c2n(payload)


def test_c2n_is_answered_over_the_channel_once() -> None:
    async def scenario() -> None:
        far = FarSide()
        session = far.session()
        answerer = PingAnswerer(HERE, None)
        ping = WirePing(url="https://unused/c2n/ab12", types="c2n", payload=c2n("POST /echo", b"abc"))
        async with Scope("t") as scope:
            work = scope.spawn(answerer.answer(ping, session), "ping")
            stream = await far.request("/c2n/ab12")
            body = b"".join(e.data for e in far.events if isinstance(e, Data) and e.stream == stream)
            assert body.startswith(b"HTTP/1.1 200") and body.endswith(b"abc")
            far.respond(stream)
            await work
            await answerer.answer(ping, session)
        assert answerer.answered == 1
        assert sum(isinstance(e, Head) for e in far.events) == 1

    run(scenario)


def test_liveness_over_the_channel() -> None:
    async def scenario() -> None:
        far = FarSide()
        answerer = PingAnswerer(HERE, None)
        ping = WirePing(url="https://unused/alive?id=1", url_is_noise=True)
        async with Scope("t") as scope:
            work = scope.spawn(answerer.answer(ping, far.session()), "ping")
            far.respond(await far.request("/alive?id=1"))
            await work
        assert answerer.answered == 1

    run(scenario)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/admin", "http://hs.example:81/x", "https://hs.example/x", "file:///etc/passwd", "x", ""]
)
def test_other_hosts_are_never_asked(url: str) -> None:
    async def scenario() -> None:
        calls: list[str] = []

        async def refuse(*where: object, **_: object) -> None:
            calls.append(str(where))

        loop = asyncio.get_running_loop()
        loop.create_connection = refuse  # type: ignore[method-assign,assignment]
        far = FarSide()
        answerer = PingAnswerer(HERE, None)
        await answerer.answer(WirePing(url=url), far.session())
        assert not calls and answerer.answered == 0 and not far.events[1:]

    run(scenario)


def test_kinds_we_do_not_answer() -> None:
    async def scenario() -> None:
        answerer = PingAnswerer(HERE, None)
        await answerer.answer(WirePing(url="http://hs.example/x", types="disco,TSMP"), FarSide().session())
        assert answerer.answered == 0

    run(scenario)
