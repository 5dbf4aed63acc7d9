"""The map stream and the updates beside it, against a scripted server in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from farside import FarSide, run

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import ControlError, MeshError, RemoteProtocolError, VersionRejected
from meshnode.base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from meshnode.base.units import Unix
from meshnode.control import poll as poll_module
from meshnode.control.announce import Announcement
from meshnode.control.client import ControlClient, ControlConfig, Keys
from meshnode.control.dial import Route, Server
from meshnode.control.poll import MapPoll, NodeGone, StreamEnded
from meshnode.netmap.model import Netmap
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope
from meshnode.wire.h2 import Data, End

NODE = {"ID": 1, "Name": "me.mesh.test.", "Key": "nodekey:" + "11" * 32, "Addresses": ["100.64.0.1/32"]}
FIRST = json.dumps({"Node": NODE, "Peers": []}).encode()
ALIVE = b'{"KeepAlive":true}'


@dataclass
class Owner:
    """What MapPoll needs of a client."""

    clock: Clock = field(default_factory=Clock)
    skew: float = 0.0
    netmap: Netmap | None = None
    netmaps: list[Netmap] = field(default_factory=list)
    progress: int = 0
    route: Route = field(default_factory=Route)

    def __post_init__(self) -> None:
        draw = self.clock.entropy
        disco = DiscoPrivate.generate(draw).public()
        self.keys = Keys(MachinePrivate.generate(draw), NodePrivate.generate(draw), disco)
        self.says = Announcement({"Hostname": "me"}, disco)
        self.config = ControlConfig("http://hs.example")
        self.server = Server.parse(self.config.url)
        self.counters = dict.fromkeys(("maps", "keepalives", "lite_updates"), 0)

    @property
    def wall(self) -> Unix:
        return Unix(self.clock.wall() + self.skew)

    def on_map(self, netmap: Netmap) -> None:
        self.netmap = netmap
        self.netmaps.append(netmap)

    def on_progress(self) -> None:
        self.progress += 1


@dataclass
class Bed:
    """A poll under test: its owner, the server's side, and the task."""

    owner: Owner
    far: FarSide
    task: asyncio.Task[MeshError]
    stream: int = 0

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not wanted():
                assert not self.task.done() or wanted(), self.task.result()
                await asyncio.sleep(0)

    def told(self, stream: int) -> dict[str, Any]:
        """The request body of a stream."""
        body = b"".join(e.data for e in self.far.events if isinstance(e, Data) and e.stream == stream)
        return cast("dict[str, Any]", json.loads(body))

    def ended(self, stream: int) -> bool:
        return any(isinstance(e, End) and e.stream == stream for e in self.far.events)

    async def error(self) -> MeshError:
        async with asyncio.timeout(5):
            return await self.task


def scenario(script: Callable[[Bed], Awaitable[None]], *, answered: bool = True, owner: Owner | None = None) -> None:
    """Run `script` against a poll whose stream was answered with 200."""

    async def play() -> None:
        far, who = FarSide(), owner or Owner()
        async with Scope("t") as scope:
            session = far.session()

            async def outcome() -> MeshError:
                try:
                    await MapPoll(cast(ControlClient, who), session, scope).run()
                except MeshError as error:
                    return error
                raise AssertionError("a poll ends by an error")

            bed = Bed(who, far, scope.spawn(outcome(), "poll"))
            bed.stream = await far.request("/machine/map")
            if answered:
                far.respond(bed.stream, 200, None)
            await script(bed)
            session.close()

    run(play)


def test_first_map_then_deltas_then_the_end() -> None:
    async def script(bed: Bed) -> None:
        bed.far.frame(bed.stream, FIRST)
        await bed.until(lambda: len(bed.owner.netmaps) == 1)
        assert bed.owner.progress == 1
        bed.far.frame(bed.stream, b'{"Domain":"x"}')
        await bed.until(lambda: len(bed.owner.netmaps) == 2)
        bed.far.send(bed.stream, b"", end=True)
        assert type(await bed.error()) is StreamEnded and bed.owner.progress == 1

    scenario(script)


def test_both_requests_tell_everything() -> None:
    owner = Owner()
    owner.says.change(
        endpoints=[(Endpoint.parse("10.0.0.1:5"), EndpointKind.LOCAL)],
        home_region=RegionId(7), disco=None, net_info={"DERPLatency": {"7-v4": 0.1}}, hostinfo=None,
    )  # fmt: skip

    async def script(bed: Bed) -> None:
        lite = await bed.far.request("/machine/map", 2)
        await bed.until(lambda: bed.ended(lite))
        stream, update = bed.told(bed.stream), bed.told(lite)
        assert stream["Stream"] and not stream["OmitPeers"] and not update["Stream"] and update["OmitPeers"]
        for name in ("Hostinfo", "Endpoints", "EndpointTypes", "DiscoKey", "NodeKey", "Version", "KeepAlive"):
            assert stream[name] == update[name]
        assert update["Endpoints"] == ["10.0.0.1:5"] and update["EndpointTypes"] == [1]
        assert update["Hostinfo"]["NetInfo"] == {"PreferredDERP": 7, "DERPLatency": {"7-v4": 0.1}}

    scenario(script, owner=owner)


def test_updates_are_debounced_newest_wins_and_latency_alone_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_module, "DEBOUNCE_S", 0.05)

    async def script(bed: Bed) -> None:
        first = await bed.far.request("/machine/map", 2)
        bed.far.respond(first)
        await bed.until(lambda: bed.owner.counters["lite_updates"] == 1)
        says = bed.owner.says
        nothing: dict[str, Any] = dict.fromkeys(("endpoints", "home_region", "disco", "net_info", "hostinfo"))
        for port in range(1, 20):
            says.change(**{**nothing, "endpoints": [(Endpoint.parse(f"10.0.0.1:{port}"), EndpointKind.STUN)]})
        second = await bed.far.request("/machine/map", 3)
        await bed.until(lambda: bed.ended(second))
        assert bed.told(second)["Endpoints"] == ["10.0.0.1:19"]
        bed.far.respond(second)
        await bed.until(lambda: bed.owner.counters["lite_updates"] == 2)
        generation = says.generation
        says.change(**{**nothing, "net_info": {"DERPLatency": {"7-v4": 0.5}}})
        assert says.generation == generation and not says.changed.is_set() and says.acknowledged == generation

    scenario(script)


def test_a_failed_update_is_tried_again() -> None:
    async def script(bed: Bed) -> None:
        bed.far.respond(await bed.far.request("/machine/map", 2), 500, b"oops")
        bed.far.respond(await bed.far.request("/machine/map", 3))
        await bed.until(lambda: bed.owner.counters["lite_updates"] == 1)
        assert not bed.task.done()

    scenario(script)


def test_heartbeat_without_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_module, "HEARTBEAT_S", 0.01)

    async def script(bed: Bed) -> None:
        for count in (2, 3, 4):
            bed.far.respond(await bed.far.request("/machine/map", count))

    scenario(script)


@pytest.mark.parametrize(
    ("status", "text", "kind", "mixed_up"),
    [
        (404, b"node not found", NodeGone, False),
        (400, b"node not found", NodeGone, False),
        (404, b"node key in request does not match the one associated with this machine key", NodeGone, True),
        (400, b"unsupported client version: v1", VersionRejected, None),
        (503, b"busy", ControlError, None),
    ],
)
@pytest.mark.parametrize("lite", [False, True])
def test_refusals(status: int, text: bytes, kind: type[MeshError], mixed_up: bool | None, lite: bool) -> None:
    async def script(bed: Bed) -> None:
        if lite and kind is ControlError:
            return  # an update that fails for the moment does not end the stream
        if lite:
            bed.far.respond(bed.stream, 200, None)
        bed.far.respond(await bed.far.request("/machine/map", 2) if lite else bed.stream, status, text)
        error = await bed.error()
        assert type(error) is kind
        if isinstance(error, NodeGone):
            assert error.mixed_up is mixed_up

    scenario(script, answered=False)


@pytest.mark.parametrize(
    "frame",
    [b'{"Peers":[]}', b"{", b"null", b"[]", b'{"Node":{"ID":0}}', b"\x28\xb5\x2f\xfdrubbish"],
)
def test_a_message_that_cannot_be_read_ends_the_stream(frame: bytes) -> None:
    async def script(bed: Bed) -> None:
        bed.far.frame(bed.stream, frame)
        assert isinstance(await bed.error(), RemoteProtocolError) and not bed.owner.netmaps

    scenario(script)


@pytest.mark.parametrize("raw", [bytes(4), b"\xff\xff\xff\xff"])
def test_impossible_frames(raw: bytes) -> None:
    async def script(bed: Bed) -> None:
        bed.far.send(bed.stream, raw)
        assert isinstance(await bed.error(), RemoteProtocolError)

    scenario(script)


def test_an_end_inside_a_frame_and_before_any_map() -> None:
    async def cut(bed: Bed) -> None:
        bed.far.send(bed.stream, b"\x20\0\0\0{", end=True)
        assert isinstance(await bed.error(), RemoteProtocolError)

    async def empty(bed: Bed) -> None:
        bed.far.send(bed.stream, b"", end=True)
        error = await bed.error()
        assert type(error) is ControlError, "no success: the backoff must grow"

    scenario(cut)
    scenario(empty)


@pytest.mark.parametrize("answered", [False, True])
def test_silence_ends_the_stream(monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    monkeypatch.setattr(poll_module, "WATCHDOG_S", 0.05)

    async def script(bed: Bed) -> None:
        if answered:
            bed.far.frame(bed.stream, FIRST)
        assert "silent" in str(await bed.error())

    scenario(script, answered=answered)


def test_keep_alives_feed_the_watchdog_but_half_a_message_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_module, "WATCHDOG_S", 0.6)

    async def script(bed: Bed) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        counters = bed.owner.counters
        while loop.time() - start < 1.3:
            before = counters["keepalives"]
            bed.far.frame(bed.stream, ALIVE)
            await bed.until(lambda before=before: counters["keepalives"] > before)  # type: ignore[misc]
        assert not bed.task.done() and bed.owner.progress == 0
        bed.far.send(bed.stream, b"\xff\xff\x0f\0")
        while not bed.task.done():
            bed.far.send(bed.stream, b"x")
            await asyncio.sleep(0.01)
        assert "silent" in str(await bed.error())

    scenario(script)


def test_sleep_is_obeyed_but_capped_and_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_module, "WATCHDOG_S", 0.6)
    monkeypatch.setattr(poll_module, "SLEEP_MAX_S", 0.9)

    async def script(bed: Bed) -> None:
        start = asyncio.get_running_loop().time()
        bed.far.frame(bed.stream, json.dumps({"Node": NODE, "Debug": {"SleepSeconds": 1e9}}).encode())
        await bed.until(lambda: bool(bed.owner.netmaps))
        assert 0.9 <= asyncio.get_running_loop().time() - start < 15

    scenario(script)


def test_the_servers_clock() -> None:
    async def script(bed: Bed) -> None:
        def says(seconds: float) -> bytes:
            from meshnode.control.tailnet import format_time

            wall = Unix(bed.owner.clock.wall() + seconds)
            return json.dumps({"Node": NODE, "ControlTime": format_time(wall)}).encode()

        for offset, skew in ((30.0, 0.0), (86_400.0, 86_400.0), (-86_400.0, -86_400.0)):
            count = len(bed.owner.netmaps)
            bed.far.frame(bed.stream, says(offset))
            await bed.until(lambda count=count: len(bed.owner.netmaps) > count)  # type: ignore[misc]
            assert abs(bed.owner.skew - skew) < 5
        bed.far.frame(bed.stream, json.dumps({"ControlTime": "2001-01-01T00:00:00Z"}).encode())
        await bed.until(lambda: len(bed.owner.netmaps) == 4)
        assert abs(bed.owner.skew + 86_400) < 5, "a server without a clock is not believed"

    scenario(script)


def test_a_key_that_passes_its_date_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_module, "EXPIRY_GRACE_S", 0.0)

    async def script(bed: Bed) -> None:
        from meshnode.control.tailnet import format_time

        soon = format_time(Unix(bed.owner.clock.wall() + 1.0))
        peer = {**NODE, "ID": 2, "Key": "nodekey:" + "22" * 32, "KeyExpiry": soon}
        bed.far.frame(bed.stream, json.dumps({"Node": NODE, "Peers": [peer]}).encode())
        await bed.until(lambda: bool(bed.owner.netmaps))
        assert not bed.owner.netmaps[0].peers[2].expired
        await bed.until(lambda: bed.owner.netmaps[-1].peers[2].expired)

    scenario(script)


def test_large_maps_are_read_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_module, "PARSE_ASIDE", 10)

    async def script(bed: Bed) -> None:
        peers = [{**NODE, "ID": n, "Key": f"nodekey:{n:064x}"} for n in range(2, 500)]
        bed.far.frame(bed.stream, json.dumps({"Node": NODE, "Peers": peers}).encode())
        await bed.until(lambda: bool(bed.owner.netmaps))
        assert len(bed.owner.netmaps[0].peers) == 498

    scenario(script)


def test_the_first_map_is_read_beside_an_unanswered_update() -> None:
    async def script(bed: Bed) -> None:
        await bed.far.request("/machine/map", 2)
        bed.far.frame(bed.stream, FIRST)
        await bed.until(lambda: bool(bed.owner.netmaps))
        assert bed.owner.counters["lite_updates"] == 0

    scenario(script)
