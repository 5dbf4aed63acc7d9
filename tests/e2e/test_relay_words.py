"""What a relay says of itself and of others, heard by both links: health, a restart, and frames that are no good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.relay.pool import RelayState
from meshnode.relay.station import Station
from meshnode.run.clock import Clock
from meshnode.wire import derp
from tests.e2e import town
from tests.e2e.test_derp import plan_in, relays_of
from tests.e2e.test_relay import LIMIT_S, Bed, Client, run, until

links = pytest.mark.parametrize("carried", [False, True], ids=["python", "engine"])


class Dice(Clock):
    """Whoever throws them gets the most."""

    def uniform(self, low: float, high: float) -> float:
        return high


def hear(tmp_path: Path, carried: bool, story: Callable[[Station, Client, Callable[..., None]], Any]) -> None:
    """One client at one relay; the third argument tells it a frame: kind, payload."""

    async def scenario(bed: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        client = await bed.client(relays_of(station), carried=carried, clock=Dice())
        native, conn = station.server._native, station.server.clients()[0].conn
        assert native is not None
        await story(station, client, lambda kind, payload=b"": native.tell(conn, kind, payload))
        await station.aclose()

    run(scenario)


@links
def test_health_is_shown_until_it_is_taken_back(tmp_path: Path, carried: bool) -> None:
    async def story(_: Station, client: Client, tell: Callable[..., None]) -> None:
        tell(derp.HEALTH, b"two nodes\x1b[31m have your key")
        await until(lambda: client.pool.status()[0].health)
        assert client.pool.status()[0].health == "two nodes [31m have your key", "nothing for a terminal to obey"
        tell(derp.HEALTH)
        await until(lambda: not client.pool.status()[0].health)

    hear(tmp_path, carried, story)


@links
def test_a_relay_that_restarts_is_given_its_time_and_jitter(tmp_path: Path, carried: bool) -> None:
    """It asks for 0.4 s; the dice say twice that."""

    async def story(station: Station, client: Client, tell: Callable[..., None]) -> None:
        loop, native = asyncio.get_running_loop(), station.server._native
        assert native is not None
        tell(derp.RESTARTING, derp.emit_restarting(400, 60_000)[derp.HEADER_LEN :])
        native.end(station.server.clients()[0].conn, False)
        await until(lambda: client.state() is not RelayState.CONNECTED)
        lost_at = loop.time()
        await until(lambda: client.state() is RelayState.CONNECTED)
        assert 0.75 <= loop.time() - lost_at < LIMIT_S / 2

    hear(tmp_path, carried, story)


@links
def test_frames_cut_short_or_unknown_are_dropped_and_the_connection_stays(tmp_path: Path, carried: bool) -> None:
    async def story(_: Station, client: Client, tell: Callable[..., None]) -> None:
        for kind, payload in (
            (derp.KEEP_ALIVE, b""),
            (derp.KEEP_ALIVE, b"with words"),
            (derp.PEER_GONE, bytes(31)),
            (derp.RESTARTING, bytes(7)),
            (derp.PONG, b"nobody asked"),
            (derp.PEER_PRESENT, bytes(51)),
            (0x7F, bytes(1000)),
            (derp.PEER_GONE, bytes(32) + b"\x77"),
            (derp.HEALTH, b"still here"),
        ):
            tell(kind, payload)
        await until(lambda: client.pool.status()[0].health == "still here")
        assert client.states == [RelayState.CONNECTING, RelayState.CONNECTED]
        assert [reason for _, _, reason in client.gone] == [derp.GONE_DISCONNECTED]

    hear(tmp_path, carried, story)


def test_a_node_says_in_its_status_what_its_relay_finds_wrong() -> None:
    async def work() -> None:
        async with town.make_town() as place:
            node = await place.join("one")
            native = place.relay._native
            assert native is not None
            (client,) = place.relay.clients()
            native.tell(client.conn, derp.HEALTH, b"duplicate connection for this key")
            said = "says: duplicate connection for this key"
            await town.until(lambda: [h for h in node.status().health if said in h], "it is in the status")
            native.tell(client.conn, derp.HEALTH, b"")
            await town.until(lambda: not [h for h in node.status().health if said in h], "and taken back")

    town.run("asyncio", work)
