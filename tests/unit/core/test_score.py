"""Which of two candidates is better."""

from __future__ import annotations

import pytest

from meshnode.base.addr import Endpoint, parse_ip
from meshnode.core.score import Candidate, Kind, address_class, is_better, probe_order


def candidate(text: str, rtt: float, *, pongs: int = 3, kind: Kind = Kind.NETMAP, at: float = 100.0) -> Candidate:
    made = Candidate(Endpoint.parse(text), kind)
    for _ in range(pongs):
        made.take_sample(rtt, at)
    return made


def better(a: Candidate, b: Candidate, *, doubted: bool = False, settling: bool = False, now: float = 101.0) -> bool:
    return is_better(a, b, now, b_is_doubted=doubted, is_settling=settling)


def test_clearly_faster_wins_and_slightly_faster_does_not() -> None:
    slow = candidate("8.8.8.8:1", 0.100)
    assert better(candidate("9.9.9.9:1", 0.080), slow)
    assert not better(candidate("9.9.9.9:1", 0.095), slow)
    assert not better(slow, candidate("9.9.9.9:1", 0.080))


def test_of_equals_the_nearer_class_wins() -> None:
    lan, wan = candidate("192.168.1.2:1", 0.0101), candidate("8.8.8.8:1", 0.010)
    assert better(lan, wan) and not better(wan, lan)


def test_never_two_ways_round() -> None:
    made = [
        candidate(f"{ip}:1", rtt) for ip in ("10.0.0.1", "8.8.8.8", "[2001:db8::1]") for rtt in (0.01, 0.02, 0.0115)
    ]
    for a in made:
        for b in made:
            assert not (better(a, b) and better(b, a))


def test_one_pong_is_too_little_unless_settling_or_in_doubt() -> None:
    young, old = candidate("9.9.9.9:1", 0.01, pongs=1), candidate("8.8.8.8:1", 0.1)
    assert not better(young, old)
    assert better(young, old, settling=True) and better(young, old, doubted=True)


def test_stale_or_set_aside_never_wins() -> None:
    fast, slow = candidate("9.9.9.9:1", 0.01, at=50.0), candidate("8.8.8.8:1", 0.1)
    assert not better(fast, slow)
    aside = candidate("9.9.9.9:1", 0.01)
    aside.bad_until = 200.0
    assert not better(aside, slow)


def test_direct_beats_a_peer_relay_and_full_size_beats_less() -> None:
    relayed, plain = candidate("9.9.9.9:1", 0.001, kind=Kind.RELAYED), candidate("8.8.8.8:1", 0.1)
    assert better(plain, relayed) and not better(relayed, plain)
    small = candidate("9.9.9.9:1", 0.01)
    small.limit = 1200
    assert better(plain, small) and not better(small, plain)


def test_a_clean_path_beats_a_lossy_one() -> None:
    lossy, clean = candidate("9.9.9.9:1", 0.02, pongs=12), candidate("8.8.8.8:1", 0.02, pongs=12)
    for _ in range(4):
        lossy.take_loss()
    assert better(clean, lossy) and not better(lossy, clean)


def test_rto_follows_rfc_6298_within_bounds() -> None:
    fresh = Candidate(Endpoint.parse("8.8.8.8:1"), Kind.NETMAP)
    assert fresh.rto() == 0.6
    assert candidate("8.8.8.8:1", 0.001).rto() == 0.2
    assert candidate("8.8.8.8:1", 1.2).rto() == pytest.approx(1.8)
    assert candidate("8.8.8.8:1", 4.0).rto() == 3.0


def test_classes_and_probe_order() -> None:
    order = ["127.0.0.1", "169.254.1.1", "fd00::1", "192.168.1.1", "2001:db8::1", "8.8.8.8"]
    assert [address_class(parse_ip(text)) for text in order] == [0, 1, 2, 3, 4, 5]
    local, learned = candidate("8.8.8.8:1", 1, kind=Kind.LOCAL), candidate("10.0.0.1:1", 1, kind=Kind.REFLEXIVE)
    assert probe_order(local) < probe_order(learned)


def test_another_network_makes_the_unreachable_worth_asking() -> None:
    candidate = Candidate(Endpoint.parse("198.51.100.7:1"), Kind.NETMAP)
    candidate.bad_until = 100.0
    assert candidate.is_bad(50.0)
    candidate.forget()
    assert not candidate.is_bad(50.0)
