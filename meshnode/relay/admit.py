"""Who may use our relay: a question asked once per login.

An Admit is any coroutine function of (node key, source address). Here are the two that need nothing else;
a verify URL and the members of our own tailnet belong here too.
Source: docs/protocol/paths.md 1.9.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from meshnode.base.keys import NodePublic

Admit = Callable[[NodePublic, str], Awaitable[bool]]
"""(who, from which address) → may it? An exception counts as no."""

ADMIT_S: Final = 5.0
"""An answer later than this is a no."""


async def allow_everybody(key: NodePublic, source: str) -> bool:
    """An open relay: for tests and for networks that keep strangers out by other means."""
    return True


def allow_keys(keys: Iterable[NodePublic]) -> Admit:
    """Only these node keys."""
    known = frozenset(keys)

    async def admit(key: NodePublic, source: str) -> bool:
        return key in known

    return admit
