"""Members of our relay, asked about again and again while they stay; those refused are cut off.

The plan is core/recheck.py; here are its questions, some at once, so that a verifier that takes its time holds up
neither the rest nor the logins beside them.
Source: docs/protocol/paths.md 1.9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from meshnode.base.keys import NodePublic
from meshnode.core.recheck import Rechecks
from meshnode.relay.admit import Gate
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope

AT_ONCE: Final = 32


async def keep_asking(
    gate: Gate,
    plan: Rechecks,
    *,
    members: Callable[[], Mapping[NodePublic, str]],
    cut_off: Callable[[NodePublic, str], None],
    clock: Clock,
    scope: Scope,
) -> None:
    """Until cancelled. members: who is connected, from which address; cut_off: called with each who may not stay."""
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(key: NodePublic, source: str) -> None:
        try:
            answer = await gate.recheck(key, source)
        finally:
            room.release()
        plan.note(clock.now(), key.raw, is_answered=answer is not None)
        if answer is False:
            cut_off(key, source)

    while True:
        here = members()
        due = plan.due(clock.now(), {key.raw: gate.allowed_at(key) for key in here})
        for key in map(NodePublic, due):
            await asyncio.sleep(plan.turn_s / len(due))
            await room.acquire()
            scope.spawn(ask(key, here[key]), f"recheck {here[key]}")
        if not due:
            await asyncio.sleep(plan.turn_s)
