"""Whether a direct path carries WireGuard: probes that are answered are no data.

After a path is taken, copies go by relay until something authentic comes back over it. Later, silence on a path that
data is sent by brings the copies back; what comes meanwhile, and by which way, tells a path that scrubs WireGuard from
a quiet peer. Loss must not look like scrubbing: where probes are being lost too, more is waited for.
Source: docs/protocol/paths.md 8.5, rows 13, 13a and 18.
"""

from __future__ import annotations

from typing import Final

from meshnode.core.path_body import HEDGE_S, PathBody
from meshnode.core.path_values import Event, Hedge, Kick, What

STALL_SILENCE_S: Final = 12.0
BYPASS_S: Final = 5.0
"""The peer's traffic comes by relay only for this long: it no longer uses, or sees, the direct path."""
STALL_SENT_S: Final = 5.0
STALL_WAIT_S: Final = 5.0
PATIENCE_S: Final = 21.0
"""A WireGuard receiver of data answers within ten seconds, by keepalive if need be; one or two may be lost."""
ANSWER_S: Final = 10.5
"""As long as that, where nothing is lost. A peer whose own answers are scrubbed is silent by either way: it trusts the
path for as long as we answer its probes there."""
TALKING_S: Final = 1.0
TRIAL_S: Final = 25.0
"""A stall so soon after one that passed: the answers were to the copies."""
LOSSLESS: Final = 0.02
UNCLEAR_AFTER_INSTALL_S: Final = 5.0
"""The peer may go on by relay this long before it finds the direct path from its side."""


def on_carried(p: PathBody) -> None:
    """Something authentic came over the path in use."""
    p.heard_act_at = p.now
    p.drop_timers(Event.HEDGE, Event.STALL)
    if Hedge.STALL in p.hedges:
        p.stall_over_at = p.now
    p.hedges -= {Hedge.INSTALL, Hedge.STALL}


def on_direct(p: PathBody, what: What) -> None:
    """Something authentic came directly, by whatever path."""
    p.heard_direct_at = p.now
    if what is What.DATA:
        p.data_direct_at = p.now


def on_relayed(p: PathBody, what: What) -> None:
    """Something authentic came by relay. Only data says where the peer sends its data: of a copy that went both ways,
    one keepalive may have been lost directly."""
    p.heard_relay_at = p.now
    if what is What.DATA:
        p.relayed_at = p.now


def look_for_stall(p: PathBody) -> None:
    """At each heartbeat: whether data goes out and nothing comes back on a direct path."""
    heard_at = max(p.heard_direct_at, p.installed_at)
    is_bypassed = p.relayed_at - heard_at >= BYPASS_S
    is_silent = p.now - heard_at >= STALL_SILENCE_S or is_bypassed
    if p.now - p.sent_at >= STALL_SENT_S or not is_silent or p.hedges & {Hedge.STALL, Hedge.INSTALL}:
        return
    p.stalls = p.stalls + 1 if p.now - p.stall_over_at < TRIAL_S else 1
    if p.stalls > _stalls_allowed(p):
        p.doubt_carrying("answers come only while copies go by relay")
        return
    p.hedges.add(Hedge.STALL)
    p.stall_at = p.now
    p.timers[Event.STALL] = p.now + STALL_WAIT_S
    if not is_bypassed:
        p.out.append(Kick())


def on_stall_over(p: PathBody) -> None:
    """13a: the copies have gone for a while and the path is as silent as before."""
    if Hedge.STALL not in p.hedges:
        return
    if p.now - p.relayed_at < STALL_WAIT_S:
        p.doubt_carrying("data comes back by relay only", is_choice=True)
    elif p.heard_relay_at >= p.stall_at and (_was_talking(p) or p.now - p.stall_at >= PATIENCE_S):
        p.doubt_carrying("WireGuard answers by relay only")
    elif p.sent_at < p.stall_at:
        p.hedges.discard(Hedge.STALL)
    elif p.now - p.stall_at < (ANSWER_S if _is_lossless(p) else PATIENCE_S):
        p.timers[Event.STALL] = p.now + STALL_WAIT_S
    else:
        p.doubt_carrying("WireGuard answers neither directly nor by relay")


def on_hedge_over(p: PathBody) -> None:
    """13: some time after a path was taken, nothing authentic has come over it."""
    if Hedge.INSTALL not in p.hedges:
        return
    clear_at = p.installed_at + UNCLEAR_AFTER_INSTALL_S
    if p.sent_at < p.installed_at or p.heard_direct_at > p.installed_at:
        p.hedges.discard(Hedge.INSTALL)
    elif p.relayed_at > clear_at:
        p.doubt_carrying("it answers probes but sends its data by relay only", is_choice=True)
    elif p.now - p.installed_at > HEDGE_S + PATIENCE_S:
        p.doubt_carrying("it answers probes but no data")
    else:
        p.timers[Event.HEDGE] = p.now + UNCLEAR_AFTER_INSTALL_S


def on_wg_stall(p: PathBody) -> None:
    """18: handshakes fail on the direct path while the relay carries them."""
    if p.act is not None:
        p.doubt_carrying("probes are answered but WireGuard is not")


def _was_talking(p: PathBody) -> bool:
    """Whether data, and not a keepalive now and then, was coming directly when it fell silent."""
    return p.heard_direct_at - p.data_direct_at < TALKING_S


def _stalls_allowed(p: PathBody) -> int:
    return 2 if _is_lossless(p) else 4


def _is_lossless(p: PathBody) -> bool:
    return p.act is not None and p.act.loss < LOSSLESS
