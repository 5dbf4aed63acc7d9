"""Discovery and peer relays: the whole handshake in sealed packets, and which message may come which way."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPrivate, NodePrivate
from meshnode.core.path_values import State
from meshnode.wire import disco as wire
from meshnode.wire import geneve
from tests.unit.underlay.test_disco import CLOCK, HERE, HOME, TXID, Rig, node

AT = Endpoint.parse("203.0.113.40:40000")
LEG = Endpoint(AT.ip, AT.port, 7)
CHALLENGE = b"\x05" * 32


class RelayRig(Rig):
    """A rig with a member that relays: it has the key of its node, and one of its relay."""

    def __init__(self) -> None:
        super().__init__()
        self.member, self.member_private = (
            NodePrivate.generate(CLOCK.entropy).public(),
            DiscoPrivate.generate(CLOCK.entropy),
        )
        self.relay = DiscoPrivate.generate(CLOCK.entropy)
        self.discovery.on_netmap_peer(node(self.member, self.member_private))
        self.discovery.set_relay_servers([self.member])

    def block(self, private: DiscoPrivate | None = None) -> wire.RelayBlock:
        pair = (self.discovery.public, (private or self.private).public())
        return wire.RelayBlock(self.relay.public(), pair, 1, LEG.vni, 30 * 10**9, 300 * 10**9, (AT,))

    def by_leg(self, data: bytes, *, is_control: bool = False, vni: int = LEG.vni, source: Endpoint = AT) -> None:
        packet = geneve.emit(geneve.Relayed(vni, is_control, data))
        self.discovery.on_disco(source.ip, source.port, packet)

    def sent_by_leg(self, private: DiscoPrivate) -> list[tuple[bool, wire.Message]]:
        """(control bit, message) of what went to the relay's address under that key."""
        relayed = [geneve.parse(data) for ip, port, data in self.udp if (ip, port) == (AT.ip, AT.port)]
        assert all(r is not None and r.vni == LEG.vni for r in relayed)
        opened = [(r.is_control, self.open(r.packet, private)) for r in relayed if r is not None]
        return [(is_control, message) for is_control, message in opened if message is not None]

    def challenge(self, **changed: object) -> bytes:
        """Answer the newest Bind."""
        binds = [m for _, m in self.sent_by_leg(self.relay) if isinstance(m, wire.Bind) and m.kind == wire.BIND]
        fields = {"kind": wire.BIND_CHALLENGE, "challenge": CHALLENGE} | changed
        return self.seal(binds[-1]._replace(**fields), self.relay)

    def bind(self) -> None:
        self.discovery.on_relay_disco(HOME, self.key, self.seal(wire.CallMeMaybeVia(self.block())))
        self.by_leg(self.challenge(), is_control=True)


def play(scenario: Callable[[RelayRig], Any]) -> None:
    """Run with a RelayRig."""

    async def main() -> None:
        rig = RelayRig()
        try:
            result = scenario(rig)
            if asyncio.iscoroutine(result):
                await asyncio.wait_for(result, 10)
        finally:
            rig.discovery.close()

    asyncio.run(main())


def test_asked_for_when_nobody_answers_directly_bound_told_and_used() -> None:
    async def scenario(rig: RelayRig) -> None:
        rig.discovery.on_send(rig.key, False)
        asked: list[wire.AllocateRequest] = []
        async with asyncio.timeout(8):
            while not asked:
                await asyncio.sleep(0.01)
                said = [(key, rig.open(data, rig.member_private)) for _, key, data in rig.relayed]
                asked = [m for key, m in said if isinstance(m, wire.AllocateRequest) and key == rig.member]
        assert set(asked[0].clients) == {rig.discovery.public, rig.private.public()}
        response = wire.AllocateResponse(asked[0].generation, rig.block())
        rig.discovery.on_relay_disco(HOME, rig.member, rig.seal(response, rig.member_private))
        assert rig.said(wire.CallMeMaybeVia) == [wire.CallMeMaybeVia(rig.block())]
        rig.by_leg(rig.challenge(), is_control=True)
        to_relay = rig.sent_by_leg(rig.relay)
        assert [(c, m.kind) for c, m in to_relay if isinstance(m, wire.Bind)] == [
            (True, wire.BIND), (True, wire.BIND_ANSWER),
        ]  # fmt: skip
        assert isinstance(to_relay[1][1], wire.Bind) and to_relay[1][1].challenge == CHALLENGE
        (ping,) = [m for c, m in rig.sent_by_leg(rig.private) if isinstance(m, wire.Ping) and not c]
        rig.by_leg(rig.seal(wire.Pong(ping.txid, AT)))
        assert rig.state is State.DIRECT and rig.paths[-1][1] == LEG
        status = rig.discovery.status(rig.key)
        assert status is not None and status.endpoint == LEG and str(LEG).endswith(":vni:7")
        path = rig.discovery._peers[rig.key].path
        assert path is not None and path.seen_as is None, "the relay's own address is not how the peer sees us"

    play(scenario)


def test_a_ping_by_our_leg_is_answered_by_it() -> None:
    def scenario(rig: RelayRig) -> None:
        rig.bind()
        rig.udp.clear()
        rig.by_leg(rig.seal(wire.Ping(TXID, rig.key)))
        said = rig.sent_by_leg(rig.private)
        assert (False, wire.Pong(TXID, AT)) in said and any(isinstance(m, wire.Ping) for _, m in said)

    play(scenario)


def test_nothing_comes_by_a_leg_that_is_not_the_senders() -> None:
    def scenario(rig: RelayRig) -> None:
        ping = rig.seal(wire.Ping(TXID, rig.key))
        rig.by_leg(ping)
        rig.bind()
        spent = rig.discovery._keys.curve_count
        rig.udp.clear()
        rig.by_leg(ping, vni=8)
        rig.by_leg(ping, source=HERE)
        rig.by_leg(rig.seal(wire.Ping(TXID, rig.member), rig.member_private))
        assert rig.udp == [] and rig.discovery.counters()["disco_bad_leg"] == 4
        assert rig.discovery._keys.curve_count == spent, "no cipher for any of them"

    play(scenario)


def test_an_error_of_the_relays_address_is_one_of_its_legs() -> None:
    def scenario(rig: RelayRig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.bind()
        rig.discovery.on_send_error(AT, errno.ENETUNREACH)
        status = rig.discovery.status(rig.key)
        assert status is not None
        assert [c.is_bad for c in status.candidates if c.endpoint == LEG] == [True]
        assert [c.is_bad for c in status.candidates if c.endpoint == HERE] == [False]

    play(scenario)


def test_a_leg_is_lost_with_the_key_of_its_peer() -> None:
    def scenario(rig: RelayRig) -> None:
        rig.bind()
        assert LEG in rig.candidates(rig.key)
        rig.discovery.on_netmap_peer(node(rig.key, DiscoPrivate.generate(CLOCK.entropy), HERE))
        assert LEG not in rig.candidates(rig.key)

    play(scenario)


@pytest.mark.parametrize("kind", [wire.BIND, wire.BIND_ANSWER])
def test_a_relay_says_nothing_but_challenges(kind: int) -> None:
    def scenario(rig: RelayRig) -> None:
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.CallMeMaybeVia(rig.block())))
        rig.udp.append((AT.ip, AT.port, rig.udp[-1][2]))
        ping = wire.Ping(TXID, rig.key)
        wrong = (rig.challenge(kind=kind), rig.challenge(vni=8), rig.seal(ping, rig.relay), b"", bytes(200))
        for data in wrong:
            rig.by_leg(data, is_control=True)
        rig.by_leg(rig.challenge(), is_control=True, vni=8)
        rig.by_leg(rig.challenge())  # without the control bit it is a stranger's
        rig.by_leg(rig.seal(ping), is_control=True)
        assert not [m for _, m in rig.sent_by_leg(rig.relay) if isinstance(m, wire.Bind) and m.kind == wire.BIND_ANSWER]
        assert rig.discovery.counters()["disco_bad_relay"] == len(wrong) + 2
        rig.by_leg(rig.challenge(), is_control=True)
        assert [m for _, m in rig.sent_by_leg(rig.relay) if isinstance(m, wire.Bind) and m.kind == wire.BIND_ANSWER]

    play(scenario)


def test_a_challenge_nobody_waits_for_costs_no_cipher() -> None:
    def scenario(rig: RelayRig) -> None:
        bind = wire.Bind(wire.BIND_CHALLENGE, 7, 1, rig.private.public(), CHALLENGE)
        for _ in range(50):
            rig.by_leg(rig.seal(bind, rig.relay), is_control=True)
        assert rig.discovery._keys.curve_count == 0 and rig.discovery.counters()["disco_bad_relay"] == 50

    play(scenario)


def test_which_message_may_come_which_way() -> None:
    """paths.md 6.3: what comes another way is counted and changes nothing."""

    def scenario(rig: RelayRig) -> None:
        bind = wire.Bind(wire.BIND, 7, 1, rig.private.public(), CHALLENGE)
        request = wire.AllocateRequest(rig.block().clients, 1)
        response = wire.AllocateResponse(1, rig.block())
        by_relay_only = [wire.CallMeMaybe((HERE,)), wire.CallMeMaybeVia(rig.block()), request, response]
        wrong_by_udp = [*by_relay_only, *(bind._replace(kind=kind) for kind in (4, 5, 6))]
        for message in wrong_by_udp:
            rig.discovery.on_disco(HERE.ip, HERE.port, rig.seal(message))
        assert rig.discovery.counters()["disco_wrong_way"] == len(wrong_by_udp)
        wrong_by_relay = [request, *(bind._replace(kind=kind) for kind in (4, 5, 6))]
        for message in wrong_by_relay:
            rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(message))
        assert rig.discovery.counters()["disco_wrong_way"] == len(wrong_by_udp) + len(wrong_by_relay)
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(response))
        assert rig.udp == [] and rig.relayed == [] and rig.state is State.UNKNOWN

    play(scenario)


def test_a_proposal_counts_only_from_whom_it_concerns() -> None:
    def scenario(rig: RelayRig) -> None:
        via = wire.CallMeMaybeVia(rig.block())
        rig.discovery.on_relay_disco(HOME, rig.member, rig.seal(via))
        rig.discovery.on_relay_disco(HOME, rig.member, rig.seal(via, rig.member_private))
        assert rig.udp == []
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(via))
        assert len(rig.sent_by_leg(rig.relay)) == 1

    play(scenario)


def test_no_peer_relay_is_used_unless_every_way_is_wanted() -> None:
    """paths = relay sends nothing by UDP, paths = direct nothing by others."""

    def scenario(rig: RelayRig) -> None:
        rig.bind()
        rig.discovery.allow_peer_relays(False)
        assert LEG not in rig.candidates(rig.key)
        rig.relayed.clear()
        rig.udp.clear()
        rig.discovery.on_relay_disco(HOME, rig.key, rig.seal(wire.CallMeMaybeVia(rig.block())))
        rig.discovery._meetings.search(rig.discovery._peers[rig.key], is_urgent=False)
        assert rig.udp == [] and rig.relayed == []
        rig.discovery.allow_peer_relays(True)
        rig.bind()
        assert LEG in rig.candidates(rig.key)

    play(scenario)


def test_without_a_relay_nobody_is_asked() -> None:
    def scenario(rig: RelayRig) -> None:
        rig.discovery.set_relay_servers([])
        rig.discovery._meetings.search(rig.discovery._peers[rig.key], is_urgent=False)
        assert rig.relayed == []

    play(scenario)
