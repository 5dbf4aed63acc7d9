"""What became of the data: which of it was lost, and for how long at a stretch."""

from __future__ import annotations

from tests.sim.node import SimNode

UNDER_WAY_S = 1.0
"""Younger packets may still arrive."""


def lost_runs(a: SimNode, b: SimNode, since: float = 0.0) -> list[tuple[float, float]]:
    """Of what `a` sent to `b`: from when to when everything was lost, for each such stretch."""
    sent = a.sent.get(b.key, {})
    got = b.got[a.key].at if a.key in b.got else {}
    runs: list[tuple[float, float]] = []
    first: float | None = None
    last = since
    for number, at in sent.items():
        if at < since or at > a.world.now - UNDER_WAY_S:
            continue
        if number in got:
            if first is not None:
                runs.append((first, at))
            first = None
        elif first is None:
            first = at
        last = at
    return [*runs, (first, last)] if first is not None else runs


def lost_for(a: SimNode, b: SimNode, since: float) -> float:
    """The longest stretch, in seconds: from the first packet lost to the next that was not."""
    return max((until - first for first, until in lost_runs(a, b, since)), default=0.0)
