"""Port prediction around a Discovery: its sockets, pings and candidates, from the first packet to a closed socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPrivate, NodePrivate
from meshnode.base.units import Seconds
from meshnode.core.path_values import State
from meshnode.core.prediction import SOCKETS_MAX
from meshnode.core.report import NetReport
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock
from meshnode.underlay.disco import Discovery
from meshnode.wire import disco as wire
from meshnode.wire import stun

CLOCK = Clock()
OWN = Endpoint.parse("9.9.9.9:41641")
THEIRS = Endpoint.parse("8.8.8.8:5555")
SERVER = Endpoint.parse("7.7.7.7:3478")


class Hand(Clock):
    """A clock that is moved by hand, and the timers that hang on it."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> Seconds:
        return Seconds(self.at)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self, (self.at + delay_s, call))
        self.timers.append(timer.entry)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.at + seconds
        while due := [entry for entry in self.timers if entry[0] <= end]:
            entry = min(due, key=lambda e: e[0])
            self.timers.remove(entry)
            self.at = max(self.at, entry[0])
            entry[1]()
        self.at = end


class Timer:
    def __init__(self, hand: Hand, entry: tuple[float, Callable[[], None]]) -> None:
        self.hand, self.entry = hand, entry

    def cancel(self) -> None:
        if self.entry in self.hand.timers:
            self.hand.timers.remove(self.entry)


class Rig:
    """A Discovery behind a NAT, the sockets it opened, and one peer that can seal."""

    def __init__(self) -> None:
        self.is_hard = True
        self.hand = Hand()
        us = NodePrivate.generate(CLOCK.entropy).public()
        private = DiscoPrivate.generate(CLOCK.entropy)
        self.discovery = Discovery(private, us, clock=self.hand, call_later=self.hand.call_later)
        self.sockets: set[int] = set()
        self.sent: list[tuple[Endpoint, bytes]] = []
        self.discovery.send_extra = lambda to, data: self.sent.append((to, data))
        self.relayed: list[bytes] = []
        self.discovery.send_relay = lambda region, key, data: self.relayed.append(data) is None
        prediction = self.discovery.use_prediction()
        prediction.set_extra = self._set_extra
        prediction.report = lambda: NetReport(udp=True, mapping_varies=self.is_hard, global_v4=OWN)
        prediction.server = lambda: SERVER
        prediction.send_extra = self.discovery.send_extra
        self.key = NodePrivate.generate(CLOCK.entropy).public()
        self.private = DiscoPrivate.generate(CLOCK.entropy)
        peer = Node(
            id=1, stable_id="n", name="peer", user_id=1, key=self.key, machine=None, disco=self.private.public(),
            addresses=(), allowed=(), endpoints=(THEIRS,), home=7,
        )  # fmt: skip
        self.discovery.on_netmap_peer(peer)

    def _set_extra(self, first: int, count: int, wanted: bool) -> None:
        numbers = set(range(first, first + count))
        self.sockets = self.sockets | numbers if wanted else self.sockets - numbers

    def hear(self, source: Endpoint, message: wire.Message) -> None:
        box = wire.Box(self.private, self.private.public(), self.discovery.public)
        self.discovery.on_extra(source, box.seal(message, CLOCK.entropy(24)))

    def pings(self, to: Endpoint) -> list[wire.Ping]:
        box = wire.Box(self.private, self.private.public(), self.discovery.public)
        heard = [box.open(data) for at, data in self.sent if at == to]
        return [message for message in heard if isinstance(message, wire.Ping)]

    def calls(self) -> list[wire.CallMeMaybe]:
        box = wire.Box(self.private, self.private.public(), self.discovery.public)
        return [message for data in self.relayed if isinstance(message := box.open(data), wire.CallMeMaybe)]

    def meet(self, socket: int) -> Endpoint:
        """A ping of the peer hits this socket, and the peer answers the one that goes back."""
        way = THEIRS._replace(socket=socket)
        self.hear(way, wire.Ping(bytes(12), self.key))
        self.hear(way, wire.Pong(self.pings(way)[-1].txid, OWN))
        return way

    @property
    def state(self) -> tuple[State, Endpoint | None]:
        status = self.discovery.status(self.key)
        assert status is not None
        return status.state, status.endpoint


def run(scenario: Callable[[Rig], None]) -> None:
    async def main() -> None:
        rig = Rig()
        scenario(rig)
        rig.discovery.close()
        assert not rig.hand.timers, "closed, nothing is to be woken"

    asyncio.run(main())


def test_the_socket_that_is_hit_carries_the_path_and_the_others_are_closed() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.hand.advance(1.0)
        assert not rig.sockets, "the usual ways come first"
        rig.hand.advance(1.5)
        assert rig.sockets == set(range(1, SOCKETS_MAX + 1))
        assert {to.socket for to, _ in rig.sent} == rig.sockets
        way = rig.meet(77)
        assert rig.state == (State.DIRECT, way) and rig.sockets == {77}

    run(scenario)


def test_a_path_that_is_given_up_closes_its_socket_and_forgets_it() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.hand.advance(2.0)
        way = rig.meet(77)
        for _ in range(30):
            rig.discovery.on_send(rig.key, False)
            rig.hand.advance(1.0)
        assert rig.state[1] is None and not rig.sockets
        status = rig.discovery.status(rig.key)
        assert status is not None and way not in [c.endpoint for c in status.candidates]

    run(scenario)


def test_the_easy_side_tells_the_peer_of_a_fresh_socket() -> None:
    def scenario(rig: Rig) -> None:
        rig.is_hard, fresh = False, Endpoint.parse("9.9.9.9:777")
        rig.discovery.on_send(rig.key, False)
        rig.hand.advance(2.0)
        assert rig.sockets == {SOCKETS_MAX}
        asked = next(data for to, data in rig.sent if to == SERVER._replace(socket=SOCKETS_MAX))
        assert rig.pings(THEIRS._replace(socket=SOCKETS_MAX)), "our NAT is open before the peer hears of it"
        before, prediction = len(rig.calls()), rig.discovery.prediction
        assert prediction is not None
        answer = stun.emit_response(stun.parse_request(asked), fresh)
        prediction.on_stun(SERVER._replace(socket=3), answer)
        assert len(rig.calls()) == before, "asked by another socket"
        prediction.on_stun(SERVER._replace(socket=SOCKETS_MAX), b"noise")
        prediction.on_stun(SERVER._replace(socket=SOCKETS_MAX), answer)
        prediction.on_stun(SERVER._replace(socket=SOCKETS_MAX), answer)
        assert len(rig.calls()) == before + 1 and rig.calls()[-1].endpoints[0] == fresh
        way = rig.meet(SOCKETS_MAX)
        assert rig.state == (State.DIRECT, way) and rig.sockets == {SOCKETS_MAX}

    run(scenario)


def test_an_idle_path_keeps_its_socket_while_it_is_hoped_to_work() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.hand.advance(2.0)
        rig.meet(77)
        answering_until = rig.hand.at + 60.0
        while rig.state[0] is not State.UNKNOWN:
            assert rig.hand.at < answering_until
            for ping in rig.pings(THEIRS._replace(socket=77)):
                rig.hear(THEIRS._replace(socket=77), wire.Pong(ping.txid, OWN))
            rig.hand.advance(0.5)
        assert rig.sockets == {77}
        rig.hand.advance(400.0)
        assert not rig.sockets

    run(scenario)


def test_when_the_engine_lost_its_sockets_the_path_is_sought_anew() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.hand.advance(2.0)
        rig.meet(77)
        prediction = rig.discovery.prediction
        assert prediction is not None
        prediction.on_sockets_lost()
        assert rig.state == (State.PROBING, None)

    run(scenario)


def test_a_peer_that_leaves_takes_its_sockets_along() -> None:
    def scenario(rig: Rig) -> None:
        rig.discovery.on_send(rig.key, False)
        rig.hand.advance(2.0)
        rig.discovery.on_netmap_removed(rig.key)
        assert not rig.sockets

    run(scenario)
