"""The path machine as a dialogue, and every event in every state under random play."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core.bucket import Bucket
from meshnode.core.path import PeerPath
from meshnode.core.path_body import PROBES_MAX
from meshnode.core.path_table import TABLE
from meshnode.core.path_values import (
    Call,
    Effect,
    Event,
    Hedge,
    Kick,
    Mode,
    Notify,
    SeekRelay,
    SendPing,
    SetPath,
    State,
    Tuning,
    What,
)
from meshnode.core.score import Kind
from tests.sim.engine import Route
from tests.sim.watch import broken

E1, E2, E3 = (Endpoint.parse(text) for text in ("192.168.1.2:1", "192.168.1.3:1", "203.0.113.9:1"))
LEG = Endpoint(ip_address("203.0.113.40"), 40000, 7)
HOME = RegionId(1)


def make(seed: int = 1, *endpoints: Endpoint, relay: bool = True) -> PeerPath:
    dice = random.Random(seed)
    path = PeerPath(
        txid=lambda: dice.randbytes(12),
        uniform=dice.uniform,
        admit=lambda e: e.port != 0,
        pings=Bucket(2000, 2000),
        calls=Bucket(100, 100),
        now=Seconds(0.0),
        tuning=Tuning(),
    )
    path.on_relay(HOME if relay else RegionId(0), relay, Seconds(0.0))
    path.on_endpoints(endpoints, Seconds(0.0))
    return path


def pings(effects: list[Effect]) -> dict[Endpoint, bytes]:
    return {e.endpoint: e.txid for e in effects if isinstance(e, SendPing)}


def answer(path: PeerPath, effects: list[Effect], at: float, hole: int = 9000) -> list[Effect]:
    """Pongs for every ping that fits through the hole, and for those they lead to; returns what else happened."""
    out: list[Effect] = []
    waiting = [e for e in effects if isinstance(e, SendPing)]
    while waiting:
        ping = waiting.pop(0)
        if ping.wire > hole:
            continue
        led_to = path.on_pong(ping.txid, None, Seconds(at))
        waiting += [e for e in led_to if isinstance(e, SendPing)]
        out += led_to
    return out


def direct(seed: int = 1, *endpoints: Endpoint, at: float = 1.0) -> PeerPath:
    """A path that is Direct by E1 and has carried data."""
    path = make(seed, *(endpoints or (E1,)))
    sent = pings(path.on_send(Seconds(at)))
    answer(path, path.on_pong(sent[E1], None, Seconds(at + 0.03)), at + 0.04)
    path.on_recv(E1, What.DATA, Seconds(at + 0.05))
    assert path.state is State.DIRECT and not path.hedges
    return path


def pass_time(path: PeerPath, until: float) -> list[Effect]:
    out: list[Effect] = []
    while (at := path.next_deadline()) is not None and at <= until:
        out += path.on_deadline(at)
    return out


def test_the_first_packet_calls_pings_and_goes_by_relay() -> None:
    path = make(1, E1, E2)
    effects = path.on_send(Seconds(1.0))
    assert Call() in effects and set(pings(effects)) == {E1, E2}
    assert path.last_path == SetPath(None, HOME, Mode.RELAY) and path.state is State.PROBING


def test_a_pong_installs_with_a_copy_until_data_comes_back() -> None:
    path = make(1, E1)
    sent = pings(path.on_send(Seconds(1.0)))
    effects = path.on_pong(sent[E1], E3, Seconds(1.03))
    assert SetPath(E1, HOME, Mode.BOTH) in effects and path.seen_as == E3
    assert [e for e in effects if isinstance(e, Notify)][0].new is State.DIRECT
    assert SetPath(E1, HOME, Mode.DIRECT) not in answer(path, effects, 1.04), (
        "its size is known, but not that it carries"
    )
    assert SetPath(E1, HOME, Mode.DIRECT) in path.on_recv(E1, What.DATA, Seconds(1.05))


def test_a_pong_credits_the_address_pinged_and_only_once_and_only_in_time() -> None:
    path = make(1, E1, E2)
    sent = pings(path.on_send(Seconds(1.0)))
    path.on_pong(sent[E2], None, Seconds(1.01))
    assert path.act is not None and path.act.endpoint == E2
    assert path.on_pong(sent[E2], None, Seconds(1.02)) == []
    assert path.act.pong_count == 1
    path.on_pong(sent[E1], None, Seconds(1.0 + 5.0))
    assert path.candidates[E1].pong_count == 0, "later than the hard timeout"
    assert path.on_pong(b"unknown", None, Seconds(7.0)) == []


def test_a_late_pong_still_counts() -> None:
    path = make(1, E1)
    sent = pings(path.on_send(Seconds(1.0)))
    pass_time(path, 3.0)
    path.on_pong(sent[E1], None, Seconds(3.0))
    assert path.state is State.DIRECT and path.candidates[E1].srtt == pytest.approx(2.0)


def test_rounds_end_in_relay_only_with_a_reason() -> None:
    path = make(1, E1, E2)
    path.on_send(Seconds(1.0))
    effects = pass_time(path, 9.0)
    assert path.state is State.RELAY_ONLY and "none of its 2 addresses answered" in path.reason
    calls = sum(isinstance(e, Call) for e in effects)
    assert 1 <= calls <= 4
    assert make(1).on_send(Seconds(0.0)) and path.status().pings_sent > 4


def test_nothing_to_try_is_said() -> None:
    path = make(1)
    path.on_send(Seconds(1.0))
    pass_time(path, 9.0)
    assert path.reason == "it has told us no address to try"


def test_a_call_is_never_answered_by_a_call() -> None:
    for path in (make(1, E1), direct(), make(2)):
        assert not any(isinstance(e, Call) for e in path.on_call([E2, E3], Seconds(2.0)))
        assert E2 in path.candidates


def test_three_misses_degrade_and_ten_seconds_end_it() -> None:
    path = direct()
    cut = 3.0
    at = cut
    while path.state is State.DIRECT and at < 12:
        path.on_send(Seconds(at))
        pass_time(path, at)
        at += 0.1
    assert path.state is State.DEGRADED and at - cut < 2.2 + 1.5
    assert path.last_path == SetPath(E1, HOME, Mode.DOUBTED)
    degraded_at = at
    while path.state is State.DEGRADED and at < 40:
        path.on_send(Seconds(at))
        pass_time(path, at)
        at += 0.1
    assert path.state is State.RELAY_ONLY and at - degraded_at == pytest.approx(10.0, abs=0.3)
    assert path.last_path == SetPath(None, HOME, Mode.RELAY)


def test_a_pong_in_doubt_ends_the_doubt() -> None:
    path = direct()
    path.on_link(lambda _: True, Seconds(2.0))
    assert path.state is State.DEGRADED
    sent = pings(pass_time(path, 2.3))
    path.on_pong(sent[E1], None, Seconds(2.33))
    assert path.state is State.DIRECT


def test_an_outage_that_is_over_is_no_loss() -> None:
    """What was lost while nothing passed does not make copies go by relay for a minute afterwards."""
    path, at = direct(), 3.0
    while at < 80.0:
        path.on_send(Seconds(at))
        effects = pass_time(path, at)
        if not 20.0 < at < 30.0:
            answer(path, effects, at + 0.02)
            path.on_recv(E1, What.DATA, Seconds(at + 0.03))
        if at > 32.0:
            assert path.state is State.DIRECT and Hedge.LOSS not in path.hedges, at
        at += 0.05


def test_a_first_miss_duplicates_and_a_pong_ends_it() -> None:
    path = direct()
    effects = path.on_send(Seconds(3.0))
    assert E1 in pings(effects)
    effects = pass_time(path, 3.5)
    assert Hedge.MISS in path.hedges and path.last_path.mode is Mode.BOTH
    answer(path, effects, 3.52)
    assert path.last_path.mode is Mode.DIRECT


def test_idle_forgets_timers_and_keeps_a_hint() -> None:
    path = direct()
    at = 1.1
    while path.state is not State.UNKNOWN and at < 60:
        effects = pass_time(path, at)
        assert set(pings(effects)) <= {E1}
        answer(path, effects, at)
        at += 0.05
    assert path.state is State.UNKNOWN and at == pytest.approx(46.1, abs=1.0)
    assert path.next_deadline() is None and path.hint == E1
    assert path.last_path == SetPath(E1, HOME, Mode.DOUBTED)


def test_pongs_without_data_are_not_a_path() -> None:
    """A peer that answers probes but whose data never comes back directly loses the path (row 18)."""
    path = make(1, E1)
    path.on_pong(pings(path.on_send(Seconds(1.0)))[E1], None, Seconds(1.03))
    at = 1.1
    while path.state is State.DIRECT and at < 40:
        path.on_send(Seconds(at))
        path.on_recv(None, What.DATA, Seconds(at))
        answer(path, pass_time(path, at), at)
        if path.state is State.DIRECT:
            assert path.last_path.mode is Mode.BOTH, "the relay carries copies until the path has proved itself"
        at += 0.1
    assert path.state is State.RELAY_ONLY and "relay only" in path.reason
    assert path.candidates[E1].is_bad(at) and at < 20


def test_one_request_answered_by_relay_is_no_stall() -> None:
    path = make(1, E1)
    sent = pings(path.on_send(Seconds(1.0)))
    path.on_recv(None, What.DATA, Seconds(1.02))
    path.on_pong(sent[E1], None, Seconds(1.03))
    path.on_send(Seconds(1.04))
    at = 1.1
    while at < 45:
        answer(path, pass_time(path, at), at)
        if abs(at - 11.05) < 0.05:
            path.on_recv(E1, What.KEEPALIVE, Seconds(at))
        at += 0.1
    assert path.state is State.DIRECT


def test_peer_gone_is_believed_for_five_seconds_and_withdrawn_by_a_packet() -> None:
    path = make(1, E1)
    path.on_send(Seconds(1.0))
    path.on_peer_gone(Seconds(1.1))
    assert not path.is_relay_up and path.last_path.mode is Mode.RELAY, "a queue there beats a drop here"
    assert any(isinstance(e, Call) for e in path.on_peer_seen(Seconds(1.2))) and path.is_relay_up
    path.on_peer_gone(Seconds(2.0))
    pass_time(path, 7.1)
    assert path.is_relay_up


def test_relay_loss_leaves_a_direct_path_alone() -> None:
    path = direct()
    path.on_relay(HOME, False, Seconds(2.0))
    assert path.state is State.DIRECT and path.last_path == SetPath(E1, HOME, Mode.DIRECT)


def test_an_unreachable_network_is_noticed_at_once() -> None:
    path = direct()
    effects = path.on_send_error(E1, True, Seconds(2.0))
    assert path.state is State.DEGRADED and SetPath(E1, HOME, Mode.DOUBTED) in effects
    assert path.on_send_error(E3, True, Seconds(2.0)) == []


def test_a_restarted_peer_is_greeted_anew() -> None:
    path = direct()
    path.on_send(Seconds(1.5))
    assert Kick() in path.on_disco_key(Seconds(2.0)) and path.state is State.DEGRADED


def test_forged_candidates_are_bounded_and_pinged_within_limits() -> None:
    path = direct()
    sent = 0
    for second in range(20):
        forged = [Endpoint(ip_address(f"198.51.{second}.{n}"), 1) for n in range(100)]
        sent += len(pings(path.on_call(forged, Seconds(2.0 + second))))
        sent += len(pings(pass_time(path, 2.9 + second)))
        assert len(path.candidates) <= 64 and E1 in path.candidates
    assert sent <= 20 * 64


def test_the_engine_speaks_the_same_numbers() -> None:
    native = pytest.importorskip("meshnode.engine._native")
    assert list(map(int, Mode)) == [
        native.PATH_NONE, native.PATH_DIRECT, native.PATH_RELAY, native.PATH_BOTH, native.PATH_DOUBTED,
    ]  # fmt: skip
    assert list(map(int, What)) == [native.WHAT_KEEPALIVE, native.WHAT_DATA, native.WHAT_HANDSHAKE]


def play(seed: int, steps: int) -> str:
    """Random events; returns the story so that two plays can be compared."""
    dice = random.Random(seed)
    path = make(seed, E1)
    endpoints = [E1, E2, E3, Endpoint.parse("[2001:db8::1]:9"), Endpoint.parse("127.0.0.1:0"), LEG]
    now, route, open_pings, story = 1.0, Route(mode=Mode.RELAY, region=1), [], []
    seen: set[tuple[Event, State]] = set()
    for _ in range(steps):
        now += dice.choice([0.0, 0.01, 0.1, 0.5, 3.0, 60.0]) * dice.random()
        before, at, endpoint = path.state, Seconds(now), dice.choice(endpoints)
        match dice.randrange(20):
            case 0 | 1 | 2:
                effects = path.on_send(at, wanted=dice.random() < 0.1)
            case 3 | 4 | 5 if open_pings:
                effects = path.on_pong(open_pings.pop(dice.randrange(len(open_pings))), endpoint, at)
            case 6:
                effects = path.on_ping(endpoint, at)
            case 7:
                effects = path.on_call(dice.sample(endpoints, 3), at)
            case 8 | 9:
                effects = path.on_recv(dice.choice([None, endpoint]), dice.choice(list(What)), at)
            case 10:
                effects = path.on_send_error(endpoint, dice.random() < 0.5, at)
            case 19:
                effects = path.on_too_big(endpoint, at) if dice.random() < 0.5 else path.on_full_buffers(endpoint, at)
            case 11:
                hit = dice.choice(endpoints)
                effects = path.on_link(lambda e, hit=hit: e == hit, at)
            case 12:
                effects = path.on_endpoints(dice.sample(endpoints, 2), at)
            case 13 if dice.random() < 0.3:
                effects = path.on_disco_key(at)
            case 14:
                effects = path.on_relay(RegionId(dice.choice([0, 1, 2])), dice.random() < 0.7, at)
            case 15:
                effects = path.on_peer_gone(at) if dice.random() < 0.5 else path.on_own_endpoints(at)
            case 16 if dice.random() < 0.2:
                effects = path.on_wireguard_stall(at)
            case 17:
                effects = path.on_leg(dice.choice([LEG, LEG._replace(vni=8)]), at)
            case 18 if dice.random() < 0.3:
                effects = path.on_leg_lost(LEG, at)
            case _:
                effects = path.on_deadline(at)
        if (due := path.next_deadline()) is not None and due <= now:
            effects = effects + path.on_deadline(at)
        seen.add((Event.SEND, before))
        open_pings = (open_pings + list(pings(effects).values()))[-PROBES_MAX:]
        for effect in effects:
            if isinstance(effect, SetPath):
                route = Route(effect.direct, effect.region, effect.mode, effect.limit)
        calls = [e for e in effects if isinstance(e, Call)]
        assert len(calls) <= 2 and len(pings(effects)) <= 34
        problem = broken(path, now, route, now)
        assert not problem or problem.startswith("I6: direct, but no evidence"), f"seed {seed}: {problem}"
        story.append(f"{now:.6f} {path.state} {path.last_path} {len(path.probes)}")
    assert {state for _, state in seen} == set(State), "the play has visited every state"
    return "\n".join(story)


@pytest.mark.parametrize("seed", range(8))
def test_random_play_holds_the_invariants(seed: int) -> None:
    play(seed, 4000)


def test_same_seed_same_effects() -> None:
    assert play(3, 1500) == play(3, 1500)


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(Event)
    for event, row in TABLE.items():
        assert row and set(row) <= set(State), event


# --- after our restart ---


def kicks(effects: list[Effect]) -> int:
    return sum(isinstance(effect, Kick) for effect in effects)


def test_a_handshake_without_answer_is_asked_for_again_with_the_rounds() -> None:
    """The peer may answer where we were before: WireGuard's own five seconds are long."""
    path = make(1, E1)
    path.on_send(Seconds(1.0))
    assert kicks(pass_time(path, 3.0)) == 3
    path = make(1, E1)
    path.on_send(Seconds(1.0))
    path.on_recv(None, What.HANDSHAKE, Seconds(1.1))
    assert kicks(pass_time(path, 3.0)) == 3, (
        "a session that the peer may have ended: the engine leaves young ones alone"
    )
    path = make(1, E1)
    path.on_send(Seconds(1.0))
    path.on_recv(None, What.KEEPALIVE, Seconds(1.1))
    assert not kicks(pass_time(path, 3.0)), "it works"
    path = make(1, E1)
    path.on_call([E1], Seconds(1.0))
    assert not kicks(pass_time(path, 9.0)), "nobody wants to send"


# --- legs of peer relays ---


def test_a_peer_relay_is_sought_when_rounds_stay_without_answer() -> None:
    path = make(1, E1)
    path.on_send(Seconds(1.0))
    assert SeekRelay(False) not in pass_time(path, 2.7)
    assert SeekRelay(False) in pass_time(path, 2.8)


def test_a_leg_beats_the_relay_and_a_direct_path_beats_a_leg() -> None:
    path = make(1, E1)
    early = pings(path.on_send(Seconds(1.0)))
    sent = pings(path.on_leg(LEG, Seconds(1.3)))
    assert set(sent) == {LEG}
    path.on_pong(sent[LEG], E3, Seconds(1.35))
    assert path.act is not None and path.act.endpoint == LEG and path.act.kind is Kind.RELAYED
    assert path.last_path.direct == LEG and path.seen_as is None, "the relay sees itself, not us"
    path.on_pong(early[E1], None, Seconds(1.9))
    assert path.act.endpoint == E1, "slower, and yet direct"
    sent = pings(path.on_leg(LEG, Seconds(2.0)))
    path.on_pong(sent[LEG], None, Seconds(2.001))
    assert path.act.endpoint == E1


def test_a_leg_that_stops_carrying_is_sought_anew_at_once() -> None:
    path = make(1)
    path.on_send(Seconds(1.0))
    sent = pings(path.on_leg(LEG, Seconds(1.0)))
    path.on_pong(sent[LEG], None, Seconds(1.02))
    path.on_recv(LEG, What.DATA, Seconds(1.03))
    effects: list[Effect] = []
    for tick in range(60):
        path.on_send(Seconds(1.1 + tick / 10))
        effects += pass_time(path, 1.1 + tick / 10)
    assert SeekRelay(True) in effects and path.state in (State.DEGRADED, State.PROBING)


def test_a_lost_leg_is_forgotten_and_left() -> None:
    path = make(1)
    path.on_send(Seconds(1.0))
    sent = pings(path.on_leg(LEG, Seconds(1.0)))
    path.on_pong(sent[LEG], None, Seconds(1.02))
    path.on_leg_lost(LEG, Seconds(2.0))
    assert LEG not in path.candidates and path.hint is None and path.state is State.PROBING
    assert path.last_path == SetPath(None, HOME, Mode.RELAY)
    assert path.on_leg_lost(LEG, Seconds(2.1)) == []


def test_a_peer_whose_own_answers_are_scrubbed_loses_the_path() -> None:
    """A stock node answers by the path it trusts, and it trusts the one whose probes we answer."""
    path = direct()
    at = 1.1
    while path.state is State.DIRECT and at < 60:
        answer(path, path.on_send(Seconds(at)), at)
        answer(path, pass_time(path, at), at)
        at += 0.1
    assert path.state is State.RELAY_ONLY and at == pytest.approx(1.05 + 12 + 15, abs=3.0)
    assert path.is_hushed(E1, Seconds(at + 5.0))
