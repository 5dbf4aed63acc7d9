"""Tokens and rates."""

from __future__ import annotations

import pytest

from meshnode.base.errors import ConfigError
from meshnode.serve.access import CALLERS_MAX, Rate, Tokens


def test_any_live_token_opens() -> None:
    tokens = Tokens("first-token, second-token")
    assert tokens.check("Bearer first-token") == 0
    assert tokens.check("bearer second-token") == 1
    assert "first" not in repr(tokens)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "first-token", "Basic first-token", "Bearer first-tokeN", "Bearer first-token, x",
     "Bearer first-token,second-token", "Bearer " + "x" * 9000, "Bearer \udcff"],
)  # fmt: skip
def test_nothing_else_opens(header: str | None) -> None:
    assert Tokens("first-token,second-token").check(header) is None


@pytest.mark.parametrize("text", ["", " ", ",", "tiny", "long-enough,tiny", "has space", "ümlaut-ümlaut"])
def test_tokens_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="token: ") as caught:
        Tokens(text)
    assert not text.strip(" ,") or text not in str(caught.value)


def test_thirty_in_any_minute() -> None:
    rate = Rate(3, 60.0)
    for now in (0.0, 10.0, 20.0):
        assert rate.wait_s("a", now) == 0.0
        rate.add("a", now)
    assert rate.wait_s("a", 30.0) == 30.0
    assert rate.wait_s("b", 30.0) == 0.0
    assert rate.wait_s("a", 60.0) == 0.0
    rate.add("a", 60.0)
    assert rate.wait_s("a", 61.0) == 9.0


def test_the_table_of_callers_is_bounded() -> None:
    rate = Rate(1, 60.0)
    for number in range(CALLERS_MAX + 10):
        rate.add(number, 0.0)
    assert rate.wait_s(0, 1.0) == 0.0, "the caller longest silent was forgotten"
    assert rate.wait_s(CALLERS_MAX, 1.0) > 0
    assert len(rate._callers) == CALLERS_MAX
