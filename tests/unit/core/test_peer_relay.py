"""Peer relays: two clients and a relay that keeps the rules of stock ones, in virtual time, with losses."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import TypeVar

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.base.units import Seconds
from meshnode.core.allocation import Bound, Lost, SendBind
from meshnode.core.peer_relay import ALLOCATIONS_PER_PEER, WAYS_MAX, Ask, Effect, PeerRelays, Tell
from meshnode.wire.disco import BIND, BIND_ANSWER, BIND_CHALLENGE, AllocateRequest, Bind, CallMeMaybeVia, RelayBlock

RELAY = DiscoPublic(b"\x0e" * 32)
DISCO = {name: DiscoPublic(bytes([number]) * 32) for number, name in enumerate("abc", 1)}
NODE = {name: NodePublic(bytes([number]) * 32) for number, name in enumerate("abcs", 1)}
V4, V6 = Endpoint.parse("192.0.2.9:40000"), Endpoint.parse("[2001:db8::9]:40000")
SECOND = 1_000_000_000
Kind = TypeVar("Kind")


def at(seconds: float) -> Seconds:
    return Seconds(seconds)


def everywhere(endpoint: Endpoint) -> bool:
    return True


def block(
    vni: int = 7, lamport: int = 1, clients: str = "ab", *ways: Endpoint, server: DiscoPublic = RELAY
) -> RelayBlock:
    pair = (DISCO[clients[0]], DISCO[clients[1]])
    return RelayBlock(server, pair, lamport, vni, 30 * SECOND, 300 * SECOND, ways or (V4,))


def client(name: str = "a", admit: Callable[[Endpoint], bool] = everywhere) -> PeerRelays:
    made = PeerRelays(DISCO[name], admit)
    made.set_servers([NODE["s"]])
    return made


def only(kind: type[Kind], effects: list[Effect]) -> list[Kind]:
    return [effect for effect in effects if isinstance(effect, kind)]


def challenge_of(sent: SendBind, value: bytes = b"\x05" * 32) -> Bind:
    return Bind(BIND_CHALLENGE, sent.bind.vni, sent.bind.generation, sent.bind.remote, value)


# --- the whole of it, with a relay that does as stock ones do ---


class Relay:
    """One allocation for a pair, bound per client by a challenge that proves the address it came to."""

    def __init__(self) -> None:
        self.vni = 7
        self.generation: dict[str, int] = {}
        self.bound: dict[str, Endpoint] = {}

    def challenge(self, who: str, source: Endpoint, generation: int) -> bytes:
        return repr((who, source, generation)).encode()[:32].ljust(32, b"\0")

    def on_bind(self, who: str, remote: str, source: Endpoint, bind: Bind) -> Bind | None:
        if bind.vni != self.vni or bind.remote != DISCO[remote]:
            return None
        proof = self.challenge(who, source, bind.generation)
        if bind.kind == BIND:
            self.generation[who] = bind.generation
            return Bind(BIND_CHALLENGE, bind.vni, bind.generation, bind.remote, proof)
        if bind.kind == BIND_ANSWER and self.generation.get(who) == bind.generation and bind.challenge == proof:
            self.bound[who] = source
            del self.generation[who]
        return None


class World:
    """Clients a and b, the relay, and a wire that loses."""

    def __init__(self, seed: int, loss: float) -> None:
        self.dice, self.loss, self.now = random.Random(seed), loss, 0.0
        self.relay = Relay()
        self.clients = {name: client(name) for name in "ab"}
        self.source = {"a": Endpoint.parse("198.51.100.1:1"), "b": Endpoint.parse("198.51.100.2:2")}
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.legs: dict[str, Endpoint] = {}
        self.proved: dict[str, float] = {}
        self.serial = self.pings = 0

    def later(self, what: Callable[[], None], *, is_lossy: bool = True) -> None:
        if is_lossy and self.dice.random() < self.loss:
            return
        self.serial += 1
        heapq.heappush(self.queue, (self.now + self.dice.uniform(0.005, 0.08), self.serial, what))

    def perform(self, who: str, effects: list[Effect]) -> None:
        other = "b" if who == "a" else "a"
        for effect in effects:
            if isinstance(effect, Ask):
                self.later(lambda e=effect: self.on_ask(who, e.request), is_lossy=False)  # type: ignore[misc]
            elif isinstance(effect, Tell):
                self.later(lambda e=effect: self.on_tell(other, who, e.via), is_lossy=False)  # type: ignore[misc]
            elif isinstance(effect, SendBind):
                self.later(lambda e=effect: self.on_bind(who, other, e))  # type: ignore[misc]
            elif isinstance(effect, Bound):
                self.legs[who] = effect.leg
                self.ping(who, other)

    def on_ask(self, who: str, request: AllocateRequest) -> None:
        answer = (NODE["s"], request.generation, block())
        self.later(lambda: self.perform(who, self.clients[who].on_response(*answer, at(self.now))), is_lossy=False)

    def on_tell(self, who: str, sender: str, via: CallMeMaybeVia) -> None:
        self.perform(who, self.clients[who].on_via(NODE[sender], DISCO[sender], via.block, at(self.now)))

    def on_bind(self, who: str, other: str, sent: SendBind) -> None:
        reply = self.relay.on_bind(who, other, self.source[who], sent.bind)
        if reply is not None:
            back = (RELAY, Endpoint(sent.to.ip, sent.to.port, 7), reply)
            self.later(lambda: self.perform(who, self.clients[who].on_challenge(*back, at(self.now))))

    def ping(self, who: str, other: str) -> None:
        """By the relay and back: it forwards for two that are bound, by the addresses they are bound with."""
        self.pings += 1

        def pong() -> None:
            self.proved.setdefault(who, self.now)
            self.clients[who].on_pong(NODE[other], self.legs[who], at(self.now))

        def arrive() -> None:
            if set(self.relay.bound) != {"a", "b"} or self.relay.bound[who] != self.source[who]:
                return
            self.later(pong)
            if other not in self.proved and other in self.legs:
                self.ping(other, who)

        self.later(arrive)

    def run(self, until: float) -> None:
        while self.now < until and len(self.proved) < 2:
            waits = [c.next_deadline() for c in self.clients.values()]
            times = [w for w in waits if w is not None] + [t for t, _, _ in self.queue[:1]]
            if not times:
                return
            self.now = max(self.now, min(times))
            while self.queue and self.queue[0][0] <= self.now:
                heapq.heappop(self.queue)[2]()
            for who, made in self.clients.items():
                self.perform(who, made.on_deadline(at(self.now)))


@pytest.mark.parametrize(("loss", "within_s"), [(0.0, 0.8), (0.2, 20.0), (0.4, 30.0)])
def test_both_ends_are_bound_and_proved(loss: float, within_s: float) -> None:
    failed = 0
    for seed in range(60):
        world = World(seed, loss)
        world.perform("a", world.clients["a"].search(NODE["b"], DISCO["b"], at(0)))
        if seed % 2:  # both look at once: the relay has one allocation for the pair
            world.perform("b", world.clients["b"].search(NODE["a"], DISCO["a"], at(0)))
        world.run(within_s)
        failed += set(world.proved) != {"a", "b"}
        assert world.pings < 80, "a leg is not pinged without end"
    assert failed <= (5 if loss == 0.4 else 0), "there only one ping in eight comes back"


def test_bound_again_after_our_address_changed() -> None:
    world = World(1, 0.0)
    world.perform("a", world.clients["a"].search(NODE["b"], DISCO["b"], at(0)))
    world.run(5)
    assert set(world.proved) == {"a", "b"}
    world.source["a"] = Endpoint.parse("203.0.113.1:9")
    world.proved.clear()
    world.perform("a", world.clients["a"].search(NODE["b"], DISCO["b"], at(world.now + 5), is_urgent=True))
    world.run(world.now + 5)
    assert "a" in world.proved and world.relay.bound["a"] == world.source["a"]


# --- asking ---


def test_searches_keep_their_distance_and_are_repeated_once() -> None:
    relays = client()
    (ask,) = only(Ask, relays.search(NODE["b"], DISCO["b"], at(0)))
    assert ask.server == NODE["s"] and ask.request.generation and set(ask.request.clients) == {DISCO["a"], DISCO["b"]}
    assert relays.search(NODE["b"], DISCO["b"], at(29)) == []
    assert relays.search(NODE["b"], DISCO["b"], at(4), is_urgent=True) == []
    assert relays.next_deadline() == 3
    assert relays.on_deadline(at(3)) == [ask] and relays.next_deadline() == 10
    assert relays.on_deadline(at(10)) == [] and relays.next_deadline() is None
    assert only(Ask, relays.search(NODE["b"], DISCO["b"], at(31)))


def test_three_relays_are_asked_at_once_and_the_others_next_time() -> None:
    relays = client()
    servers = [NodePublic(bytes([100 + n]) * 32) for n in range(5)]
    relays.set_servers(servers)
    first = [ask.server for ask in only(Ask, relays.search(NODE["b"], DISCO["b"], at(0)))]
    then = [ask.server for ask in only(Ask, relays.search(NODE["b"], DISCO["b"], at(40)))]
    assert first == servers[:3] and then == [*servers[3:], servers[0]]
    relays.set_servers([])
    assert relays.search(NODE["b"], DISCO["b"], at(80)) == []


def test_only_the_answer_to_our_question_counts() -> None:
    relays = client()
    (ask,) = only(Ask, relays.search(NODE["b"], DISCO["b"], at(0)))
    generation = ask.request.generation
    for server, number, told in (
        (NODE["c"], generation, block()),
        (NODE["s"], generation + 1, block()),
        (NODE["s"], generation, block(clients="ac")),
    ):
        assert relays.on_response(server, number, told, at(1)) == []
    effects = relays.on_response(NODE["s"], generation, block(), at(1))
    assert only(Tell, effects) == [Tell(NODE["b"], CallMeMaybeVia(block()))]
    assert [e.to for e in only(SendBind, effects)] == [Endpoint(V4.ip, V4.port, 7)]
    assert relays.on_response(NODE["s"], generation, block(), at(1)) == [], "once"


def test_a_proposal_must_be_for_us_and_its_sender() -> None:
    relays = client()
    assert relays.on_via(NODE["b"], DISCO["b"], block(clients="bc"), at(0)) == []
    assert relays.on_via(NODE["b"], DISCO["b"], block(clients="ac"), at(0)) == []
    assert relays.on_via(NODE["b"], DISCO["b"], block(vni=0), at(0)) == []
    assert relays.on_via(NODE["b"], DISCO["b"], block(vni=1 << 24), at(0)) == []
    effects = relays.on_via(NODE["b"], DISCO["b"], block(), at(0))
    assert only(SendBind, effects) and not only(Tell, effects), "no proposal in answer to a proposal"


def test_proposals_are_no_lever_against_others() -> None:
    """Addresses are bounded and admitted, and so are proposals."""
    many = [Endpoint(V4.ip, port) for port in range(1, 33)]
    relays = client(admit=lambda e: e.port > 4)
    sent = only(SendBind, relays.on_via(NODE["b"], DISCO["b"], block(7, 1, "ab", *many), at(0)))
    assert [s.to.port for s in sent] == list(range(5, 5 + WAYS_MAX))
    assert client(admit=lambda e: False).on_via(NODE["b"], DISCO["b"], block(), at(0)) == []
    taken = sum(bool(relays.on_via(NODE["b"], DISCO["b"], block(7, n, "ab", *many), at(0))) for n in range(2, 50))
    assert taken <= 5


# --- the handshake ---


def bound(relays: PeerRelays, told: RelayBlock | None = None, now: float = 0) -> Endpoint:
    """Go through a handshake with the first way; the leg."""
    (first, *_) = only(SendBind, relays.on_via(NODE["b"], DISCO["b"], told or block(), at(now)))
    effects = relays.on_challenge(first.server, first.to, challenge_of(first), at(now))
    (answer,) = only(SendBind, effects)
    assert answer == SendBind(first.server, first.to, Bind(BIND_ANSWER, *first.bind[1:4], b"\x05" * 32))
    (leg,) = only(Bound, effects)
    assert leg == Bound(NODE["b"], first.to)
    return leg.leg


def test_only_a_right_challenge_is_answered_and_only_the_first() -> None:
    relays = client()
    v4, v6 = only(SendBind, relays.on_via(NODE["b"], DISCO["b"], block(7, 1, "ab", V4, V6), at(0)))
    right = challenge_of(v4)
    wrong = (
        right._replace(vni=8), right._replace(generation=right.generation + 1), right._replace(remote=DISCO["c"]),
    )  # fmt: skip
    for challenge in wrong:
        assert relays.on_challenge(RELAY, v4.to, challenge, at(0)) == []
    assert relays.on_challenge(DISCO["c"], v4.to, right, at(0)) == []
    assert relays.on_challenge(RELAY, Endpoint(V4.ip, V4.port, 8), right, at(0)) == []
    assert relays.is_awaited(RELAY) and not relays.has_leg(NODE["b"], v6.to)
    assert relays.on_challenge(RELAY, v6.to, right, at(0))
    assert relays.on_challenge(RELAY, v4.to, right, at(0)) == [], "the relay serves us at one address"
    assert relays.has_leg(NODE["b"], v6.to) and not relays.has_leg(NODE["c"], v6.to) and not relays.is_awaited(RELAY)


def test_binds_are_repeated_until_the_lifetime_ends() -> None:
    relays = client()
    relays.on_via(NODE["b"], DISCO["b"], block(), at(0))
    sent = 0
    while (due := relays.next_deadline()) is not None:
        assert due <= 32
        sent += len(only(SendBind, relays.on_deadline(due)))
    assert 10 <= sent <= 20


def test_a_leg_that_is_never_proved_is_given_up() -> None:
    relays = client()
    leg = bound(relays)
    effects: list[Effect] = []
    while (due := relays.next_deadline()) is not None:
        effects += relays.on_deadline(due)
    assert effects[-1] == Lost(NODE["b"], leg) and only(Bound, effects) and only(SendBind, effects)
    assert not relays.has_leg(NODE["b"], leg)


def test_a_proved_leg_rests_until_the_relay_would_drop_it() -> None:
    relays = client()
    leg = bound(relays)
    relays.on_pong(NODE["b"], leg, at(1))
    assert relays.next_deadline() == 301
    relays.on_pong(NODE["b"], leg, at(200))
    assert relays.next_deadline() == 500
    assert relays.on_deadline(at(500)) == [Lost(NODE["b"], leg)]


# --- which allocation counts ---


def test_a_proposal_of_what_works_changes_nothing_until_it_stops_working() -> None:
    relays = client()
    leg = bound(relays)
    relays.on_pong(NODE["b"], leg, at(1))
    assert relays.on_via(NODE["b"], DISCO["b"], block(), at(5)) == []
    (again,) = only(SendBind, relays.on_via(NODE["b"], DISCO["b"], block(), at(60)))
    assert again.to == leg and again.bind.generation > 1


def test_of_two_allocations_of_one_relay_the_later_counts() -> None:
    relays = client()
    leg = bound(relays, block(vni=7, lamport=5))
    assert relays.on_via(NODE["b"], DISCO["b"], block(vni=6, lamport=4), at(1)) == []
    effects = relays.on_via(NODE["b"], DISCO["b"], block(vni=8, lamport=6), at(1))
    assert effects[0] == Lost(NODE["b"], leg)
    assert [e.bind.vni for e in only(SendBind, effects)] == [8]


def test_a_peer_that_restarted_is_bound_to_anew_though_the_relay_is_the_same() -> None:
    """#20215: the pair of keys tells allocations apart, whatever path is in use."""
    relays = client()
    leg = bound(relays)
    relays.on_pong(NODE["b"], leg, at(1))
    effects = relays.on_via(NODE["b"], DISCO["c"], block(vni=8, lamport=1, clients="ac"), at(2))
    assert effects[0] == Lost(NODE["b"], leg)
    (sent,) = only(SendBind, effects)
    assert sent.bind.remote == DISCO["c"] and sent.to.vni == 8


def test_forgetting_a_peer_takes_its_legs() -> None:
    relays = client()
    leg = bound(relays)
    assert relays.forget(NODE["b"]) == [Lost(NODE["b"], leg)]
    assert relays.forget(NODE["b"]) == [] and relays.next_deadline() is None


def test_allocations_of_a_peer_are_bounded() -> None:
    relays = client()
    legs = []
    for number in range(ALLOCATIONS_PER_PEER + 3):
        server = DiscoPublic(bytes([50 + number]) * 32)
        legs.append(bound(relays, block(vni=1 + number, server=server), now=10 * number))
    assert sum(relays.has_leg(NODE["b"], leg) for leg in legs) <= ALLOCATIONS_PER_PEER
    assert len({a.block.server for a in relays._allocations_of(NODE["b"])}) == ALLOCATIONS_PER_PEER


def test_generations_are_never_zero() -> None:
    relays = client()
    relays._generation = 0xFFFFFFFE
    assert [relays._next_generation() for _ in range(3)] == [0xFFFFFFFF, 1, 2]
