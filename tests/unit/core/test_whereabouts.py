"""Where a plain WireGuard peer is looked for while it does not answer."""

from __future__ import annotations

from ipaddress import ip_address

from meshnode.base.addr import Endpoint
from meshnode.base.units import Seconds
from meshnode.core.whereabouts import RETRY_MAX_S, TRIES, Resolve, Use, Whereabouts

ONE, TWO, NEW = (ip_address(f"192.0.2.{n}") for n in (1, 2, 3))


def use(ip: object) -> list[Use]:
    return [Use(Endpoint(ip, 51820))]  # type: ignore[arg-type]


def test_an_address_is_used_at_once_and_gone_back_to() -> None:
    peer = Whereabouts("192.0.2.1", 51820)
    assert peer.start() == use(ONE)
    assert peer.on_count(0, TRIES - 1) == []
    assert peer.on_count(0, TRIES) == use(ONE)
    assert peer.on_count(0, TRIES) == []
    assert peer.on_count(1, TRIES + 1) == []  # it answered
    assert peer.on_count(1, 2 * TRIES) == []
    assert peer.on_count(1, 2 * TRIES + 1) == use(ONE)


def test_each_address_of_a_name_then_the_name_again() -> None:
    peer = Whereabouts("vpn.test", 51820)
    assert peer.start() == [Resolve("vpn.test")] and peer.endpoint is None
    assert peer.on_count(0, 99) == []  # nothing was sent anywhere yet
    assert peer.on_resolved([ONE, TWO, ONE]) == use(ONE)
    assert peer.on_count(0, 99 + TRIES) == use(TWO)
    assert peer.on_count(0, 99 + 2 * TRIES) == [Resolve("vpn.test")]
    assert peer.on_count(0, 99 + 3 * TRIES) == []  # the question is on its way
    assert peer.on_resolved([NEW]) == use(NEW)
    assert peer.endpoint == Endpoint(NEW, 51820)


def test_the_address_that_did_not_answer_is_not_tried_first() -> None:
    peer = Whereabouts("vpn.test", 51820)
    peer.start()
    peer.on_resolved([ONE])
    assert peer.on_count(0, TRIES) == [Resolve("vpn.test")]
    assert peer.on_resolved([ONE, TWO]) == use(TWO)


def test_a_name_that_does_not_resolve_is_asked_less_and_less() -> None:
    peer = Whereabouts("vpn.test", 51820)
    peer.start()
    now, waits = 0.0, []
    for _ in range(10):
        peer.on_unresolved(Seconds(now))
        assert peer.retry_at is not None
        assert peer.on_time(Seconds(peer.retry_at - 0.001)) == []
        waits.append(peer.retry_at - now)
        now = peer.retry_at
        assert peer.on_time(Seconds(now)) == [Resolve("vpn.test")]
        assert peer.on_time(Seconds(now)) == []
    assert waits[:3] == [1, 2, 4] and waits[-1] == RETRY_MAX_S
    assert peer.on_resolved([ONE]) == use(ONE) and peer.retry_at is None
