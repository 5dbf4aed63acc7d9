"""Port prediction: who plays which part, what is sent where and how much of it, and what stays open."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.addr import Endpoint
from meshnode.base.keys import NodePublic
from meshnode.base.units import Seconds
from meshnode.core.prediction import (
    AGAIN_S,
    ATTEMPTS_MAX,
    HOLD_S,
    PATIENCE_S,
    PROBES_MAX,
    QUIET_S,
    SOCKETS_MAX,
    Announce,
    AskStun,
    Effect,
    Predictor,
    Probe,
    Role,
    Sockets,
    address_of,
    role_of,
)
from meshnode.core.report import NetReport

PEER = NodePublic(bytes([7]) * 32)
OTHER = NodePublic(bytes([8]) * 32)
OWN = Endpoint.parse("9.9.9.9:41641")
THEIRS = Endpoint.parse("8.8.8.8:5555")
INSIDE = Endpoint.parse("192.168.1.2:41641")
EASY = NetReport(udp=True, mapping_varies=False, global_v4=OWN)
HARD = NetReport(udp=True, mapping_varies=True, global_v4=OWN)
ALL = tuple(range(1, SOCKETS_MAX + 1))


class Bench:
    """A predictor and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = Predictor(random.Random(5).sample)

    def consider(self, report: NetReport, peer: NodePublic = PEER, endpoint: Endpoint = THEIRS) -> list[Effect]:
        return self.core.consider(peer, (endpoint, INSIDE), report, PATIENCE_S, Seconds(self.now))

    def run(self, for_s: float) -> list[tuple[float, Effect]]:
        """Let time pass; what was wanted when."""
        end, out = self.now + for_s, []
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            out += [(self.now, effect) for effect in self.core.on_deadline(Seconds(self.now))]
        self.now = end
        return out


def probes(out: list[tuple[float, Effect]]) -> list[tuple[float, Endpoint]]:
    return [(at, effect.endpoint) for at, effect in out if isinstance(effect, Probe)]


def test_roles_follow_from_our_own_nat() -> None:
    assert role_of(EASY) is Role.EASY and role_of(HARD) is Role.HARD
    assert role_of(NetReport(udp=True)) is None, "one STUN server only: not known"
    assert role_of(NetReport(udp=False, mapping_varies=True)) is None


@pytest.mark.parametrize(
    ("texts", "own", "found"),
    [
        (["192.168.1.2:1", "8.8.8.8:5", "8.8.4.4:6"], "9.9.9.9:1", "8.8.8.8:5"),
        (["[2001:db8::1]:1", "100.64.0.7:1", "127.0.0.1:3", "8.8.8.8:5"], "9.9.9.9:1", "8.8.8.8:5"),
        (["192.168.1.2:1", "10.1.1.1:2"], "9.9.9.9:1", None),
        (["9.9.9.9:7", "8.8.8.8:5"], "9.9.9.9:1", None),
        (["10.77.0.4:5", "192.168.1.2:1"], "10.77.0.3:1", "10.77.0.4:5"),
        (["8.8.8.8:0"], "9.9.9.9:1", None),
        (["8.8.8.8:5"], None, "8.8.8.8:5"),
    ],
)
def test_only_the_address_outside_is_ever_probed(texts: list[str], own: str | None, found: str | None) -> None:
    """Private ones count only where our own address outside is private; our own never: it is the same NAT."""
    ours = Endpoint.parse(own) if own else None
    assert address_of(map(Endpoint.parse, texts), ours) == (Endpoint.parse(found) if found else None)
    assert address_of([Endpoint(THEIRS.ip, 5, vni=9)], ours) is None


def test_the_easy_side_probes_different_ports_of_one_address_at_a_bounded_rate() -> None:
    bench = Bench()
    bench.consider(EASY)
    sent = probes(bench.run(60.0))
    assert {to.ip for _, to in sent} == {THEIRS.ip} and {to.socket for _, to in sent} == {0}
    assert len({to.port for _, to in sent}) == len(sent) == PROBES_MAX
    assert min(to.port for _, to in sent) >= 1024
    per_second = Counter(int(at - 100.0) for at, _ in sent)
    assert max(per_second.values()) <= 510 and sent[-1][0] - sent[0][0] == pytest.approx(4.1, abs=0.2)
    assert bench.core.next_deadline() is None


def test_the_hard_side_opens_sockets_keeps_their_mappings_and_closes_them() -> None:
    bench = Bench()
    assert bench.consider(HARD) == [Sockets(ALL, True)]
    out = bench.run(60.0)
    sent = probes(out)
    assert {(to.ip, to.port) for _, to in sent} == {(THEIRS.ip, THEIRS.port)}
    assert set(Counter(to.socket for _, to in sent).values()) == {3} and len(sent) <= PROBES_MAX
    first = [at for at, _ in sent[:SOCKETS_MAX]]
    assert first[-1] - first[0] < 0.6
    assert out[-1] == (pytest.approx(100.0 + HOLD_S), Sockets(ALL, False))


def test_the_easy_side_tries_a_fresh_socket_and_tells_the_peer_where_that_is() -> None:
    bench, fresh = Bench(), Endpoint.parse("9.9.9.9:777")
    way = THEIRS._replace(socket=SOCKETS_MAX)
    assert bench.consider(EASY) == [Sockets((SOCKETS_MAX,), True), Probe(PEER, way), AskStun(SOCKETS_MAX)]
    assert bench.core.on_mapped(3, fresh) == [], "not one of ours"
    assert bench.core.on_mapped(SOCKETS_MAX, fresh) == [Announce(PEER, fresh)]
    assert bench.core.on_mapped(SOCKETS_MAX, fresh) == [], "told once"
    assert bench.core.on_path(PEER, way, Seconds(bench.now)) == [] and bench.core.winners == ((SOCKETS_MAX, PEER),)
    assert bench.core.on_mapped(SOCKETS_MAX, fresh) == []
    assert bench.consider(EASY, OTHER)[0] == Sockets((SOCKETS_MAX - 1,), True)
    assert bench.run(HOLD_S)[-1][1] == Sockets((SOCKETS_MAX - 1,), False)


def test_a_path_ends_the_attempt_and_keeps_its_socket_alone() -> None:
    bench = Bench()
    bench.consider(HARD)
    bench.run(0.2)
    won = Endpoint(THEIRS.ip, THEIRS.port, socket=9)
    assert bench.core.concerns(PEER)
    assert bench.core.on_path(PEER, won, Seconds(bench.now)) == [Sockets(tuple(n for n in ALL if n != 9), False)]
    assert bench.core.next_deadline() is None and bench.core.concerns(PEER)
    assert bench.core.on_path(PEER, None, Seconds(bench.now), won) == [], "idle, and hoped to work still"
    assert bench.core.on_path(PEER, Endpoint.parse("8.8.8.8:6"), Seconds(bench.now)) == [Sockets((9,), False)]
    assert not bench.core.concerns(PEER)


def test_sockets_of_paths_are_not_opened_anew() -> None:
    bench = Bench()
    bench.consider(HARD)
    bench.core.on_path(PEER, Endpoint(THEIRS.ip, THEIRS.port, socket=9), Seconds(bench.now))
    assert bench.consider(HARD, OTHER) == [Sockets(tuple(n for n in ALL if n != 9), True)]
    assert bench.core.forget(OTHER) == [Sockets(tuple(n for n in ALL if n != 9), False)]
    assert bench.core.winners == ((9, PEER),)
    bench.core.on_sockets_lost()
    assert bench.core.winners == ()


def test_any_direct_path_ends_the_probing() -> None:
    bench = Bench()
    bench.consider(EASY)
    assert probes(bench.run(1.0))
    assert bench.core.on_path(PEER, THEIRS, Seconds(bench.now)) == []
    assert bench.core.on_mapped(SOCKETS_MAX, OWN) == []
    assert bench.run(60.0) == [(pytest.approx(100.0 + HOLD_S), Sockets((SOCKETS_MAX,), False))]


def test_a_socket_that_the_peer_still_uses_is_kept_whatever_our_way_is() -> None:
    bench = Bench()
    bench.consider(EASY)
    bench.core.on_path(PEER, THEIRS, Seconds(bench.now))
    bench.run(HOLD_S - 1)
    bench.core.on_heard(SOCKETS_MAX, Seconds(bench.now))
    assert bench.run(2.0) == [] and bench.core.winners == ((SOCKETS_MAX, PEER),)
    assert bench.core.on_path(PEER, THEIRS, Seconds(bench.now)) == []
    bench.now += QUIET_S
    assert bench.core.on_path(PEER, THEIRS, Seconds(bench.now)) == [Sockets((SOCKETS_MAX,), False)]


def test_attempts_are_rare() -> None:
    """One at a time, one with each peer in ten minutes, a few with all of them."""
    bench = Bench()
    bench.consider(EASY)
    bench.consider(EASY, OTHER)
    assert bench.core.counts["attempts"] == 1
    bench.run(HOLD_S + 1)
    bench.consider(EASY)
    assert bench.core.counts["attempts"] == 1
    for number in range(20):
        bench.consider(EASY, NodePublic(bytes([100 + number]) * 32))
        bench.run(HOLD_S + 1)
    assert bench.core.counts["attempts"] == ATTEMPTS_MAX
    bench.run(AGAIN_S)
    bench.consider(EASY)
    assert bench.core.counts["attempts"] == ATTEMPTS_MAX + 1


def test_the_usual_ways_come_first() -> None:
    bench = Bench()
    assert bench.core.consider(PEER, (THEIRS,), HARD, PATIENCE_S - 0.1, Seconds(bench.now)) == []


def test_sides_that_begin_seconds_apart_meet() -> None:
    """A NAT that gives each socket a random port lets in what it sent to; both sides within the holes' life."""
    met = 0
    for seed in range(40):
        dice = random.Random(seed)
        hard, easy = Bench(), Bench()
        easy.core = Predictor(dice.sample)
        hard.now += dice.uniform(0.0, 12.0)
        easy.now += dice.uniform(0.0, 12.0)
        hard.consider(HARD)
        easy.consider(EASY)
        opened = {to.socket: at for at, to in reversed(probes(hard.run(HOLD_S)))}
        ports = dict(zip(dice.sample(range(1024, 65536), len(opened)), opened.values(), strict=True))
        tried = {to.port: at for at, to in probes(easy.run(HOLD_S))}
        met += any(abs(ports[port] - tried[port]) < 30.0 for port in ports.keys() & tried.keys())
    assert met == 40


steps = st.one_of(
    st.tuples(st.just("time"), st.floats(0.0, 30.0)),
    st.tuples(st.sampled_from(["easy", "hard", "lost", "none", "forget"]), st.sampled_from([PEER, OTHER])),
    st.tuples(st.sampled_from(["won", "heard"]), st.one_of(st.integers(0, SOCKETS_MAX), st.just(SOCKETS_MAX))),
)


@given(st.lists(steps, max_size=40))
def test_no_socket_is_open_without_a_reason(script: list[tuple[str, Any]]) -> None:
    """What is open is the attempt's or a path's, never opened twice, and nothing else is ever closed."""
    bench, is_open = Bench(), set[int]()
    for what, about in script:
        for effect in play(bench, what, about):
            if isinstance(effect, AskStun):
                assert effect.number in is_open
                continue
            if isinstance(effect, Probe):
                assert effect.endpoint.ip == THEIRS.ip
                assert not effect.endpoint.socket or effect.endpoint.socket in is_open
                continue
            assert isinstance(effect, Sockets)
            numbers = set(effect.numbers)
            assert numbers.isdisjoint(is_open) if effect.is_open else numbers <= is_open
            is_open = is_open | numbers if effect.is_open else is_open - numbers
        if what == "lost":
            is_open.clear()
        assert {number for number, _ in bench.core.winners} <= is_open
    bench.run(HOLD_S)
    for _, effect in bench.run(HOLD_S):
        assert isinstance(effect, Probe)


def play(bench: Bench, what: str, about: Any) -> list[Effect]:
    if what == "time":
        return [effect for _, effect in bench.run(about)]
    if what in ("easy", "hard"):
        return bench.consider(EASY if what == "easy" else HARD, about)
    if what == "lost":
        bench.core.on_sockets_lost()
        return []
    if what == "won":
        return bench.core.on_path(PEER, Endpoint(THEIRS.ip, THEIRS.port, socket=about), Seconds(bench.now))
    if what == "heard":
        bench.core.on_heard(about, Seconds(bench.now))
        return []
    return bench.core.forget(about) if what == "forget" else bench.core.on_path(about, None, Seconds(bench.now))
