"""A session and its streams against a scripted server in memory."""

from __future__ import annotations

import asyncio

import pytest
from farside import FarSide, run
from h2.errors import ErrorCodes

from meshnode.base.bounds import CONTROL_REPLY_MAX
from meshnode.base.errors import ControlError, MeshError, RemoteProtocolError
from meshnode.run.scope import Scope
from meshnode.wire.h2 import STREAM_WINDOW, Reset


def test_requests_run_side_by_side() -> None:
    async def scenario() -> None:
        far = FarSide()
        session = far.session()
        async with Scope("t") as scope:
            one = scope.spawn(session.request("POST", "/one", body=b"1"), "one")
            two = scope.spawn(session.request("POST", "/two"), "two")
            far.respond(await far.request("/two"), 404, b"no")
            assert (await two).status == 404
            far.respond(await far.request("/one"), 200, b"yes")
            assert (await one).body == b"yes"

    run(scenario)


def test_no_answer_in_time() -> None:
    async def scenario() -> None:
        far = FarSide()
        session = far.session()
        with pytest.raises(ControlError, match="did not answer /slow"):
            await session.request("POST", "/slow", timeout_s=0.01)
        await far.request("/slow")
        async with asyncio.timeout(5):
            while not any(isinstance(e, Reset) for e in far.events):
                await asyncio.sleep(0)
        assert session.error is None, "only the stream is given up"

    run(scenario)


def test_a_stream_larger_than_the_window_flows() -> None:
    async def scenario() -> None:
        far = FarSide()
        stream = far.session().open("POST", "/map")
        ident = await far.request("/map")
        far.respond(ident, 200, None)
        far.send(ident, b"x" * (STREAM_WINDOW + 500_000), end=True)
        total = 0
        while part := await stream.read():
            total += len(part)
        assert total == STREAM_WINDOW + 500_000

    run(scenario)


def test_empty_data_is_not_the_end() -> None:
    async def scenario() -> None:
        far = FarSide()
        stream = far.session().open("POST", "/map")
        ident = await far.request("/map")
        far.respond(ident, 200, None)
        far.h2._h2.send_data(ident, b"")
        far.send(ident, b"after", end=True)
        assert await stream.read() == b"after" and await stream.read() == b""

    run(scenario)


def test_ping_is_answered_while_nobody_reads() -> None:
    async def scenario() -> None:
        far = FarSide()
        far.session().open("POST", "/map")
        far.respond(await far.request("/map"), 200, b"unread")
        far.h2.ping(b"01234567")
        far.flush()
        assert any(type(e).__name__ == "Pong" for e in far.events)

    run(scenario)


def test_too_large_an_answer() -> None:
    async def scenario() -> None:
        far = FarSide()
        async with Scope("t") as scope:
            work = scope.spawn(_error(far.session().request("POST", "/x")), "x")
            far.respond(await far.request("/x"), 200, b"x" * (CONTROL_REPLY_MAX + 1))
            assert isinstance(await work, RemoteProtocolError)

    run(scenario)


async def _error(call: object) -> MeshError | None:
    try:
        await call  # type: ignore[misc]
    except MeshError as error:
        return error
    return None


@pytest.mark.parametrize("how", ["hang_up", "garbage", "reset", "goaway", "tampered"])
def test_every_end_reaches_the_reader(how: str) -> None:
    async def scenario() -> None:
        far = FarSide()
        session = far.session()
        stream = session.open("POST", "/map")
        ident = await far.request("/map")
        match how:
            case "hang_up":
                far.hang_up()
            case "garbage":
                far.raw(b"\xff" * 20_000)
            case "tampered":
                assert far.on_data is not None
                far.on_data(b"\x04\x00\x20" + bytes(32))
            case "reset":
                far.h2.cancel(ident)
                far.flush()
            case _:
                far.h2._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM, additional_data=b"calm")
                far.flush()
        with pytest.raises(MeshError):
            await stream.read()
        if how == "reset":
            assert session.error is None
        else:
            assert session.error is not None and session.closed.done()
            with pytest.raises(MeshError):
                session.open("GET", "/")
        if how == "goaway":
            assert "calm" in str(session.error)

    run(scenario)


def test_a_server_that_answers_no_ping_is_left() -> None:
    async def scenario() -> None:
        far = FarSide()
        session = far.session()
        async with Scope("t") as scope:
            scope.spawn(session.keep_alive(every_s=0.001, deadline_s=0.01), "keep-alive")
            async with asyncio.timeout(5):
                while session._pongs < 3:
                    await asyncio.sleep(0)
            assert session.error is None
            far.is_silent = True
            await session.closed
        assert "ping" in str(session.error)

    run(scenario)
