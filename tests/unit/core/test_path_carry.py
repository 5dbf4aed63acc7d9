"""Copies that the peer goes on sending: it hears nothing from us directly, whatever we hear of it."""

from __future__ import annotations

from itertools import groupby

from meshnode.base.units import Seconds
from meshnode.core.path import PeerPath
from meshnode.core.path_carry import UNCOPIED_S, UNHEARD_MOST_S, UNHEARD_S
from meshnode.core.path_values import Hedge, Mode, State, What
from tests.unit.core.test_path import E1, answer, direct, make, pings

COPY_LATER_S = 0.03


def beat(path: PeerPath, until: float) -> None:
    """Every probe that is due is answered."""
    while (due := path.next_deadline()) is not None and due <= until:
        answer(path, path.on_deadline(due), due + 0.01)


def talk(path: PeerPath, since: float, until: float, *, copied: bool, each_s: float = 0.1, sends: bool = True) -> float:
    """Both send, probes are answered; copied: by relay too. When a copy of ours first went; 0: never."""
    first = 0.0
    at = since
    while at < until:
        beat(path, at)
        if sends:
            answer(path, path.on_send(Seconds(at)), at + 0.001)
        path.on_recv(E1, What.DATA, Seconds(at + 0.002))
        if copied:
            answer(path, path.on_recv(None, What.KEEPALIVE, Seconds(at + COPY_LATER_S)), at + COPY_LATER_S + 0.01)
        if not first and path.last_path.mode is Mode.BOTH:
            first = at
        at += each_s
    return first


def taken() -> PeerPath:
    """Direct since 1.03, and nothing was heard yet."""
    path = make(1, E1)
    sent = pings(path.on_send(Seconds(1.0)))
    answer(path, path.on_pong(sent[E1], None, Seconds(1.03)), 1.04)
    assert path.state is State.DIRECT and path.hedges == {Hedge.INSTALL}
    return path


def test_a_peer_that_copies_on_after_we_were_sending_is_sent_copies() -> None:
    path = taken()
    talk(path, 1.1, 1.2, copied=True)
    assert not path.hedges, "it was heard, so that copies ended"
    assert 1.0 < talk(path, 1.2, 6.0, copied=True) - 1.1 <= UNHEARD_S + 0.2
    assert path.hedges == {Hedge.UNHEARD} and path.last_path.mode is Mode.BOTH


def test_copies_that_were_under_way_when_we_began_say_nothing() -> None:
    path = taken()
    assert not talk(path, 1.2, 1.1 + UNHEARD_S, copied=True)
    assert not talk(path, 1.1 + UNHEARD_S, 20.0, copied=False) and not path.hedges


def test_they_end_soon_after_the_peer_has_ended_its_own() -> None:
    path = taken()
    talk(path, 1.1, 6.0, copied=True)
    talk(path, 6.0, 6.0 + UNCOPIED_S, copied=False)
    assert Hedge.UNHEARD in path.hedges, "a copy may be late"
    talk(path, 6.0 + UNCOPIED_S, 7.0, copied=False)
    assert not path.hedges and path.last_path.mode is Mode.DIRECT


def test_who_sends_nothing_is_not_missed() -> None:
    path = taken()
    talk(path, 1.1, 20.0, copied=True, sends=False)
    assert Hedge.UNHEARD not in path.hedges


def test_a_keepalive_with_its_copy_is_enough_on_a_new_path() -> None:
    """It answers ten seconds of data, which it heard by relay alone."""
    path = taken()
    at = 1.1
    while at < 11.0:
        beat(path, at)
        answer(path, path.on_send(Seconds(at)), at + 0.001)
        at += 0.1
    path.on_recv(E1, What.KEEPALIVE, Seconds(11.0))
    path.on_recv(None, What.KEEPALIVE, Seconds(11.03))
    assert Hedge.UNHEARD in path.hedges


def test_on_a_path_that_carried_it_takes_more_than_a_probe_of_the_peers_that_was_missed() -> None:
    path = direct()
    talk(path, 1.2, 9.0, copied=False)
    assert not talk(path, 9.0, 10.0, copied=True) and not talk(path, 10.0, 20.0, copied=False)
    first = talk(path, 20.0, 25.0, copied=True)
    assert 20.0 + UNHEARD_S - 0.3 <= first <= 20.0 + UNHEARD_S + 0.3


def test_two_that_copy_because_the_other_does_come_to_an_end() -> None:
    path = taken()
    story, at = [], 1.1
    while at < 60.0:
        talk(path, at, at + 0.1, copied=True)
        story.append(Hedge.UNHEARD in path.hedges)
        at += 0.1
    lengths = [len(list(same)) / 10 for _, same in groupby(story)]
    assert all(UNHEARD_S - 0.3 <= s <= UNHEARD_S + 0.3 for s in lengths[:-1:2]), (
        "gone for as long as the other needs to see"
    )
    assert all(UNHEARD_MOST_S <= s <= UNHEARD_MOST_S + 2.5 for s in lengths[1:-1:2]) and len(lengths) >= 5


def test_while_we_copy_for_reasons_of_our_own_the_peers_copies_say_nothing() -> None:
    path = direct()
    talk(path, 1.2, 9.0, copied=False)
    path.hedges.add(Hedge.LOSS)
    for n in range(50):
        path.on_recv(E1, What.DATA, Seconds(9.0 + n / 10))
        path.on_recv(None, What.KEEPALIVE, Seconds(9.03 + n / 10))
    assert path.hedges == {Hedge.LOSS}


def test_a_handshake_by_relay_is_no_copy() -> None:
    path = taken()
    talk(path, 1.1, 1.2, copied=False)
    for n in range(50):
        path.on_send(Seconds(4.0 + n / 10))
        path.on_recv(E1, What.DATA, Seconds(4.0 + n / 10))
        path.on_recv(None, What.HANDSHAKE, Seconds(4.03 + n / 10))
    assert Hedge.UNHEARD not in path.hedges


def test_a_peer_that_is_only_heard_by_relay_loses_the_path_although_we_sent_nothing() -> None:
    """Else the copies of who sends would go on for ever, and end at the wrong moment."""
    path = taken()
    path.sent_at = -1e9
    at = 1.1
    while at < 14.0 and path.state is State.DIRECT:
        beat(path, at)
        path.on_recv(None, What.DATA, Seconds(at))
        at += 0.1
    assert path.state is State.RELAY_ONLY and "by relay only" in path.reason
