"""The send plan: each state with and without a relay, copies by further paths, and what data may not use."""

from __future__ import annotations

import pytest

from meshnode.base.addr import RegionId
from meshnode.base.units import Seconds
from meshnode.core.path import PeerPath
from meshnode.core.path_values import Mode, SetPath, State, What
from tests.unit.core.test_path import E1, E2, E3, HOME, answer, direct, make, pass_time, pings


def two_ways(at: float = 1.0) -> PeerPath:
    """Direct by E1, with E2 that answered as well."""
    path = make(1, E1, E2)
    sent = pings(path.on_send(Seconds(at)))
    answer(path, path.on_pong(sent[E1], None, Seconds(at + 0.03)), at + 0.04)
    path.on_recv(E1, What.DATA, Seconds(at + 0.05))
    path.on_pong(sent[E2], None, Seconds(at + 0.06))
    assert path.act is not None and path.act.endpoint == E1 and not path.hedges
    return path


def test_a_path_in_doubt_goes_by_relay_first() -> None:
    path = direct()
    path.on_link(lambda _: True, Seconds(2.0))
    assert path.last_path == SetPath(E1, HOME, Mode.DOUBTED)


def test_a_path_in_doubt_without_a_relay_has_copies_elsewhere() -> None:
    path = two_ways()
    path.on_relay(HOME, False, Seconds(2.0))
    assert path.last_path == SetPath(E1, HOME, Mode.DIRECT), "nothing is in doubt"
    path.on_send_error(E1, True, Seconds(2.1))
    assert path.state is State.DEGRADED and path.last_path == SetPath(E1, HOME, Mode.DIRECT, 0, (E2,))


def test_a_hedge_without_a_relay_is_a_second_direct_path() -> None:
    path = two_ways()
    path.on_relay(HOME, False, Seconds(2.0))
    path.on_send(Seconds(3.0))
    pass_time(path, 3.3)
    assert path.state is State.DIRECT and path.hedges
    assert path.last_path == SetPath(E1, HOME, Mode.DIRECT, 0, (E2,))


def test_relayed_without_a_relay_is_sprayed_where_it_worked() -> None:
    path = two_ways()
    path.on_link(lambda e: False, Seconds(1.5))
    path.on_wireguard_stall(Seconds(2.0))
    assert path.state is State.DIRECT and path.act is not None and path.act.endpoint == E2, "the other one takes over"
    path.on_wireguard_stall(Seconds(2.5))
    assert path.state is State.RELAY_ONLY and path.last_path == SetPath(None, HOME, Mode.RELAY)
    path.on_relay(HOME, False, Seconds(2.6))
    assert path.last_path == SetPath(None, HOME, Mode.RELAY), "both are set aside: a queue beats a drop"


def test_who_was_heard_in_doubt_is_sprayed_first() -> None:
    path = two_ways()
    path.on_relay(HOME, False, Seconds(2.0))
    path.on_send_error(E1, True, Seconds(2.1))
    path.on_recv(E3, What.DATA, Seconds(2.2))
    assert path.last_path == SetPath(E1, HOME, Mode.DIRECT, 0, (E3, E2))


def test_direct_only_never_relays_data() -> None:
    path = make(1, E1)
    path.allow_relay(False, Seconds(0.5))
    sent = pings(path.on_send(Seconds(1.0)))
    assert path.last_path == SetPath(None, RegionId(0), Mode.NONE)
    answer(path, path.on_pong(sent[E1], None, Seconds(1.03)), 1.04)
    assert path.last_path == SetPath(E1, RegionId(0), Mode.DIRECT), "not even as a copy"
    path.on_link(lambda _: True, Seconds(2.0))
    assert path.state is State.DEGRADED and path.last_path == SetPath(E1, RegionId(0), Mode.DIRECT)
    pass_time(path, 30.0)
    assert path.state is State.DEGRADED and path.last_path.direct == E1, "there is nothing to fall back on"
    path.allow_relay(True, Seconds(30.0))
    assert path.last_path == SetPath(E1, HOME, Mode.DOUBTED)


def test_direct_only_keeps_a_path_that_is_said_not_to_carry() -> None:
    path = direct()
    path.allow_relay(False, Seconds(1.5))
    path.on_wireguard_stall(Seconds(2.0))
    assert path.state is State.DIRECT and path.last_path == SetPath(E1, RegionId(0), Mode.DIRECT)


def test_unknown_sends_by_relay_and_where_it_last_worked() -> None:
    path = direct()
    at = 1.1
    while path.state is not State.UNKNOWN and at < 60:
        answer(path, pass_time(path, at), at)
        at += 0.05
    assert path.last_path == SetPath(E1, HOME, Mode.DOUBTED)


@pytest.mark.parametrize("failures", [1, 5])
def test_a_system_that_keeps_refusing_counts_as_a_miss(failures: int) -> None:
    path = direct()
    for n in range(failures):
        path.on_full_buffers(E1, Seconds(2.0 + n * 0.01))
    assert path.state is (State.DIRECT if failures < 3 else State.DEGRADED)
    assert path.last_path.mode is (Mode.BOTH if failures < 3 else Mode.DOUBTED)
