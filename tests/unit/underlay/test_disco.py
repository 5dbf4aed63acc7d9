"""Discovery against sealed packets: who is answered, who is believed, what costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshnode.base.addr import IP, Endpoint, RegionId, parse_ip
from meshnode.base.errors import PeerOffline, TimedOut
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePrivate, NodePublic
from meshnode.core.path_values import Mode, State
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock
from meshnode.underlay.disco import Discovery
from meshnode.wire import disco as wire

CLOCK = Clock()
HOME = RegionId(7)
US = NodePrivate.generate(CLOCK.entropy).public()
HERE = Endpoint.parse("192.0.2.50:4000")
TXID = bytes(range(12))
RELAYED = Endpoint.parse("127.3.3.40:7")
"""What a pong by relay region 7 says its ping came from."""


def node(key: NodePublic, disco: DiscoPrivate | None, *endpoints: Endpoint, home: RegionId = HOME) -> Node:
    return Node(
        id=1, stable_id="n", name="peer", user_id=1, key=key, machine=None, disco=disco.public() if disco else None,
        addresses=(), allowed=(), endpoints=endpoints, home=home,
    )  # fmt: skip


class Rig:
    """A Discovery whose outputs are lists, and one peer that can seal."""

    def __init__(self) -> None:
        self.discovery = Discovery(DiscoPrivate.generate(CLOCK.entropy), US)
        self.udp: list[tuple[IP, int, bytes]] = []
        self.relayed: list[tuple[RegionId, NodePublic, bytes]] = []
        self.paths: list[tuple[NodePublic, Endpoint | None, int, int]] = []
        self.kicks: list[NodePublic] = []
        self.discovery.send_udp = lambda *a: self.udp.append(a)
        self.discovery.send_relay = self._relay
        self.discovery.set_path = lambda *a: self.paths.append(a[:4])
        self.discovery.kick = self.kicks.append
        self.key = NodePrivate.generate(CLOCK.entropy).public()
        self.private = DiscoPrivate.generate(CLOCK.entropy)
        self.discovery.on_netmap_peer(node(self.key, self.private, HERE))

    def _relay(self, *about: Any) -> bool:
        self.relayed.append(about)
        return True

    def seal(self, message: wire.Message, private: DiscoPrivate | None = None) -> bytes:
        private = private or self.private
        return wire.Box(private, private.public(), self.discovery.public).seal(message, CLOCK.entropy(24))

    def open(self, data: bytes, private: DiscoPrivate | None = None) -> wire.Message | None:
        private = private or self.private
        return wire.Box(private, private.public(), self.discovery.public).open(data)

    def said(self, kind: type[wire.Message]) -> list[Any]:
        everything = [d for _, _, d in self.udp] + [d for _, _, d in self.relayed]
        return [m for d in everything if isinstance(m := self.open(d), kind)]

    def candidates(self, key: NodePublic) -> list[Endpoint]:
        status = self.discovery.status(key)
        assert status is not None
        return [c.endpoint for c in status.candidates]

    @property
    def state(self) -> State:
        status = self.discovery.status(self.key)
        assert status is not None
        return status.state


def run(scenario: Callable[[Rig], Any]) -> None:
    async def main() -> None:
        rig = Rig()
        try:
            result = scenario(rig)
            if asyncio.iscoroutine(result):
                await asyncio.wait_for(result, 10)
        finally:
            rig.discovery.close()

    asyncio.run(main())


def test_a_ping_is_answered_with_its_source() -> None:
    def scenario(rig: Rig) -> None:
        source = Endpoint.parse("198.51.100.1:99")
        rig.discovery.on_disco(source.ip, source.port, rig.seal(wire.Ping(TXID, rig.key)))
        assert rig.udp[0][:2] == (source.ip, source.port)
        assert rig.open(rig.udp[0][2]) == wire.Pong(TXID, source)
        assert any(m.node == US for m in rig.said(wire.Ping)), "and pinged back"

    run(scenario)


def test_strangers_cost_no_curve_and_get_no_answer() -> None:
    def scenario(rig: Rig) -> None:
        stranger = DiscoPrivate.generate(CLOCK.entropy)
        for _ in range(50):
            rig.discovery.on_disco(parse_ip("8.8.8.8"), 1, rig.seal(wire.Ping(TXID, rig.key), stranger))
            rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.CallMeMaybe((HERE,)), stranger))
        rig.discovery.on_disco(parse_ip("8.8.8.8"), 1, wire.MAGIC + bytes(20))
        assert rig.discovery._keys.curve_count == 0
        assert rig.udp == [] and rig.discovery.counters()["disco_bad_peer"] == 101

    run(scenario)


def test_a_call_counts_only_by_relay_and_from_whom_the_relay_says() -> None:
    def scenario(rig: Rig) -> None:
        call = rig.seal(wire.CallMeMaybe((Endpoint.parse("198.51.100.7:7"),)))
        rig.discovery.on_disco(HERE.ip, HERE.port, call)
        rig.discovery.on_relay_disco(HOME, US, call)
        assert rig.udp == [] and rig.state is State.UNKNOWN
        rig.discovery.on_relay_disco(HOME, rig.key, call)
        assert {(str(ip), port) for ip, port, _ in rig.udp} == {("192.0.2.50", 4000), ("198.51.100.7", 7)}
        assert rig.state is State.PROBING and not rig.said(wire.CallMeMaybe), "no call in answer to a call"
        for _ in range(20):
            rig.discovery.on_relay_disco(HOME, rig.key, call)
        assert not rig.said(wire.CallMeMaybe)

    run(scenario)


def test_calls_beyond_their_limit_only_add_addresses() -> None:
    def scenario(rig: Rig) -> None:
        for number in range(20):
            there = Endpoint.parse(f"198.51.100.{number}:7")
            rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.CallMeMaybe((there,))))
        pinged = {str(ip) for ip, _, _ in rig.udp}
        assert "198.51.100.4" in pinged and "198.51.100.6" not in pinged
        assert len(rig.candidates(rig.key)) == 21, "kept for the next round"

    run(scenario)


def test_the_first_packet_calls_and_pings_and_a_pong_moves_it() -> None:
    def scenario(rig: Rig) -> None:
        assert rig.paths == [(rig.key, None, HOME, Mode.RELAY)]
        rig.discovery.set_endpoints([Endpoint.parse("192.0.2.1:1")])
        rig.discovery.on_send(rig.key, False)
        (ping,) = rig.said(wire.Ping)
        assert rig.said(wire.CallMeMaybe) == [wire.CallMeMaybe((Endpoint.parse("192.0.2.1:1"),))]
        rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Pong(ping.txid, Endpoint.parse("203.0.113.4:9"))))
        assert rig.paths[-1] == (rig.key, HERE, HOME, Mode.BOTH)
        rig.discovery.on_recv(rig.key, HERE, 0, 1)
        assert rig.paths[-1] == (rig.key, HERE, HOME, Mode.BOTH), "how long a datagram it carries is not known yet"
        size, control = rig.udp[-2:]
        assert len(size[2]) == 1360 - 28 and len(control[2]) < 200
        rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Pong(rig.said(wire.Ping)[-2].txid, HERE)))
        assert rig.paths[-1] == (rig.key, HERE, HOME, Mode.DIRECT)
        status = rig.discovery.status(rig.key)
        assert status is not None and status.endpoint == HERE and status.latency_s is not None

    run(scenario)


def test_a_call_with_a_stale_list_asks_for_a_new_one_and_does_not_wait() -> None:
    def scenario(rig: Rig) -> None:
        asked: list[int] = []
        rig.discovery.restun = lambda: asked.append(len(rig.said(wire.CallMeMaybe)))
        rig.discovery.on_send(rig.key, False)
        assert asked == [0] and len(rig.said(wire.CallMeMaybe)) == 1

    run(scenario)


def test_a_call_with_a_fresh_list_asks_nobody() -> None:
    def scenario(rig: Rig) -> None:
        asked: list[int] = []
        rig.discovery.restun = lambda: asked.append(1)
        rig.discovery.set_endpoints([HERE])
        rig.discovery.on_send(rig.key, False)
        assert asked == [] and len(rig.said(wire.CallMeMaybe)) == 1

    run(scenario)


def test_a_path_in_doubt_has_our_own_endpoints_looked_up_at_once() -> None:
    async def scenario(rig: Rig) -> None:
        asked: list[State] = []
        rig.discovery.restun_now = lambda: asked.append(rig.state)
        rig.discovery.set_endpoints([Endpoint.parse("192.0.2.1:1")])
        rig.discovery.on_send(rig.key, False)
        (ping,) = rig.said(wire.Ping)
        rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Pong(ping.txid, Endpoint.parse("203.0.113.4:9"))))
        assert not asked and rig.state is State.DIRECT
        rig.discovery.roaming.on_everything()
        async with asyncio.timeout(5):
            while not asked:
                await asyncio.sleep(0.01)
        assert asked[0] is State.DEGRADED

    run(scenario)


def test_timers_run_by_themselves() -> None:
    async def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        async with asyncio.timeout(5):
            while len(rig.said(wire.Ping)) < 3:
                await asyncio.sleep(0.01)

    run(scenario)


def test_a_shared_disco_key_is_resolved_by_its_hint_or_only_answered() -> None:
    def scenario(rig: Rig) -> None:
        twin = NodePrivate.generate(CLOCK.entropy).public()
        rig.discovery.on_netmap_peer(node(twin, rig.private))
        source = Endpoint.parse("198.51.100.1:99")
        rig.discovery.on_disco(source.ip, source.port, rig.seal(wire.Ping(TXID, None)))
        assert len(rig.said(wire.Pong)) == 1 and not rig.said(wire.Ping), "ambiguous: answered, nothing learned"
        rig.discovery.on_disco(source.ip, source.port, rig.seal(wire.Ping(TXID, twin)))
        assert len(rig.said(wire.Pong)) == 2 and len(rig.said(wire.Ping)) == 1
        assert [source in rig.candidates(key) for key in (twin, rig.key)] == [True, False]
        for key in (twin, rig.key):  # by relay its word counts, whatever the ping says
            rig.discovery.on_relay_disco(HOME, key, rig.seal(wire.Ping(TXID, US)))
            assert rig.relayed[-1][1] == key and rig.open(rig.relayed[-1][2]) == wire.Pong(TXID, RELAYED)

    run(scenario)


def test_a_restarted_peer_is_understood_by_both_keys_and_greeted() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        fresh = DiscoPrivate.generate(CLOCK.entropy)
        rig.discovery.on_netmap_peer(node(rig.key, fresh, HERE))
        assert rig.kicks == [rig.key]
        for private in (rig.private, fresh):
            rig.udp.clear()
            rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Ping(TXID, rig.key), private))
            assert any(isinstance(rig.open(d, private), wire.Pong) for _, _, d in rig.udp)

    run(scenario)


def test_a_removed_peer_is_a_stranger() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.discovery.on_netmap_removed(rig.key)
        rig.udp.clear()
        rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Ping(TXID, rig.key)))
        rig.discovery.on_send(rig.key, False)
        rig.discovery.on_recv(rig.key, HERE, 0, 1)
        assert rig.udp == [] and rig.discovery.status(rig.key) is None

    run(scenario)


def test_pongs_are_limited() -> None:
    def scenario(rig: Rig) -> None:
        for _ in range(500):
            rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Ping(TXID, rig.key)))
        assert 100 <= len(rig.said(wire.Pong)) <= 130

    run(scenario)


def test_a_peer_without_a_home_is_answered_where_it_was_heard() -> None:
    def scenario(rig: Rig) -> None:
        lonely, private = NodePrivate.generate(CLOCK.entropy).public(), DiscoPrivate.generate(CLOCK.entropy)
        rig.discovery.on_netmap_peer(node(lonely, private, home=RegionId(0)))
        assert all(key != lonely for key, *_ in rig.paths)
        rig.discovery.on_recv(lonely, None, 3, 2)
        assert rig.paths[-1] == (lonely, None, RegionId(3), Mode.RELAY)

    run(scenario)


def test_ping_by_relay_and_direct() -> None:
    async def scenario(rig: Rig) -> None:
        asking = asyncio.ensure_future(rig.discovery.ping(rig.key, 3.0))
        while not rig.relayed or not rig.said(wire.Ping):
            await asyncio.sleep(0)
        by_relay = [m for r, _, d in rig.relayed if isinstance(m := rig.open(d), wire.Ping)]
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.Pong(by_relay[0].txid, HERE)))
        result = await asking
        assert (result.endpoint, result.region) == (None, HOME)
        ping = next(m for _, _, d in rig.udp if isinstance(m := rig.open(d), wire.Ping))
        rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Pong(ping.txid, HERE)))
        rig.udp.clear()
        asking = asyncio.ensure_future(rig.discovery.ping(rig.key, 3.0))
        while not rig.udp:
            await asyncio.sleep(0)
        for _, _, data in list(rig.udp):
            message = rig.open(data)
            if isinstance(message, wire.Ping):
                rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Pong(message.txid, HERE)))
        result = await asking
        assert (result.endpoint, result.region) == (HERE, 0)

    run(scenario)


def test_a_ping_by_relay_is_answered_by_relay() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.Ping(TXID, rig.key)))
        assert rig.udp == []
        assert rig.open(rig.relayed[0][2]) == wire.Pong(TXID, RELAYED)

    run(scenario)


def test_ping_says_why_not() -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(TimedOut):
            await rig.discovery.ping(rig.key, 0.05)
        with pytest.raises(PeerOffline, match="netmap"):
            await rig.discovery.ping(US, 0.05)
        offline = NodePrivate.generate(CLOCK.entropy).public()
        rig.discovery.on_netmap_peer(node(offline, None))
        with pytest.raises(PeerOffline, match="not been online"):
            await rig.discovery.ping(offline, 0.05)

    run(scenario)


# --- keys that peers say inside the tunnel ---


def test_a_key_told_inside_the_tunnel_counts_before_control_brings_it() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        fresh = DiscoPrivate.generate(CLOCK.entropy)
        rig.discovery.on_disco_key(rig.key, fresh.public())
        assert rig.kicks == [rig.key]
        pings = [m for _, _, d in rig.udp if isinstance(m := rig.open(d, fresh), wire.Ping)]
        assert pings, "asked for under its new key"
        for private in (rig.private, fresh):  # on its way under the old one: still understood
            rig.udp.clear()
            rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(wire.Ping(TXID, rig.key), private))
            assert any(isinstance(rig.open(d, private), wire.Pong) for _, _, d in rig.udp)
        rig.discovery.on_disco_key(rig.key, fresh.public())
        assert len(rig.kicks) == 1, "no news"

    run(scenario)


def test_a_netmap_that_lags_does_not_undo_it_and_one_that_follows_does() -> None:
    def scenario(rig: Rig) -> None:
        fresh, later = DiscoPrivate.generate(CLOCK.entropy), DiscoPrivate.generate(CLOCK.entropy)
        rig.discovery.on_disco_key(rig.key, fresh.public())
        known = rig.discovery._peers[rig.key]
        elsewhere = Endpoint.parse("192.0.2.51:4000")
        rig.discovery.on_netmap_peer(node(rig.key, rig.private, HERE, elsewhere))
        assert known.disco == fresh.public(), "control said the same as before"
        rig.discovery.on_netmap_peer(node(rig.key, fresh, HERE))
        assert known.disco == fresh.public()
        rig.discovery.on_netmap_peer(node(rig.key, later, HERE))
        assert known.disco == later.public()

    run(scenario)


def test_keys_of_strangers_zero_and_a_flood_are_nothing() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_disco_key(US, DiscoPrivate.generate(CLOCK.entropy).public())
        rig.discovery.on_disco_key(rig.key, DiscoPublic.zero())
        known = rig.discovery._peers[rig.key]
        assert known.disco == rig.private.public()
        for _ in range(50):
            rig.discovery.on_disco_key(rig.key, DiscoPrivate.generate(CLOCK.entropy).public())
        assert rig.discovery.counters()["disco_keys_told"] <= 6

    run(scenario)


def test_our_key_is_told_once_and_only_beside_data() -> None:
    def scenario(rig: Rig) -> None:
        told: list[NodePublic] = []
        rig.discovery.tell_key = told.append
        rig.discovery.on_handshake(rig.key, True)
        assert told == [], "a session nobody uses"
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.CallMeMaybe((HERE,))))
        rig.discovery.on_handshake(rig.key, True)
        assert told == [], "a call alone is no data (#20081)"
        rig.discovery.on_send(rig.key, False)
        for _ in range(3):
            rig.discovery.on_handshake(rig.key, True)
        assert told == [rig.key]
        rig.discovery.on_disco_key(rig.key, DiscoPrivate.generate(CLOCK.entropy).public())
        rig.discovery.on_handshake(rig.key, True)
        assert told == [rig.key] * 2, "it restarted, and may have forgotten"

    run(scenario)


def test_a_peer_that_left_its_home_is_called_where_it_was_last_heard() -> None:
    other = RegionId(9)

    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, True)
        rig.discovery.on_recv(rig.key, None, other, 0)
        assert rig.paths[-1][2] == HOME
        rig.relayed.clear()
        rig.discovery.on_peer_gone(HOME, rig.key, 1)
        assert rig.paths[-1][2] == other
        assert [region for region, _, data in rig.relayed if isinstance(rig.open(data), wire.CallMeMaybe)] == [other]
        rig.discovery.on_netmap_peer(node(rig.key, rig.private, HERE, home=RegionId(11)))
        assert rig.paths[-1][2] == 11

    run(scenario)


def test_a_peer_that_is_nowhere_causes_no_storm() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.set_home(RegionId(9))
        rig.discovery.on_send(rig.key, True)
        for _ in range(50):
            region = rig.paths[-1][2]
            rig.discovery.on_peer_gone(RegionId(region), rig.key, 1)
        assert len(rig.said(wire.CallMeMaybe)) <= 4

    run(scenario)


def test_while_the_home_of_a_peer_is_dead_it_is_looked_for_at_ours() -> None:
    ours = RegionId(9)

    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, True)
        rig.discovery.relay_down(HOME)
        rig.discovery.set_home(ours)
        assert rig.paths[-1][2] == ours
        rig.discovery.relay_up(HOME)
        assert rig.paths[-1][2] == HOME

    run(scenario)


def test_connections_repeat_at_once_when_a_peer_is_heard_or_a_way_appears() -> None:
    nudged: list[NodePublic] = []

    def scenario(rig: Rig) -> None:
        rig.discovery.nudge = nudged.append
        rig.discovery.on_send(rig.key, True)
        nudged.clear()
        rig.discovery.relay_down(HOME)
        assert nudged == []
        rig.discovery.relay_up(HOME)
        assert nudged == [rig.key]
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.CallMeMaybe((HERE,))))
        assert nudged == [rig.key] * 2

    run(scenario)
