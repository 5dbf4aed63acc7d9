"""Where a peer's packets go in each state, as far as it can be said before the packet is known.

What depends on the packet (its length, and whether it is a handshake) is the engine's: it is handed the direct
endpoint, the longest packet that endpoint takes, the relay's region, a mode, and endpoints for further copies.
Source: docs/protocol/paths.md 8.4.
"""

from __future__ import annotations

from typing import Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.core.path_body import PathBody
from meshnode.core.path_values import Mode, SetPath, State
from meshnode.core.score import FULL_SIZE

OTHERS_MAX: Final = 2
NO_REGION: Final = RegionId(0)


def plan(p: PathBody, now: float) -> SetPath:
    """Where packets go now. The relay is named whenever it is known: a queue there beats a drop here."""
    region = p.region if p.is_relay_allowed else NO_REGION
    has_relay = p.is_relay_up and p.is_relay_allowed
    endpoints = _endpoints(p, now, has_relay)
    if not endpoints:
        return SetPath(None, region, Mode.RELAY if region else Mode.NONE)
    first, others = endpoints[0], tuple(e for e in endpoints[1:] if not e.vni)[:OTHERS_MAX]
    limit = _limit(p, first)
    if has_relay:
        return SetPath(first, region, _mode(p), limit)
    if limit:
        region = NO_REGION  # nobody there to take what is too long: better in fragments than not at all
    return SetPath(first, region, Mode.DIRECT, limit, others)


def _mode(p: PathBody) -> Mode:
    if p.state is not State.DIRECT:
        return Mode.DOUBTED
    return Mode.BOTH if p.hedges else Mode.DIRECT


def _limit(p: PathBody, endpoint: Endpoint) -> int:
    candidate = p.candidates.get(endpoint)
    limit = candidate.limit if candidate is not None else None
    return limit if limit is not None and limit < FULL_SIZE else 0


def _endpoints(p: PathBody, now: float, has_relay: bool) -> list[Endpoint]:
    """The direct endpoint, and behind it those for copies, while no relay takes them."""
    first = _first(p, now)
    if has_relay or (p.state is State.DIRECT and not p.hedges):
        return [first] if first is not None else []
    found = [] if first is None else [first]
    others = [c.endpoint for c in p.spray(now) if c.endpoint != first]
    return found + (others[:1] if p.state is State.DIRECT else others)


def _first(p: PathBody, now: float) -> Endpoint | None:
    if p.act is not None:
        return p.act.endpoint
    if p.state is State.UNKNOWN and p.hint is not None and now < p.hint_until:
        return p.hint
    return None
