"""Which paths a change of the network touches: those whose packets leave from another address now, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.base.addr import IP, Endpoint, RegionId, parse_ip
from meshnode.base.keys import DiscoPrivate, NodePrivate, NodePublic
from meshnode.base.units import Seconds
from meshnode.core.path_values import State
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock
from meshnode.underlay.disco import Discovery
from meshnode.underlay.sources import KNOWN_MAX, Sources
from meshnode.wire import disco as wire


class LaterClock(Clock):
    """The system's clock, some seconds later."""

    __slots__ = ("ahead_s",)

    def __init__(self) -> None:
        super().__init__()
        self.ahead_s = 0.0

    def now(self) -> Seconds:
        return Seconds(super().now() + self.ahead_s)


CLOCK = LaterClock()
WIFI, CABLE = parse_ip("192.168.1.5"), parse_ip("10.0.0.5")
NEAR, FAR = Endpoint.parse("10.0.0.77:1"), Endpoint.parse("198.51.100.7:1")


class System:
    """Ways out, as the kernel would say."""

    def __init__(self) -> None:
        self.ways: dict[IP, IP | None] = {NEAR.ip: CABLE, FAR.ip: WIFI}
        self.asked = 0

    def look(self, target: IP) -> IP | None:
        self.asked += 1
        return self.ways.get(target)


def test_only_what_differs_was_touched() -> None:
    system = System()
    sources = Sources(system.look)
    sources.note(NEAR.ip)
    sources.note(FAR.ip)
    targets = {NEAR.ip, FAR.ip}
    assert sources.look_again(targets, None) == frozenset()
    system.ways[FAR.ip] = CABLE
    assert sources.look_again(targets, None) == {FAR.ip}
    assert sources.look_again(targets, None) == frozenset(), "told once"
    system.ways[NEAR.ip] = None
    assert sources.look_again(targets, None) == {NEAR.ip}


def test_an_address_whose_cable_is_out_is_no_way_though_the_routes_stay() -> None:
    sources = Sources(System().look)
    sources.note(NEAR.ip)
    assert sources.look_again({NEAR.ip}, {WIFI}) == {NEAR.ip}
    assert sources.look_again({NEAR.ip}, {WIFI, CABLE}) == {NEAR.ip}, "and plugged in again"
    assert sources.look_again({NEAR.ip}, {WIFI, CABLE}) == frozenset()


def test_what_was_never_pinged_is_not_asked_about_and_the_table_is_bounded() -> None:
    system = System()
    sources = Sources(system.look)
    assert sources.look_again({NEAR.ip}, None) == frozenset() and system.asked == 0
    for i in range(KNOWN_MAX + 10):
        sources.note(parse_ip(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}"))
    assert len(sources._known) == KNOWN_MAX


class Rig:
    """A Discovery with two peers that are direct, one by each way."""

    def __init__(self) -> None:
        self.system = System()
        own = NodePrivate.generate(CLOCK.entropy).public()
        self.discovery = Discovery(DiscoPrivate.generate(CLOCK.entropy), own, clock=CLOCK)
        self.discovery.roaming.judge_by(self.system.look)
        self.discovery.send_udp = self._udp
        self.discovery.send_relay = self._relay
        self.discovery.set_endpoints([Endpoint(WIFI, 5), Endpoint(CABLE, 5)])
        self.is_answered = True
        self.states: dict[Endpoint, State] = {}
        self.calls: list[tuple[NodePublic, tuple[Endpoint, ...]]] = []
        self.pings: list[Endpoint] = []
        self.privates = {end: DiscoPrivate.generate(CLOCK.entropy) for end in (NEAR, FAR)}
        self.keys = {end: NodePrivate.generate(CLOCK.entropy).public() for end in (NEAR, FAR)}
        for end, key in self.keys.items():
            self.discovery.on_netmap_peer(
                Node(
                    id=1,
                    stable_id="n",
                    name="peer",
                    user_id=1,
                    key=key,
                    machine=None,
                    disco=self.privates[end].public(),
                    addresses=(),
                    allowed=(),
                    endpoints=(end,),
                    home=RegionId(7),
                )  # fmt: skip
            )
            self.discovery.on_send(key, True)

    def _box(self, end: Endpoint) -> wire.Box:
        private = self.privates[end]
        return wire.Box(private, private.public(), self.discovery.public)

    def _udp(self, ip: IP, port: int, data: bytes) -> None:
        """The peers answer pings at once."""
        end = Endpoint(ip, port)
        self.pings.append(end)
        message = self._box(end).open(data)
        if isinstance(message, wire.Ping) and self.is_answered:
            pong = self._box(end).seal(wire.Pong(message.txid, Endpoint(WIFI, 5)), CLOCK.entropy(24))
            asyncio.get_running_loop().call_soon(self.discovery.on_disco, ip, port, pong)

    def _relay(self, region: RegionId, key: NodePublic, data: bytes) -> bool:
        end = next(e for e, k in self.keys.items() if k == key)
        message = self._box(end).open(data)
        if isinstance(message, wire.CallMeMaybe):
            self.calls.append((key, message.endpoints))
        return True

    def state(self, end: Endpoint) -> State:
        status = self.discovery.status(self.keys[end])
        assert status is not None
        return status.state

    async def until_direct(self) -> None:
        async with asyncio.timeout(10):
            while {self.state(NEAR), self.state(FAR)} != {State.DIRECT}:
                await asyncio.sleep(0.01)
        self.calls.clear()
        self.pings.clear()


def play(scenario: Callable[[Rig], None]) -> Rig:
    """Both direct, a quiet while, then what the scenario does; nobody answers any more."""

    async def main() -> Rig:
        rig = Rig()
        try:
            await rig.until_direct()
            rig.is_answered = False
            CLOCK.ahead_s += 3.0
            scenario(rig)
            rig.states = {end: rig.state(end) for end in (NEAR, FAR)}
        finally:
            rig.discovery.close()
        return rig

    return asyncio.run(main())


def wifi_lost(rig: Rig) -> None:
    rig.system.ways[FAR.ip] = None
    rig.discovery.roaming.on_network([Endpoint(CABLE, 5)], {WIFI}, {CABLE})


def container_started(rig: Rig) -> None:
    rig.discovery.roaming.on_network([Endpoint(WIFI, 5), Endpoint(CABLE, 5)], (), {WIFI, CABLE, parse_ip("172.17.0.1")})


def woke(rig: Rig) -> None:
    rig.discovery.roaming.on_everything()


def test_only_the_path_through_the_lost_address_is_doubted() -> None:
    rig = play(wifi_lost)
    assert rig.states == {NEAR: State.DIRECT, FAR: State.DEGRADED}
    assert NEAR in rig.pings, "the other is asked"


def test_a_peer_is_told_no_dead_address_and_so_leaves_it_at_once() -> None:
    rig = play(wifi_lost)
    told = [endpoints for key, endpoints in rig.calls if key == rig.keys[FAR]]
    assert told and all(Endpoint(WIFI, 5) not in endpoints for endpoints in told)


def test_containers_touch_no_path_and_cost_no_packet() -> None:
    rig = play(container_started)
    assert set(rig.states.values()) == {State.DIRECT} and not rig.pings and not rig.calls


def test_after_sleep_every_path_is_doubted() -> None:
    rig = play(woke)
    assert set(rig.states.values()) == {State.DEGRADED}
