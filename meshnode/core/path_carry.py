"""Whether a direct path carries WireGuard: probes that are answered are no data.

After a path is taken, copies go by relay until something authentic comes back over it. That proves one direction; of
the other the peer's own copies tell: it goes on sending them for as long as it hears nothing of us directly. Later,
silence on a path that data is sent by brings the copies back; what comes meanwhile, and by which way, tells a path that
scrubs WireGuard from a quiet peer. Loss must not look like scrubbing: where probes are being lost too, more is waited
for.
Source: docs/protocol/paths.md 8.5, rows 13, 13a to 13d, and 18.
"""

from __future__ import annotations

from typing import Final

from meshnode.base.addr import Endpoint
from meshnode.core.path_body import HEDGE_S, PathBody
from meshnode.core.path_size import doubt_size
from meshnode.core.path_values import Event, Hedge, Kick, State, What

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
LOSSLESS: Final = 0.005
UNCLEAR_AFTER_INSTALL_S: Final = 5.0
"""The peer may go on by relay this long before it finds the direct path from its side."""
COPY_S: Final = 1.0
"""A packet by relay is a copy if one came directly as lately as this."""
UNHEARD_S: Final = 1.5
"""Copies after that long are no longer those that were under way. More than UNCOPIED_S and two ways by a slow relay:
of two that copy because the other does, each must see the other end it."""
UNHEARD_COPIES: Final = 5
"""On a path that the peer is known to have heard us by, where a probe of its own may just have been missed."""
UNHEARD_MOST_S: Final = 20.0
"""The peer has gone to its relay by then (12 s), or copies for a reason of its own."""
UNHEARD_LOSSY_S: Final = 2.0
"""On a path that it heard us by and that loses probes, which is such a reason. Then not again for ASK_EVERY_S."""
LOSSY: Final = 0.02
PLEAS: Final = 4
PLEA_GAP_S: Final = 1.5
"""Who sends data and hears nothing asks up to twice a second; heartbeats are two seconds apart, or three (stock)."""
MISSED_S: Final = 3.0
ASKING_S: Final = 3.0
"""The peer misses answers, or sees that we copy, and sends copies within two."""
ASK_EVERY_S: Final = 30.0
SURE_S: Final = 2.5
"""What a path that is merely too small is given: its other end finds that out within two (8.6), and then sends a
keepalive a second directly."""
UNCOPIED: Final = 3
UNCOPIED_S: Final = 0.7
"""That many directly, and none by relay for that long: the peer sends no copies."""


def on_carried(p: PathBody) -> None:
    """Something authentic came over the path in use."""
    p.heard_act_at = p.now
    p.drop_timers(Event.HEDGE, Event.STALL)
    if Hedge.STALL in p.hedges:
        p.stall_over_at = p.now
    p.hedges -= {Hedge.INSTALL, Hedge.STALL, Hedge.MISSED}


def on_direct(p: PathBody, what: What) -> None:
    """Something authentic came directly, by whatever path."""
    p.heard_direct_at = p.now
    if what is What.DATA:
        p.data_direct_at = p.now
    if what is not What.HANDSHAKE:
        p.uncopied += 1
        if p.uncopied >= UNCOPIED and p.now - p.heard_relay_at >= UNCOPIED_S:
            _believe_heard(p)


def on_relayed(p: PathBody, what: What) -> None:
    """Something authentic came by relay. Only data says where the peer sends its data: of a copy that went both ways,
    one keepalive may have been lost directly."""
    p.heard_relay_at = p.now
    if what is What.DATA:
        p.relayed_at = p.now
        _judge_answer(p)
    if what is not What.HANDSHAKE:
        p.uncopied = 0
        _look_for_copies(p)


def _look_for_copies(p: PathBody) -> None:
    """13b: the peer copies what comes directly as well. Not judged while we send copies: its own may answer them."""
    if p.state is not State.DIRECT or Hedge.UNHEARD in p.hedges:
        return
    if p.hedges - {Hedge.INSTALL}:
        p.copies, p.uncopied_at = 0, p.now
        return
    if p.now - p.heard_direct_at > COPY_S or p.now - p.sent_at > STALL_SENT_S or p.first_sent_at < p.installed_at:
        return
    if p.is_heard and _is_lossy(p) and p.now - p.unheard_at < ASK_EVERY_S:
        return
    p.copies += 1
    is_plain = p.copies >= UNHEARD_COPIES or not p.is_heard
    if is_plain and p.now - max(p.uncopied_at, p.first_sent_at) >= UNHEARD_S:
        p.hedges.add(Hedge.UNHEARD)
        p.unheard_at = p.now
        if not _is_lossy(p):
            doubt_size(p)


def _believe_heard(p: PathBody) -> None:
    """The peer hears us directly, as far as we can tell: no copies for its sake."""
    p.is_heard, p.copies, p.uncopied_at = True, 0, p.now
    p.hedges.discard(Hedge.UNHEARD)


def on_plea(p: PathBody, source: Endpoint) -> None:
    """13c: a ping by the path in use. The peer asks as one that sends, and nothing comes: leave it unanswered for a
    moment, so that it sends copies, if it has anything to send."""
    if p.state is not State.DIRECT or p.act is None or source != p.act.endpoint:
        return
    p.pleas = p.pleas + 1 if p.now - p.plea_at <= PLEA_GAP_S else 1
    p.plea_at = p.now
    is_listening = p.now - p.sent_at >= MISSED_S  # else ours lead to the peer's
    if p.pleas >= PLEAS and is_listening and _is_missing(p):
        p.asked_at = p.now


def on_sent(p: PathBody) -> None:
    """13d: data goes out and the peer, which was talking, is silent: copies for a moment, which make it send some if it
    is talking still (13b). Copies that answer copies end."""
    if Hedge.UNHEARD in p.hedges:
        most_s = UNHEARD_LOSSY_S if p.is_heard and _is_lossy(p) else UNHEARD_MOST_S
        if p.now - p.unheard_at >= most_s:
            _believe_heard(p)
    elif Hedge.MISSED in p.hedges:
        if not _is_asking(p, p.now):
            p.hedges.discard(Hedge.MISSED)
    elif not p.hedges and p.heard_direct_at - max(p.data_direct_at, p.relayed_at) < TALKING_S and _is_missing(p):
        p.asked_at = p.now
        p.hedges.add(Hedge.MISSED)


def _is_missing(p: PathBody) -> bool:
    """Nothing comes by any way, and the peer was not asked lately."""
    silent_s = p.now - max(p.heard_direct_at, p.heard_relay_at)
    return silent_s >= MISSED_S and p.is_relay_up and p.now - p.asked_at >= ASK_EVERY_S


def is_mute(p: PathBody, source: Endpoint, now: float) -> bool:
    """Whether pings from there stay unanswered for a moment."""
    return _is_asking(p, now) and Hedge.MISSED not in p.hedges and p.act is not None and source == p.act.endpoint


def _is_asking(p: PathBody, now: float) -> bool:
    """About the path in use, and no answer came by it."""
    if p.state is not State.DIRECT or p.asked_at <= max(p.installed_at, p.heard_direct_at):
        return False
    return now - (p.got_at if p.got_at > p.asked_at else p.asked_at) < ASKING_S


def _judge_answer(p: PathBody) -> None:
    """Data came by relay as soon as we asked for it, and none directly."""
    failed = p.act
    if failed is None or not _is_asking(p, p.now):
        return
    if p.got_at <= p.asked_at:
        p.got_at = p.now
    elif p.now - p.got_at >= SURE_S:
        p.doubt_carrying("its probes arrive and its data by relay only")
        failed.hushed_at = p.now


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
    if p.heard_direct_at > p.installed_at:
        p.hedges.discard(Hedge.INSTALL)
    elif p.relayed_at > clear_at:
        p.doubt_carrying("it answers probes but sends its data by relay only", is_choice=True)
    elif p.sent_at < p.installed_at:
        p.hedges.discard(Hedge.INSTALL)
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


def _is_lossy(p: PathBody) -> bool:
    return p.act is not None and p.act.loss >= LOSSY


def _is_lossless(p: PathBody) -> bool:
    return p.act is not None and p.act.loss < LOSSLESS
