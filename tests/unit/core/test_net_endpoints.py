"""Endpoints that STUN shows, and what of them control hears: sticky, bounded, quiet."""

from __future__ import annotations

import random
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.units import Seconds
from meshnode.core.net_endpoints import KEPT_S, PER_IP_MAX, Entries, Mapped, Told, endpoints_of, forwarded_guess
from meshnode.core.report import Nat, NetReport, nat_of
from meshnode.netmap.tailcfg import EndpointKind

LOCAL, STUN, PORTMAPPED = EndpointKind.LOCAL, EndpointKind.STUN, EndpointKind.PORTMAPPED


def at(text: str) -> Endpoint:
    return Endpoint.parse(text)


def report(*seen: str, varies: bool | None = False, **counts: int) -> NetReport:
    """Servers saw these, the first most of all."""
    found = [at(text) for text in seen]
    v4 = next((e for e in found if e.ip.version == 4), None)
    v6 = next((e for e in found if e.ip.version == 6), None)
    return NetReport(
        udp=bool(seen), stun_sent=2, mapping_varies=varies, global_v4=v4, global_v6=v6, seen={e: 1 for e in found}
    )


def learn(mapped: Mapped, now: float, *seen: str) -> set[Any]:
    return mapped.learn(report(*seen), Seconds(now))


# --- the cache ---


def test_what_a_report_shows_and_what_more_than_one_server_saw() -> None:
    odd, often = at("203.0.113.5:2"), at("203.0.113.5:3")
    v4, v6 = at("203.0.113.5:1"), at("[2001:db8::1]:9")
    found = NetReport(udp=True, global_v4=v4, global_v6=v6, seen={v4: 3, v6: 1, odd: 1, often: 2})
    assert endpoints_of(found) == (v4, v6, often)


def test_endpoints_stay_for_five_minutes_newest_first() -> None:
    mapped = Mapped()
    learn(mapped, 0.0, "203.0.113.5:1")
    learn(mapped, 100.0, "203.0.113.5:2", "[2001:db8::1]:9")
    assert mapped.current() == (at("203.0.113.5:2"), at("[2001:db8::1]:9"), at("203.0.113.5:1"))
    learn(mapped, KEPT_S, "203.0.113.5:2")
    assert at("203.0.113.5:1") in mapped.current()
    learn(mapped, KEPT_S + 1, "203.0.113.5:2")
    assert mapped.current() == (at("203.0.113.5:2"), at("[2001:db8::1]:9"))


def test_at_most_six_for_an_address() -> None:
    mapped = Mapped()
    for port in range(1, 20):
        learn(mapped, float(port), f"203.0.113.5:{port}", "198.51.100.1:7")
    ports = [e.port for e in mapped.current() if e.ip == ip_address("203.0.113.5")]
    assert ports == list(range(19, 19 - PER_IP_MAX, -1))


def test_silence_takes_nothing_away() -> None:
    mapped = Mapped()
    learn(mapped, 0.0, "203.0.113.5:1")
    learn(mapped, 9.0)
    assert mapped.current() == (at("203.0.113.5:1"),)


def test_after_a_link_change_only_addresses_that_are_seen_again_stay() -> None:
    mapped = Mapped()
    learn(mapped, 0.0, "203.0.113.5:1", "[2001:db8::1]:9")
    mapped.note_link_change()
    assert learn(mapped, 1.0) == set(), "no answer yet says nothing"
    assert learn(mapped, 2.0, "198.51.100.1:5") == {ip_address("203.0.113.5"), IPv6Address("2001:db8::1")}
    assert mapped.current() == (at("198.51.100.1:5"),)
    mapped.note_link_change()
    assert learn(mapped, 3.0, "198.51.100.1:6") == set()
    assert set(mapped.current()) == {at("198.51.100.1:5"), at("198.51.100.1:6")}


@pytest.mark.parametrize(
    ("varies", "port", "guess"),
    [(True, 41641, ("203.0.113.5:41641",)), (False, 41641, ()), (None, 41641, ()), (True, 0, ())],
)
def test_a_configured_port_behind_a_hard_nat_is_a_guess(varies: bool | None, port: int, guess: tuple[str, ...]) -> None:
    found = forwarded_guess(report("203.0.113.5:1", varies=varies), port)
    assert tuple(map(str, found)) == guess


def test_the_kind_of_nat_in_words() -> None:
    ours = at("203.0.113.5:1")
    easy, hard = report(str(ours)), report(str(ours), varies=True)
    assert nat_of(easy, ())[0] is Nat.EASY and nat_of(hard, ())[0] is Nat.HARD
    assert nat_of(easy, (ours,))[0] is Nat.NONE
    assert nat_of(report(str(ours), varies=None), ())[0] is Nat.UNKNOWN
    kind, why = nat_of(report(), ())
    assert kind is Nat.UNKNOWN and why == "no STUN server answers by UDP"
    assert nat_of(NetReport(), ())[1] == "no relay of this tailnet has a STUN server to ask"


# --- what control is told ---


def entries(*items: tuple[str, EndpointKind]) -> Entries:
    return tuple((at(text), kind) for text, kind in items)


HOME = ("192.168.1.5:1", LOCAL)


class Desk:
    """A Told that is asked whenever it said it should be."""

    def __init__(self) -> None:
        self.told = Told()
        self.now = 1000.0
        self.sent: list[tuple[float, Entries]] = []

    def offer(self, *items: tuple[str, EndpointKind], varies: bool = False) -> int:
        """Returns how many messages there are by now."""
        self.told.offer(entries(*items), Seconds(self.now), mapping_varies=varies)
        return self.wait(0.0)

    def wait(self, seconds: float) -> int:
        end = self.now + seconds
        while self.told.due_at is not None and self.told.due_at <= end:
            self.now = max(self.now, self.told.due_at)
            news = self.told.take(Seconds(self.now))
            assert news is not None
            self.sent.append((self.now, news))
        self.now = end
        return len(self.sent)


def test_local_endpoints_are_told_at_once_and_stun_a_moment_later() -> None:
    desk = Desk()
    assert desk.offer(HOME) == 1
    assert desk.offer(("203.0.113.5:1", STUN), HOME) == 1
    assert desk.wait(1.0) == 2
    assert desk.sent[-1][1] == entries(("203.0.113.5:1", STUN), HOME)


def test_order_is_no_news() -> None:
    desk = Desk()
    desk.offer(HOME, ("10.0.0.1:1", LOCAL))
    assert desk.offer(("10.0.0.1:1", LOCAL), HOME) == 1
    assert desk.told.due_at is None


def test_what_stun_lost_waits_for_other_news() -> None:
    desk = Desk()
    desk.offer(HOME)
    desk.offer(HOME, ("203.0.113.5:1", STUN))
    desk.wait(10)
    assert desk.offer(HOME) == 2
    assert desk.wait(300) == 2 and desk.wait(30) == 3
    assert desk.sent[-1][1] == entries(HOME)


def test_an_interface_that_comes_or_goes_is_told_at_once() -> None:
    desk = Desk()
    desk.offer(HOME)
    assert desk.offer(HOME, ("10.0.0.1:1", LOCAL)) == 2
    assert desk.offer(HOME) == 3
    assert desk.offer(HOME, ("203.0.113.5:1", PORTMAPPED)) == 4


def test_a_mapping_that_wobbles_is_told_ever_less() -> None:
    desk = Desk()
    desk.offer(HOME)
    for port in range(1, 301):  # another each 3 s for 15 minutes
        desk.offer(HOME, (f"203.0.113.5:{port}", STUN))
        desk.wait(3)
    gaps = [later - earlier for (earlier, _), (later, _) in zip(desk.sent[1:], desk.sent[2:], strict=False)]
    assert len(desk.sent) <= 9 and gaps == sorted(gaps), gaps
    desk.wait(2000)
    desk.offer(HOME, ("203.0.113.9:1", STUN))
    before = len(desk.sent)
    assert desk.wait(2) == before + 1, "after a quiet time news is news again"


def test_the_ports_of_a_hard_nat_are_no_news() -> None:
    desk = Desk()
    desk.offer(HOME)
    desk.offer(HOME, ("203.0.113.5:1", STUN), varies=True)
    assert desk.wait(10) == 2
    desk.offer(HOME, ("203.0.113.5:2", STUN), ("203.0.113.5:1", STUN), varies=True)
    assert desk.wait(100) == 2
    desk.offer(HOME, ("198.51.100.7:2", STUN), varies=True)
    assert desk.wait(100) == 3, "another address is"


@pytest.mark.parametrize("seed", range(100))
def test_control_knows_in_the_end_and_hears_little(seed: int) -> None:
    dice = random.Random(seed)
    desk = Desk()
    items: list[tuple[str, EndpointKind]] = [HOME]
    for _ in range(50):
        stun = [(f"203.0.113.{dice.randint(1, 2)}:{dice.randint(1, 3)}", STUN) for _ in range(dice.randint(0, 2))]
        items = [HOME, *dict.fromkeys(stun)]
        dice.shuffle(items)
        desk.offer(*items)
        desk.wait(dice.choice([0.1, 3, 23, 100]))
    desk.wait(1000)
    assert set(desk.sent[-1][1]) == set(entries(*items))
    times = [when for when, _ in desk.sent[1:]]
    assert all(later - earlier >= 10 for earlier, later in zip(times, times[1:], strict=False))
