"""Events × states: what each event does in each state.

One function per cell group, named after the row; others are in `path_timers` and `path_carry`. TABLE says which state
runs which; a state that is not listed for an event does nothing. New knowledge is a new row, not surgery elsewhere.
Source: docs/protocol/paths.md 8.5, whose row numbers are the values of Event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from meshnode.base.addr import Endpoint
from meshnode.core.path_body import PROBED_AT_ONCE, SILENCE_MIN_S, PathBody, Probe
from meshnode.core.path_carry import on_carried, on_hedge_over, on_sent, on_stall_over, on_wg_stall
from meshnode.core.path_size import SILENT_WATCH_S, SIZING, doubt_size, on_size_pong, on_size_timer, watch_wire
from meshnode.core.path_timers import (
    count_miss,
    on_degraded_over,
    on_heartbeat,
    on_miss_direct,
    on_reprobe_direct,
    on_reprobe_relay_only,
    on_round_degraded,
    on_round_direct,
    on_round_probing,
    on_tick,
    on_timeout_direct,
)
from meshnode.core.path_values import Event, Hedge, Kick, Purpose, State, What
from meshnode.core.score import Candidate, is_better

CALLED_LIVE_S: Final = 10.0
CALM_TRIGGER_S: Final = 5.0
SILENCE_GAP_S: Final = 0.5
UNREACHABLE_S: Final = 10.0

Row = Callable[..., None]


# 1 SEND


def _send_unknown(p: PathBody, wanted: bool) -> None:
    p.live()
    p.sent_at = p.now
    p.start_probing("there are packets for it; looking for a direct path")


def _send_live(p: PathBody, wanted: bool) -> None:
    p.live()
    p.sent_at = p.now


def _send_direct(p: PathBody, wanted: bool) -> None:
    p.live()
    p.sent_at = p.now
    if p.first_sent_at < p.installed_at:
        p.first_sent_at = p.now
    on_sent(p)
    act = p.act
    assert act is not None
    p.timers.setdefault(Event.HEARTBEAT, p.now + p.jitter(p.tuning.heartbeat_s, 0.1))
    p.timers.setdefault(Event.REPROBE, p.now + p.jitter(p.tuning.reprobe_s, 0.2))
    quiet_s = p.now - max(p.heard_act_at, p.evidence_at)
    is_silent = quiet_s > max(SILENCE_MIN_S, 4 * (act.srtt or 0.0))
    if is_silent and p.now - p.silence_at >= SILENCE_GAP_S and not p.is_awaited(act):
        p.silence_at = p.now
        p.ping(act, Purpose.SILENCE, watch_wire(p, SILENT_WATCH_S))


def _send_relay_only(p: PathBody, wanted: bool) -> None:
    p.live()
    p.sent_at = p.now
    if wanted and not p.is_relay_up:
        p.start_probing("there are packets for it and no way to send them")
    elif Event.REPROBE not in p.timers:
        p.arm_retry()


# 2 PONG


def _pong_unknown(p: PathBody, probe: Probe) -> None:
    p.set_hint(probe.candidate)


def _pong_install(p: PathBody, probe: Probe) -> None:
    if not probe.candidate.is_bad(p.now):
        p.install(probe.candidate, probe.sent_at, f"{probe.candidate.endpoint} answered")


def _pong_direct(p: PathBody, probe: Probe) -> None:
    candidate, act = probe.candidate, p.act
    assert act is not None
    if candidate is not act:
        settling = p.now < p.settle_until
        if is_better(candidate, act, p.now, b_is_doubted=p.miss > 0, is_settling=settling):
            p.install(candidate, probe.sent_at, f"{candidate.endpoint} is better than {act.endpoint}")
        return
    p.evidence_at = max(p.evidence_at, probe.sent_at)
    p.set_hint(act)
    if probe.wire or probe.purpose in SIZING:
        on_size_pong(p, probe)
    later = [q for q in p.probes.values() if q.candidate is act and q.is_missed and q.sent_at > probe.sent_at]
    p.miss = sum(1 for q in later if q.purpose not in SIZING)
    if p.miss == 0:
        p.hedges.discard(Hedge.MISS)


# 3 PING_RX


def _ping_calm(p: PathBody, source: Endpoint) -> None:
    p.triggered(source, CALM_TRIGGER_S)


def _ping_keen(p: PathBody, source: Endpoint) -> None:
    p.triggered(source)


def _ping_direct(p: PathBody, source: Endpoint) -> None:
    known = p.candidates.get(source)
    if known is None or p.miss > 0:
        p.triggered(source)
    elif p.now - known.pong_at >= CALM_TRIGGER_S:
        p.triggered(source, CALM_TRIGGER_S)


# 4 CALL_RX: never answered by a call, so no storm can arise


def _call_wake(p: PathBody, new: list[Candidate]) -> None:
    p.live(CALLED_LIVE_S)
    p.start_probing("it called us to meet directly", call=False)


def _call_probe(p: PathBody, new: list[Candidate]) -> None:
    p.probe_all(call=False)


def _call_direct(p: PathBody, new: list[Candidate]) -> None:
    assert p.act is not None
    p.ping(p.act, Purpose.REPEAT)
    if p.act.tier == 1 or p.miss > 0:
        p.probe_all(call=False)
        return
    for candidate in new[:PROBED_AT_ONCE]:
        p.ping(candidate, Purpose.DISCOVER)


# 5 RECV


def _recv_unknown(p: PathBody, source: Endpoint | None, what: What) -> None:
    if what is What.KEEPALIVE:
        return
    p.live()
    p.start_probing("it sends to us; looking for a direct path")
    if source is not None:
        p.triggered(source)


def _recv_probe(p: PathBody, source: Endpoint | None, what: What) -> None:
    if what is What.DATA:
        p.live()
    if source is not None:
        p.triggered(source)


def _recv_direct(p: PathBody, source: Endpoint | None, what: What) -> None:
    if what is What.DATA:
        p.live()
    assert p.act is not None
    if source is None:
        return
    if source == p.act.endpoint:
        on_carried(p)
    else:
        _ping_direct(p, source)


def _recv_degraded(p: PathBody, source: Endpoint | None, what: What) -> None:
    if what is What.DATA:
        p.live()
    if source is not None:
        if p.act is not None and source == p.act.endpoint:
            p.heard_act_at = p.now
        else:
            p.triggered(source)
            if (candidate := p.candidates.get(source)) is not None:
                candidate.heard_at = p.now


# 14 SEND_ERROR


def _error_unknown(p: PathBody, candidate: Candidate, is_unreachable: bool) -> None:
    if p.hint == candidate.endpoint:
        p.hint = None


def _error_aside(p: PathBody, candidate: Candidate, is_unreachable: bool) -> None:
    if is_unreachable and candidate is not p.act:
        p.quarantine(candidate, UNREACHABLE_S)


def _error_direct(p: PathBody, candidate: Candidate, is_unreachable: bool) -> None:
    if candidate is not p.act:
        _error_aside(p, candidate, is_unreachable)
    elif is_unreachable:
        p.degrade(f"this machine has no way to {candidate.endpoint} any more")
    elif not p.is_awaited(candidate):
        p.ping(candidate, Purpose.REPEAT)


def _refused_direct(p: PathBody, candidate: Candidate) -> None:
    if candidate is p.act:
        count_miss(p, f"this machine cannot send to {candidate.endpoint} fast enough, or a filter forbids it")


# 19 TOO_BIG


def _too_big_direct(p: PathBody, candidate: Candidate) -> None:
    if candidate is p.act:
        doubt_size(p)


# 15 LINK


def _link_unknown(p: PathBody, hit: list[Candidate]) -> None:
    if any(c.endpoint == p.hint for c in hit):
        p.hint = None


def _link_search(p: PathBody, hit: list[Candidate]) -> None:
    if p.state is State.PROBING or p.is_live:
        p.start_probing("this machine's network changed")


def _link_direct(p: PathBody, hit: list[Candidate]) -> None:
    if p.act in hit:
        p.degrade("this machine's network changed")
    else:
        p.probe_all(call=False)


def _link_degraded(p: PathBody, hit: list[Candidate]) -> None:
    p.timers[Event.DEGRADED] = p.now + p.tuning.degraded_timeout_s
    p.probe_all()


# 16 ENDPOINTS, LEG, 16a DISCO_KEY


def _endpoints_ping(p: PathBody, new: list[Candidate]) -> None:
    for candidate in new[:PROBED_AT_ONCE]:
        p.ping(candidate, Purpose.DISCOVER)


def _leg_ping(p: PathBody, leg: Candidate) -> None:
    p.ping(leg, Purpose.DISCOVER)


def _endpoints_relay_only(p: PathBody, new: list[Candidate]) -> None:
    if new and p.is_live:
        p.start_probing("it has told us new addresses")


def _key_unknown(p: PathBody) -> None:
    p.hint = None


def _key_search(p: PathBody) -> None:
    if p.state is State.PROBING or p.is_live:
        p.start_probing("it restarted")
    _greet_anew(p)


def _key_direct(p: PathBody) -> None:
    p.degrade("it restarted")
    _greet_anew(p)


def _key_degraded(p: PathBody) -> None:
    p.probe_all()
    _greet_anew(p)


def _greet_anew(p: PathBody) -> None:
    """A process that restarted has lost its session; without this WireGuard notices after 15 s only."""
    if p.is_live:
        p.out.append(Kick())


# 17 IDLE


def _idle(p: PathBody) -> None:
    if p.is_live:
        p.timers[Event.IDLE] = p.live_until
    else:
        p.go_idle("no traffic for a while")


# 20 RELAY_UP, 21 RELAY_DOWN, 22 OWN_ENDPOINTS


def _up_probing(p: PathBody) -> None:
    p.call(at_once=True)


def _up_degraded(p: PathBody) -> None:
    p.call()
    p.timers[Event.DEGRADED] = p.now + p.tuning.degraded_timeout_s


def _up_relay_only(p: PathBody) -> None:
    if p.call_missed and p.is_live:
        p.start_probing("its relay is back")


def _down_relay_only(p: PathBody) -> None:
    if p.is_live:
        p.start_probing("its relay is gone")


def _own_direct(p: PathBody) -> None:
    if p.is_live:
        p.call()
        assert p.act is not None
        p.ping(p.act, Purpose.REPEAT)


def _own_relay_only(p: PathBody) -> None:
    if p.is_live:
        p.start_probing("our own addresses changed")


U, P, D, G, R = State.UNKNOWN, State.PROBING, State.DIRECT, State.DEGRADED, State.RELAY_ONLY

TABLE: Final[dict[Event, dict[State, Row]]] = {
    Event.SEND: {U: _send_unknown, P: _send_live, D: _send_direct, G: _send_live, R: _send_relay_only},
    Event.PONG: {U: _pong_unknown, P: _pong_install, D: _pong_direct, G: _pong_install, R: _pong_install},
    Event.PING_RX: {U: _ping_calm, P: _ping_keen, D: _ping_direct, G: _ping_keen, R: _ping_keen},
    Event.CALL_RX: {U: _call_wake, P: _call_probe, D: _call_direct, G: _call_probe, R: _call_wake},
    Event.RECV: {U: _recv_unknown, P: _recv_probe, D: _recv_direct, G: _recv_degraded, R: _recv_probe},
    Event.MISS: {D: on_miss_direct},
    Event.TIMEOUT: {D: on_timeout_direct},
    Event.HEARTBEAT: {D: on_heartbeat},
    Event.REPROBE: {D: on_reprobe_direct, R: on_reprobe_relay_only},
    Event.ROUND: {P: on_round_probing, D: on_round_direct, G: on_round_degraded},
    Event.DEGRADED: {G: on_degraded_over},
    Event.TICK: {P: on_tick, R: on_tick},
    Event.HEDGE: {D: on_hedge_over},
    Event.STALL: {D: on_stall_over},
    Event.SEND_ERROR: {U: _error_unknown, P: _error_aside, D: _error_direct, G: _error_aside, R: _error_aside},
    Event.REFUSED: {D: _refused_direct},
    Event.TOO_BIG: {D: _too_big_direct},
    Event.SIZE: {D: on_size_timer},
    Event.LINK: {U: _link_unknown, P: _link_search, D: _link_direct, G: _link_degraded, R: _link_search},
    Event.ENDPOINTS: {P: _endpoints_ping, D: _endpoints_ping, G: _endpoints_ping, R: _endpoints_relay_only},
    Event.LEG: dict.fromkeys((P, D, G, R), _leg_ping),
    Event.DISCO_KEY: {U: _key_unknown, P: _key_search, D: _key_direct, G: _key_degraded, R: _key_search},
    Event.IDLE: dict.fromkeys((P, D, G, R), _idle),
    Event.WG_STALL: {D: on_wg_stall, G: on_wg_stall},
    Event.RELAY_UP: {P: _up_probing, G: _up_degraded, R: _up_relay_only},
    Event.RELAY_DOWN: {R: _down_relay_only},
    Event.OWN_ENDPOINTS: {P: _up_probing, D: _own_direct, G: _up_probing, R: _own_relay_only},
}


def run_row(path: PathBody, event: Event, *about: Any) -> None:
    """What `event` does in the state the path is in; nothing if the table has no such cell."""
    row = TABLE[event].get(path.state)
    if row is not None:
        row(path, *about)
