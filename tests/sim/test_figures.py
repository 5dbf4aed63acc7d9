"""The figures of docs/protocol/paths.md 8.1: to the digit as they were kept, and near those of the table."""

from __future__ import annotations

import pytest

from tests.sim.figures import Figures, kept, measure

TABLE = {
    "cold start: direct after, ms": 30.0,
    "cut both ways: without delivery, s": 0.48,
    "cut both ways: degraded after, s": 0.86,
    "cut one way: without delivery, s": 0.88,
    "link change: new path after, s": 0.29,
    "outage of 20 s: direct again after, s": 0.6,
    "hole of 1300: found after, s": 0.63,
    "loss 20 %: degraded per 10 min": 14.0,
    "pings a second, direct": 0.55,
    "pings a second, no direct path": 0.18,
}
"""Of 8.1; what is kept may lie 20 % beside them."""
AT_MOST = {
    "cold start: stretches lost": 0.0,
    "cut one way: without delivery at worst, s": 2.2,
    "link change: without delivery, s": 0.0,
    "outage of 20 s: at worst, s": 6.0,
    "hole of 1300: without delivery, s": 0.0,
    "loss 1 %: degraded per 10 min": 0.0,
    "loss 5 %: degraded per 10 min": 2.0,
    "loss 40 %: degraded per 10 min": 130.0,
    "loss 1 %: relay only": 0.0,
    "loss 5 %: relay only": 0.0,
    "loss 20 %: relay only": 0.0,
    "loss 40 %: relay only": 0.0,
}
TOLERANCE = 0.2


@pytest.fixture(scope="module")
def figures() -> Figures:
    return measure()


def test_figures_are_those_that_were_kept(figures: Figures) -> None:
    moved = {n: (kept().get(n), v) for n, v in figures.items() if kept().get(n) != v}
    assert not moved, f"was and is: {moved}; if that is meant: python -m tests.sim.figures --write"
    assert figures.keys() == kept().keys()


def test_figures_are_near_the_table(figures: Figures) -> None:
    far = {n: (want, figures[n]) for n, want in TABLE.items() if abs(figures[n] - want) > TOLERANCE * want}
    over = {n: (most, figures[n]) for n, most in AT_MOST.items() if figures[n] > most}
    assert not far and not over, f"table and is: {far}; at most and is: {over}"
