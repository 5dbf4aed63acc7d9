"""Lengths of time: what is understood, and what is not."""

from __future__ import annotations

import pytest

from meshnode.config.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("2s", 2.0),
        ("1m30s", 90.0),
        ("1h0.5s", 3600.5),
        ("1h2m3s4ms", 3723.004),
        ("0", 0.0),
        ("25", 25.0),
        (2, 2.0),
        (0.25, 0.25),
        ("1e3", 1000.0),
    ],
)
def test_what_is_understood(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "soon", "2 s", "2sec", "30s1m", "1m1m", "-1", "-1s", "1.s", ".5s", "nan", "inf", "1e9", "2S"]
)
def test_what_is_not(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)
