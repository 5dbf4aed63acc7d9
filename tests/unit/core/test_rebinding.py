"""Sockets are renewed after errors in a row, ever more seldom, and not for errors a new socket cannot cure."""

from __future__ import annotations

import errno

from meshnode.core.rebinding import CALM_S, ERRORS, GAP_MAX_S, GAP_S, WITHIN_S, Rebinding


def test_errors_in_a_row_are_needed() -> None:
    rebinding = Rebinding()
    assert [rebinding.suspects(errno.EPERM, 0.1 * i) for i in range(ERRORS)] == [False] * (ERRORS - 1) + [True]


def test_errors_far_apart_are_none_in_a_row() -> None:
    rebinding = Rebinding()
    assert not any(rebinding.suspects(errno.EPERM, i * WITHIN_S) for i in range(20))


def test_what_a_new_socket_cannot_cure() -> None:
    rebinding = Rebinding()
    for number in (errno.EMSGSIZE, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENOBUFS):
        assert not any(rebinding.suspects(number, 0.1 * i) for i in range(50))


def test_a_storm_renews_ever_more_seldom_and_calm_forgets() -> None:
    rebinding, at, now = Rebinding(), [], 0.0
    while now < 2000.0:
        if rebinding.suspects(errno.ENETUNREACH, now):
            rebinding.note(now)
            at.append(now)
        now += 0.5
    gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
    assert gaps[0] >= GAP_S and all(b >= a for a, b in zip(gaps, gaps[1:], strict=False))
    assert gaps[-1] <= GAP_MAX_S + 1 and rebinding.count == len(at) < 15
    later = now + CALM_S + 1
    assert [rebinding.suspects(errno.EPERM, later + i / 10) for i in range(ERRORS)][-1]
    rebinding.note(later)
