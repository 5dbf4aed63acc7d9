"""One peer's path as data, and the macros that the rows of the table are written in.

Owns candidates, outstanding pings and timers. Macros append to `out`; nobody else performs anything.
Source: docs/protocol/paths.md 8.2, 8.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.bounds import CANDIDATES_MAX
from meshnode.base.units import Seconds
from meshnode.core.bucket import Bucket
from meshnode.core.path_size import SIZING, SizeTest
from meshnode.core.path_values import (
    Call,
    Effect,
    Event,
    Hedge,
    Kick,
    Mode,
    Notify,
    Purpose,
    SeekRelay,
    SendPing,
    SetPath,
    State,
    Tuning,
)
from meshnode.core.score import NEVER, Candidate, Kind, probe_order

PING_GAP_S: Final = 0.2
CALL_GAP_S: Final = 1.5
TRIGGER_GAP_S: Final = 0.5
HINT_S: Final = 300.0
HEDGE_S: Final = 12.0
SETTLE_S: Final = 2.0
OUTAGE_S: Final = 4.0
"""Without a pong on the path in use: it was away, which is another thing than losing some."""
IDLE_S: Final = 45.0
TICK_S: Final = 5.0
TICKING_S: Final = 120.0
SPRAY_S: Final = 60.0
SILENCE_MIN_S: Final = 0.25
ROUND_GAPS_S: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Between the rounds of Probing; after the last gap, RelayOnly."""
DOUBT_GAPS_S: Final = (0.25, 0.5, 1.0)
"""Between the rounds of Degraded; the last one repeats."""
RETRY_GAPS_S: Final = (5.0, 10.0, 25.0)
"""Between full rounds in RelayOnly; the last is the tuning's reprobe."""
QUARANTINE_S: Final = 60.0
QUARANTINE_MAX_S: Final = 600.0
PINGED_S: Final = 10.0
"""A peer that uses a path pings it every two or three seconds."""
HUSH_S: Final = 5.0
"""What a peer is given to find out by itself that a path does not carry, before we stop answering there."""
WANTED_S: Final = 10.0
CALM_AFTER_S: Final = 3.0
CALM_HEARTBEAT_S: Final = 21.0
"""Between pings while it is calm: a NAT remembers for thirty seconds at least."""
SESSION_S: Final = 180.0
"""Silence after which no WireGuard session can be alive."""
PROBED_AT_ONCE: Final = 16
LEARNED_MAX: Final = 32
PROBES_MAX: Final = 64
PEER_PINGS_PER_S: Final = 64.0
HISTORY: Final = 32


class Probe:
    """One ping on its way."""

    __slots__ = ("candidate", "is_missed", "miss_at", "purpose", "sent_at", "timeout_at", "wire")

    def __init__(self, candidate: Candidate, purpose: Purpose, now: float, hard_s: float, wire: int = 0) -> None:
        self.candidate = candidate
        self.purpose = purpose
        self.wire = wire
        self.sent_at = now
        self.is_missed = False
        self.miss_at = now + min(candidate.rto(), hard_s)
        self.timeout_at = now + hard_s


class PathBody:
    """What a peer's path consists of. `path.PeerPath` is what owners use."""

    def __init__(
        self,
        *,
        txid: Callable[[], bytes],
        uniform: Callable[[float, float], float],
        admit: Callable[[Endpoint], bool],
        pings: Bucket,
        calls: Bucket,
        now: Seconds,
        tuning: Tuning,
    ) -> None:
        """admit: whether an endpoint may be pinged at all. pings, calls: what the whole process may send."""
        self.tuning = tuning
        self.uniform = uniform
        self.txid = txid
        self.admit = admit
        self.process_pings = pings
        self.process_calls = calls
        self.own_pings = Bucket(PEER_PINGS_PER_S, PEER_PINGS_PER_S)
        self.state = State.UNKNOWN
        self.since: float = now
        self.reason = "no traffic yet"
        self.transitions: deque[tuple[Seconds, State, str]] = deque(maxlen=HISTORY)
        self.candidates: dict[Endpoint, Candidate] = {}
        self.probes: dict[bytes, Probe] = {}
        self.timers: dict[Event, float] = {}
        self.act: Candidate | None = None
        self.hint: Endpoint | None = None
        self.hint_until = -1e9
        self.miss = 0
        self.hedges: set[Hedge] = set()
        self.evidence_at = -1e9
        """When the newest answered ping on act was sent."""
        self.installed_at = -1e9
        self.settle_until = -1e9
        self.heard_act_at = -1e9
        self.heard_direct_at = -1e9
        self.data_direct_at = -1e9
        self.heard_relay_at = -1e9
        self.answered_at = -1e9
        """When something other than a handshake was heard."""
        self.relayed_at = -1e9
        """When data of the peer last came by relay."""
        self.stall_at = -1e9
        self.stall_over_at = -1e9
        self.stalls = 0
        """Stalls one soon after the other."""
        self.copies = 0
        """Of its packets, of which the direct one came too, while we sent none."""
        self.uncopied = 0
        """Its packets that came directly, since the last one by relay."""
        self.uncopied_at = -1e9
        """When it was last seen to send without copies."""
        self.is_heard = False
        """It has sent without copies since the path was taken: it hears us there."""
        self.unheard_at = -1e9
        self.pleas = 0
        """Pings of the peer by the path in use, one soon after the other."""
        self.plea_at = -1e9
        self.asked_at = -1e9
        """When we last tried to make the peer, which had fallen silent, send by relay."""
        self.got_at = -1e9
        """When data first came by relay since."""
        self.sent_at = -1e9
        self.first_sent_at = -1e9
        """When data was first sent by the path in use."""
        self.silence_at = -1e9
        self.live_until = -1e9
        self.tick_until = -1e9
        self.last_call_at = -1e9
        self.last_full_call_at = -1e9
        self.call_missed = False
        self.was_called = False
        """Probing because the peer called, not of our own accord."""
        self.round = 0
        self.retries = 0
        self.size_test: SizeTest | None = None
        self.is_relay_allowed = True
        """Whether data may go by relay at all."""
        self.region = RegionId(0)
        self.is_region_up = False
        self.is_peer_gone = False
        self.seen_as: Endpoint | None = None
        """Our address as the peer's last pong reported it."""
        self.pings_sent = 0
        self.pongs_received = 0
        self.last_path = SetPath(None, RegionId(0), Mode.NONE)
        self.now: Seconds = now
        """Time of the event in hand."""
        self.out: list[Effect] = []
        """What the event in hand has led to so far."""

    # --- macros (8.3) ---

    def live(self, for_s: float = IDLE_S) -> None:
        """There is traffic: keep the path warm for that long."""
        self.live_until = max(self.live_until, self.now + for_s)
        if self.state is not State.UNKNOWN:
            self.timers[Event.IDLE] = self.live_until

    @property
    def is_live(self) -> bool:
        """Whether there was traffic lately."""
        return self.now < self.live_until

    def is_wanted(self, now: Seconds) -> bool:
        """Whether there was data for the peer, or of it, in the last seconds."""
        return now - max(self.sent_at, self.heard_direct_at, self.heard_relay_at) < WANTED_S

    def is_calm(self, now: Seconds) -> bool:
        """Whether nothing was said for some seconds, so that pings have only the NATs' memory to refresh."""
        return now - max(self.sent_at, self.heard_direct_at, self.heard_relay_at) >= CALM_AFTER_S

    def ping(self, candidate: Candidate, purpose: Purpose, wire: int = 0) -> bool:
        """Send one, if the limits allow; what they suppress is tried again at the next timer."""
        now = self.now
        if purpose is Purpose.DISCOVER and now - candidate.ping_at < PING_GAP_S:
            return False
        if (
            (candidate.is_bad(now) and purpose not in SIZING)
            or not self.own_pings.take(now)
            or not self.process_pings.take(now)
        ):
            return False
        if len(self.probes) >= PROBES_MAX:
            del self.probes[next(iter(self.probes))]
        txid = self.txid()
        self.probes[txid] = Probe(candidate, purpose, now, self.tuning.probe_timeout_s, wire)
        candidate.ping_at = now
        self.pings_sent += 1
        self.out.append(SendPing(candidate.endpoint, txid, wire))
        return True

    def call(self, *, at_once: bool = False) -> None:
        """Send CallMeMaybe, not more often than the gap (at_once: whatever the gap)."""
        if not self.is_relay_up:
            self.call_missed = True
            return
        if (at_once or self.now - self.last_call_at >= CALL_GAP_S) and self.process_calls.take(self.now):
            self.last_call_at = self.now
            self.call_missed = False
            self.out.append(Call())

    def probe_all(self, *, call: bool = True, limit: int = PROBED_AT_ONCE) -> None:
        """Ping every candidate, the likeliest first, those that waited longest before those just pinged."""
        if call:
            self.call()
        first = {self.hint, self.act.endpoint if self.act else None}
        order = sorted(
            (c for c in self.candidates.values() if not c.is_bad(self.now)),
            key=lambda c: (c.endpoint not in first, c.ping_at > self.now - 1.0, *probe_order(c), str(c.endpoint)),
        )
        for candidate in order[:limit]:
            self.ping(candidate, Purpose.DISCOVER)

    def start_probing(self, why: str, *, call: bool = True) -> None:
        """Look for a direct path; packets go by relay meanwhile."""
        self.drop_timers(Event.HEARTBEAT, Event.REPROBE, Event.DEGRADED, Event.HEDGE, Event.STALL)
        self.act = None
        self.hedges.clear()
        self.become(State.PROBING, why)
        self.was_called = not call
        self.round = 0
        self.timers[Event.ROUND] = self.now + ROUND_GAPS_S[0]
        self.timers[Event.IDLE] = self.live_until
        self.probe_all(call=call)

    def triggered(self, source: Endpoint, gap_s: float = TRIGGER_GAP_S) -> None:
        """The peer was heard from this address: see whether it answers there."""
        candidate = self.learn(source, Kind.REFLEXIVE)
        if candidate is None or self.now - candidate.triggered_at < gap_s or self.is_awaited(candidate):
            return
        candidate.triggered_at = self.now
        self.ping(candidate, Purpose.TRIGGERED)

    def install(self, candidate: Candidate, evidence_at: float, why: str) -> None:
        """Use this path. Copies go by relay until data has come back over it."""
        is_first = self.state is not State.DIRECT
        self.drop_timers(Event.DEGRADED, Event.TICK)
        if self.now - self.evidence_at > OUTAGE_S:
            self._forget_outage(candidate)
        self.act = candidate
        self.set_hint(candidate)
        self.miss = 0
        self.evidence_at = evidence_at
        self.installed_at = self.now
        self.is_heard, self.copies, self.uncopied = False, 0, 0
        self.hedges = {Hedge.INSTALL}
        self.retries = 0
        self.timers[Event.HEARTBEAT] = self.now + self.jitter(self.tuning.heartbeat_s, 0.1)
        self.timers[Event.REPROBE] = self.now + self.jitter(self.tuning.reprobe_s, 0.2)
        self.timers[Event.HEDGE] = self.now + HEDGE_S
        self.timers[Event.IDLE] = max(self.live_until, self.now)
        if is_first:
            self.settle_until = self.now + SETTLE_S
            self.timers.setdefault(Event.ROUND, self.now + ROUND_GAPS_S[0])
        self.become(State.DIRECT, why)
        if self.now - max(self.heard_direct_at, self.heard_relay_at) > SESSION_S:
            self.out.append(Kick())

    def _forget_outage(self, candidate: Candidate) -> None:
        """What was lost while nothing passed at all does not say how much the path loses."""
        candidate.forget_loss()
        self.probes = {t: p for t, p in self.probes.items() if p.candidate is not candidate or not p.is_missed}

    def degrade(self, why: str) -> None:
        """Doubt the path: everything goes both ways until a pong comes or time is up."""
        if self.act is not None and self.act.tier == 1:
            self.out.append(SeekRelay(is_urgent=True))
        self.drop_timers(Event.HEARTBEAT, Event.REPROBE, Event.HEDGE, Event.STALL)
        self.settle_until = -1e9
        self.hedges.clear()
        self.become(State.DEGRADED, why)
        self.round = 0
        self.timers[Event.DEGRADED] = self.now + self.tuning.degraded_timeout_s
        self.timers[Event.ROUND] = self.now + DOUBT_GAPS_S[0]
        self.probe_all()

    def to_relay(self, why: str) -> None:
        """Give the direct path up; look again later, and where it was a little more often."""
        self.drop_timers(*(e for e in self.timers if e not in (Event.IDLE, Event.RELAY_UP)))
        self.act = None
        self.hedges.clear()
        self.retries = 0
        self.tick_until = self.now + TICKING_S
        self.timers[Event.TICK] = self.now + self.jitter(TICK_S, 0.2)
        self.become(State.RELAY_ONLY, why)
        self.arm_retry()

    def arm_retry(self) -> None:
        """The next full round in RelayOnly."""
        last = len(RETRY_GAPS_S) - 1
        gap = self.tuning.reprobe_s if self.retries >= last else RETRY_GAPS_S[self.retries]
        self.timers[Event.REPROBE] = self.now + self.jitter(gap, 0.2)
        self.retries += 1

    def go_idle(self, why: str) -> None:
        """No traffic: no timers, no packets; remember what worked."""
        if self.act is not None:
            self.set_hint(self.act)
        self.act = None
        self.hedges.clear()
        self.probes.clear()
        gone_until = self.timers.get(Event.RELAY_UP)
        self.timers.clear()
        if gone_until is not None:
            self.timers[Event.RELAY_UP] = gone_until
        self.become(State.UNKNOWN, why)

    def quarantine(self, candidate: Candidate, for_s: float | None = None) -> None:
        """Set a candidate aside: it answers probes but does not carry, or cannot be reached at all."""
        if for_s is None:
            for_s = min(QUARANTINE_S * 2**candidate.bad_count, QUARANTINE_MAX_S)
            candidate.bad_count += 1
            candidate.hushed_at = self.now + (0.0 if candidate.is_narrow else HUSH_S)
        candidate.bad_until = self.now + for_s
        candidate.is_left = False

    def doubt_carrying(self, why: str, *, is_choice: bool = False) -> None:
        """Event 18: pongs arrive but WireGuard does not. The next best path, or the relay.

        is_choice: all that speaks against the path is that the peer's data comes by relay. Unless the peer itself pings
        the path it may have set it aside, and two that did so in turn would never meet again.
        """
        failed = self.act
        assert failed is not None
        others = [c for c in self.candidates.values() if c is not failed and not c.is_bad(self.now)]
        fresh = [c for c in others if self.now - c.pong_at < 30.0 and c.srtt is not None]
        if not fresh and not self.is_relay_allowed:
            self.hedges.clear()
            return  # there is nothing better to be had
        if is_choice and self.now - failed.pinged_at >= PINGED_S:
            failed.bad_until, failed.is_left, failed.hushed_at = self.now + QUARANTINE_S, True, NEVER
        else:
            self.quarantine(failed)
        if fresh:
            best = min(fresh, key=lambda c: (c.srtt or 0.0, str(c.endpoint)))
            self.install(best, best.pong_at, f"{why}; {best.endpoint} is the next best")
        else:
            self.to_relay(why)
            self.call()

    # --- small parts ---

    def become(self, state: State, why: str) -> None:
        """A transition, told and remembered; staying in the state is told only of Direct."""
        old, self.state, self.reason = self.state, state, why
        if old is state and state is not State.DIRECT:
            return
        self.since = self.now if old is not state else self.since
        self.transitions.append((self.now, state, why))
        self.out.append(Notify(old, state, why))

    def learn(self, endpoint: Endpoint, kind: Kind) -> Candidate | None:
        """The candidate of that endpoint, made if it may be pinged and there is room."""
        candidate = self.candidates.get(endpoint)
        if candidate is None and self.admit(endpoint):
            self._make_room()
            candidate = self.candidates[endpoint] = Candidate(endpoint, Kind.RELAYED if endpoint.vni else kind)
        return candidate

    def _make_room(self) -> None:
        learned = [c for c in self.candidates.values() if not c.is_announced and c is not self.act]
        if len(self.candidates) >= CANDIDATES_MAX or len(learned) >= LEARNED_MAX:
            pool = learned or [c for c in self.candidates.values() if c is not self.act]
            oldest = min(pool, key=lambda c: (max(c.pong_at, c.ping_at), str(c.endpoint)))
            self.forget_candidate(oldest)

    def forget_candidate(self, candidate: Candidate) -> None:
        """No longer a candidate; its pings in flight mean nothing."""
        del self.candidates[candidate.endpoint]
        self.void_probes(candidate)

    def void_probes(self, candidate: Candidate) -> None:
        """Whatever answers to these pings says nothing any more."""
        for txid in [t for t, p in self.probes.items() if p.candidate is candidate]:
            del self.probes[txid]

    def is_awaited(self, candidate: Candidate) -> bool:
        """Whether a ping to it is under way and not yet missed."""
        return any(p.candidate is candidate and not p.is_missed for p in self.probes.values())

    def set_hint(self, candidate: Candidate) -> None:
        """Remember what worked, for the first packet after idleness."""
        self.hint, self.hint_until = candidate.endpoint, self.now + HINT_S

    def drop_timers(self, *events: Event) -> None:
        """Cancel."""
        for event in events:
            self.timers.pop(event, None)

    def jitter(self, delay_s: float, share: float) -> float:
        """The delay, give or take a share."""
        return delay_s * self.uniform(1 - share, 1 + share)

    # --- questions ---

    @property
    def is_relay_up(self) -> bool:
        """Whether the peer can be expected at the other end of its relay."""
        return self.is_region_up and self.region != 0 and not self.is_peer_gone

    def spray(self, now: float) -> list[Candidate]:
        """Up to three candidates that were heard or answered lately, the last first: better than nothing."""
        known = [c for c in self.candidates.values() if not c.is_bad(now)]
        fresh = [c for c in known if now - max(c.pong_at, c.heard_at) < SPRAY_S]
        return sorted(fresh, key=lambda c: (-c.heard_at, -c.pong_at, str(c.endpoint)))[:3]
