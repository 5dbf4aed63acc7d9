"""Rows that a peer's own clock raises: missed pings, heartbeats and rounds.

Source: docs/protocol/paths.md 8.5, rows 6 to 12.
"""

from __future__ import annotations

from typing import Final

from meshnode.core.path_body import (
    CALM_HEARTBEAT_S,
    DOUBT_GAPS_S,
    ROUND_GAPS_S,
    SESSION_S,
    TICK_S,
    PathBody,
    Probe,
)
from meshnode.core.path_carry import look_for_stall
from meshnode.core.path_size import SIZING, doubt_size, on_size_miss, retest, watch_wire
from meshnode.core.path_values import Event, Hedge, Kick, Purpose, SeekRelay, State

EVIDENCE_S: Final = 6.0
GREET_S: Final = 5.0
SEEK_ROUND: Final = 3
"""The round of Probing in which a peer relay is asked too: had the peer a direct path, it would have answered."""
CALL_BACK_ROUND: Final = 2
"""Who was called calls back once, and early, while the caller still probes: later it would wake the caller again."""
FAR_S: Final = 0.05
FAR_CALL_S: Final = 60.0
REPROBED_AT_ONCE: Final = 8
LOSS_SAMPLES: Final = 20
HEDGE_LOSS: Final = 0.15
CALM_LOSS: Final = 0.08
LEAVE_LOSS: Final = 0.30
CLEAN_LOSS: Final = 0.10


# 6 MISS, 7 TIMEOUT


def on_miss_direct(p: PathBody, probe: Probe) -> None:
    if probe.purpose in SIZING:
        on_size_miss(p, probe)
        return
    if probe.candidate is not p.act:
        return
    count_miss(p, f"{probe.candidate.endpoint} left {p.miss + 1} probes in a row unanswered")
    if probe.wire and p.state is State.DIRECT:
        doubt_size(p)


def count_miss(p: PathBody, why: str) -> None:
    """One more sign that the path in use has died: copies by relay, and from the third on doubt."""
    assert p.act is not None
    p.miss += 1
    p.hedges.add(Hedge.MISS)
    is_stale = p.now - p.evidence_at >= EVIDENCE_S and not p.is_calm(p.now)
    if p.miss >= p.tuning.degraded_after_failures or is_stale:
        p.degrade(why)
        return
    if p.miss == 2:
        p.call()
    p.ping(p.act, Purpose.REPEAT)


def on_timeout_direct(p: PathBody, probe: Probe) -> None:
    act = p.act
    assert act is not None
    if probe.candidate is not act or act.finished < LOSS_SAMPLES:
        return
    if act.loss > HEDGE_LOSS:
        p.hedges.add(Hedge.LOSS)
    elif act.loss < CALM_LOSS:
        p.hedges.discard(Hedge.LOSS)
    if act.loss > LEAVE_LOSS:
        clean = [c for c in p.candidates.values() if c is not act and p.now - c.pong_at < 30 and c.loss < CLEAN_LOSS]
        usable = [c for c in clean if not c.is_bad(p.now)]
        if usable:
            best = min(usable, key=lambda c: (c.loss, c.srtt or 0.0, str(c.endpoint)))
            p.install(best, best.pong_at, f"{act.endpoint} loses too much; {best.endpoint} does not")


# 8 HEARTBEAT, 9 REPROBE, 10 ROUND, 11 DEGRADED, 12 TICK


def on_heartbeat(p: PathBody) -> None:
    if not p.is_live:
        return
    act = p.act
    assert act is not None
    gap_s = CALM_HEARTBEAT_S if p.is_calm(p.now) else p.tuning.heartbeat_s / 2
    if p.now - act.ping_at >= gap_s:
        p.ping(act, Purpose.HEARTBEAT, watch_wire(p))
    retest(p)
    if act.finished and act.loss < CALM_LOSS:
        p.hedges.discard(Hedge.LOSS)
    look_for_stall(p)
    p.timers[Event.HEARTBEAT] = p.now + p.jitter(p.tuning.heartbeat_s, 0.1)


def on_reprobe_direct(p: PathBody) -> None:
    if not p.is_live:
        return
    assert p.act is not None
    p.timers[Event.REPROBE] = p.now + p.jitter(p.tuning.reprobe_s, 0.2)
    if p.is_calm(p.now):
        return
    is_far = p.act.tier == 1 or (p.act.srtt or 0.0) > FAR_S
    if call := is_far and p.now - p.last_full_call_at >= FAR_CALL_S:
        p.last_full_call_at = p.now
    p.probe_all(call=call, limit=REPROBED_AT_ONCE)


def on_reprobe_relay_only(p: PathBody) -> None:
    if p.is_live:
        p.start_probing("by relay for a while; looking for a direct path again")
    else:
        p.go_idle("no traffic")


def _greet_again(p: PathBody) -> None:
    """Data waits and nothing but handshakes was heard: after a restart of ours the peer answers for some seconds where
    we were, and a stock one ends its sessions with us when control tells it of our new key, the newest included.
    WireGuard by itself asks again after five seconds, and after fifteen."""
    if p.now - p.sent_at < GREET_S and p.now - p.answered_at > SESSION_S:
        p.out.append(Kick())


def on_round_probing(p: PathBody) -> None:
    p.round += 1
    _greet_again(p)
    if p.round == SEEK_ROUND:
        p.out.append(SeekRelay(is_urgent=False))
    if p.round < len(ROUND_GAPS_S):
        p.probe_all(call=not p.was_called or p.round == CALL_BACK_ROUND)
        p.timers[Event.ROUND] = p.now + ROUND_GAPS_S[p.round]
        return
    p.become(State.RELAY_ONLY, _why_relayed(p))
    p.arm_retry()


def _why_relayed(p: PathBody) -> str:
    asked = sum(1 for c in p.candidates.values() if c.ping_at > 0)
    if not p.candidates:
        return "it has told us no address to try"
    return f"none of its {len(p.candidates)} addresses answered ({asked} asked)"


def on_round_direct(p: PathBody) -> None:
    _greet_again(p)
    if p.now < p.settle_until:
        p.probe_all(call=False)
        p.round = min(p.round + 1, len(ROUND_GAPS_S) - 1)
        p.timers[Event.ROUND] = p.now + ROUND_GAPS_S[p.round]


def on_round_degraded(p: PathBody) -> None:
    p.probe_all()
    p.round = min(p.round + 1, len(DOUBT_GAPS_S) - 1)
    p.timers[Event.ROUND] = p.now + DOUBT_GAPS_S[p.round]


def on_degraded_over(p: PathBody) -> None:
    if p.is_relay_up and p.is_relay_allowed:
        p.to_relay(f"nothing answered directly for {p.tuning.degraded_timeout_s:g} s")
    else:
        p.timers[Event.DEGRADED] = p.now + p.tuning.degraded_timeout_s


def on_tick(p: PathBody) -> None:
    candidate = p.candidates.get(p.hint) if p.hint is not None and p.now < p.hint_until else None
    if candidate is not None:
        p.ping(candidate, Purpose.TICK)
    if p.now < p.tick_until:
        p.timers[Event.TICK] = p.now + p.jitter(TICK_S, 0.2)
