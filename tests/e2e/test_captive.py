"""The captive-portal check against our own relay, and against servers that answer in a relay's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from meshnode.core.captive import Target
from meshnode.relay.server import RelayServer
from meshnode.underlay.captive import ask_all
from tests.e2e.town import LOOPS, open_files, run, until

loops = pytest.mark.parametrize("loop", LOOPS)


@asynccontextmanager
async def server(answer: bytes, heard: list[bytes]) -> AsyncIterator[Target]:
    """Says `answer` to whatever it hears; stands in a relay's place."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            heard.append(await reader.read(65536))
            writer.write(answer)
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Target("derp.example", "127.0.0.1", listening.sockets[0].getsockname()[1])
    finally:
        listening.close()


@loops
def test_our_relay_proves_itself_and_portals_do_not(loop: str) -> None:
    async def work() -> None:
        relay = RelayServer()
        await relay.start()
        heard: list[bytes] = []
        login = b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\nContent-Length: 0\r\n\r\n"
        page = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n<html>please log in"
        async with server(login, heard) as away, server(page, heard) as here, server(b"", heard) as silent:
            async with server(b"SSH-2.0\r\n\r\n", heard) as foreign:
                clean, gone = Target("127.0.0.1", "127.0.0.1", relay.port), Target("derp.example", "127.0.0.1", 1)
                found = dict(await ask_all([clean, away, here, foreign, gone], timeout_s=10.0))
                assert found == {clean: False, away: True, here: True, foreign: None, gone: None}
                assert await ask_all([silent], timeout_s=0.2) == [(silent, None)]
        assert len(heard) == 4  # the redirection was not followed
        assert all(b"\r\nX-Tailscale-Challenge: ts_derp.example\r\n" in said for said in heard)
        await relay.aclose()
        await until(lambda: len(asyncio.all_tasks()) <= 1, "every connection has ended")

    run(loop, work)  # the first loop of its kind opens what it keeps
    before = open_files()
    run(loop, work)
    assert open_files() <= before
