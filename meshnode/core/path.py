"""Per peer: Unknown → Probing → Direct → Degraded → RelayOnly.

Everything that happens to a peer's path is an Event with a time; what it does in each state is a row of
`path_table`, written in the macros of `path_body`; what follows is a list of Effects for the owner to
perform. Same events, same seed, same effects. The layer below answers pings and proves boxes before it
tells us. Source: docs/protocol/paths.md 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core.path_body import PathBody
from meshnode.core.path_carry import is_mute, on_direct, on_plea, on_relayed
from meshnode.core.path_plan import plan
from meshnode.core.path_size import keep_sized
from meshnode.core.path_table import run_row
from meshnode.core.path_values import TIMERS, CandidateStatus, Effect, Event, PathStatus, Purpose, What
from meshnode.core.score import NEVER, Candidate, Kind

GONE_S: Final = 5.0
"""How long a relay's "peer gone" is believed."""


class PeerPath(PathBody):
    """One peer's path. Its owner feeds events in time order and performs what they return."""

    # --- traffic ---

    def on_send(self, now: Seconds, *, wanted: bool = False) -> list[Effect]:
        """Data was sent to the peer, or (wanted) would have been if there were a way."""
        return self._once(now, Event.SEND, wanted)

    def on_recv(self, source: Endpoint | None, what: What, now: Seconds) -> list[Effect]:
        """An authenticated WireGuard packet arrived, from `source` or by relay."""
        self._begin(now)
        if what is not What.HANDSHAKE:
            self.answered_at = now
        if source is not None:
            on_direct(self, what)
            self._hear(source)
        else:
            on_relayed(self, what)
            self._see_peer()
        run_row(self, Event.RECV, source, what)
        return self._finish()

    def _hear(self, source: Endpoint) -> None:
        """What comes from an address that was set aside shows that it carries, unless it is only too narrow."""
        candidate = self.candidates.get(source)
        if candidate is not None and not candidate.is_narrow:
            candidate.hushed_at = NEVER

    def is_hushed(self, source: Endpoint, now: Seconds) -> bool:
        """Whether pings from there stay unanswered: the path is set aside because it answers probes and carries no
        data, and a peer that does not notice would send into the void for as long as we answer."""
        candidate = self.candidates.get(source)
        is_aside = candidate is not None and now >= candidate.hushed_at and candidate.is_bad(now)
        return is_aside or is_mute(self, source, now)

    def on_send_error(self, endpoint: Endpoint, is_unreachable: bool, now: Seconds) -> list[Effect]:
        """The system refused a datagram to one of our candidates."""
        candidate = self.candidates.get(endpoint)
        return [] if candidate is None else self._once(now, Event.SEND_ERROR, candidate, is_unreachable)

    def on_too_big(self, endpoint: Endpoint, now: Seconds) -> list[Effect]:
        """Somebody says that a datagram to this endpoint was too long. Anybody may say so: a reason to ask."""
        candidate = self.candidates.get(endpoint)
        return [] if candidate is None else self._once(now, Event.TOO_BIG, candidate)

    def on_full_buffers(self, endpoint: Endpoint, now: Seconds) -> list[Effect]:
        """The system keeps refusing datagrams to this endpoint for want of room or by its own filter."""
        candidate = self.candidates.get(endpoint)
        return [] if candidate is None else self._once(now, Event.REFUSED, candidate)

    def allow_relay(self, is_allowed: bool, now: Seconds) -> list[Effect]:
        """Whether data may go by relay; DISCO may always."""
        self._begin(now)
        self.is_relay_allowed = is_allowed
        return self._finish()

    def on_wireguard_stall(self, now: Seconds) -> list[Effect]:
        """Handshakes fail on the direct path while the relay carries them."""
        return self._once(now, Event.WG_STALL)

    # --- DISCO ---

    def on_pong(self, txid: bytes, seen_as: Endpoint | None, now: Seconds) -> list[Effect]:
        """A pong arrived. The endpoint pinged is credited, wherever the pong came from.

        An unknown txid is ignored: duplicates and pongs later than the hard timeout are normal.
        """
        self._begin(now)
        probe = self.probes.get(txid)
        if probe is None or now >= probe.timeout_at:
            return self._finish()
        del self.probes[txid]
        self.pongs_received += 1
        if seen_as is not None and not probe.candidate.endpoint.vni:
            self.seen_as = seen_as
        probe.candidate.take_sample(now - probe.sent_at, now)
        run_row(self, Event.PONG, probe)
        return self._finish()

    def on_ping(self, source: Endpoint, now: Seconds) -> list[Effect]:
        """A ping arrived by UDP and was answered."""
        candidate = self.candidates.get(source)
        if candidate is not None:
            candidate.pinged_at = now
            if candidate.is_left:
                candidate.bad_until, candidate.is_left = now, False
        self._begin(now)
        on_plea(self, source)
        run_row(self, Event.PING_RX, source)
        return self._finish()

    def on_call(self, endpoints: Iterable[Endpoint], now: Seconds) -> list[Effect]:
        """A CallMeMaybe arrived. It adds candidates and removes none."""
        self._begin(now)
        new: list[Candidate] = []
        for endpoint in endpoints:
            is_new = endpoint not in self.candidates
            candidate = self.learn(endpoint, Kind.CALLED)
            if candidate is not None and is_new:
                new.append(candidate)
        run_row(self, Event.CALL_RX, new)
        return self._finish()

    def on_more_endpoints(self, endpoints: Iterable[Endpoint], now: Seconds) -> list[Effect]:
        """More calls than we react to: their addresses are kept for the next round."""
        self._begin(now)
        for endpoint in endpoints:
            self.learn(endpoint, Kind.CALLED)
        return self._finish()

    # --- what control says ---

    def on_endpoints(self, endpoints: Iterable[Endpoint], now: Seconds) -> list[Effect]:
        """The peer's endpoints in the netmap. Those it no longer has are demoted, not deleted."""
        self._begin(now)
        announced = list(dict.fromkeys(endpoints))
        for candidate in self.candidates.values():
            candidate.is_announced = candidate.endpoint in announced
        new: list[Candidate] = []
        for endpoint in announced:
            is_new = endpoint not in self.candidates
            learned = self.learn(endpoint, Kind.NETMAP)
            if learned is not None:
                learned.is_announced = True
                if is_new:
                    new.append(learned)
        run_row(self, Event.ENDPOINTS, new)
        return self._finish()

    def on_leg(self, leg: Endpoint, now: Seconds) -> list[Effect]:
        """A peer relay has bound us to an allocation for this peer: one more way, of the second tier."""
        self._begin(now)
        candidate = self.learn(leg, Kind.RELAYED)
        if candidate is not None:
            run_row(self, Event.LEG, candidate)
        return self._finish()

    def on_leg_lost(self, leg: Endpoint, now: Seconds) -> list[Effect]:
        """That leg leads nowhere any more."""
        return self.on_way_lost(leg, f"the peer relay at {leg} serves us no more", now)

    def on_way_lost(self, way: Endpoint, why: str, now: Seconds) -> list[Effect]:
        """This candidate leads nowhere any more."""
        self._begin(now)
        candidate = self.candidates.get(way)
        if candidate is None:
            return self._finish()
        self.forget_candidate(candidate)
        if self.hint == way:
            self.hint = None
        if candidate is self.act:
            self.start_probing(why)
        return self._finish()

    def on_disco_key(self, now: Seconds) -> list[Effect]:
        """The peer restarted: it has another disco key, and pings in flight mean nothing."""
        self.probes.clear()
        for candidate in self.candidates.values():
            candidate.ping_at = -1e9  # those were sealed to the old key: it may be asked again at once
        return self._once(now, Event.DISCO_KEY)

    # --- relays ---

    def on_relay(self, region: RegionId, is_up: bool, now: Seconds) -> list[Effect]:
        """The peer's region, and whether our connection there stands (or could be opened)."""
        self._begin(now)
        was_up, moved = self.is_relay_up, region != self.region
        self.region, self.is_region_up = region, is_up
        if moved:
            self._clear_gone()
        if self.is_relay_up and (moved or not was_up):
            run_row(self, Event.RELAY_UP)
        elif was_up and not self.is_relay_up:
            run_row(self, Event.RELAY_DOWN)
        return self._finish()

    def on_peer_gone(self, now: Seconds) -> list[Effect]:
        """The relay says the peer is not connected to it. It says nothing about UDP."""
        self._begin(now)
        was_up = self.is_relay_up
        self.is_peer_gone = True
        self.timers[Event.RELAY_UP] = now + GONE_S
        if was_up:
            run_row(self, Event.RELAY_DOWN)
        return self._finish()

    def on_peer_seen(self, now: Seconds) -> list[Effect]:
        """Something came from the peer by relay: it is there after all."""
        self._begin(now)
        self._see_peer()
        return self._finish()

    def _see_peer(self) -> None:
        if self.is_peer_gone:
            self._clear_gone()
            run_row(self, Event.RELAY_UP)

    def _clear_gone(self) -> None:
        self.is_peer_gone = False
        self.drop_timers(Event.RELAY_UP)

    # --- ourselves ---

    def on_link(self, is_affected: Callable[[Endpoint], bool], now: Seconds) -> list[Effect]:
        """Local addresses changed; paths to these endpoints may have broken."""
        self._begin(now)
        hit = [c for c in self.candidates.values() if is_affected(c.endpoint)]
        for candidate in hit:
            candidate.forget()
            candidate.bad_until = now
            self.void_probes(candidate)
        if self.seen_as is not None and any(c.endpoint.ip.version == self.seen_as.ip.version for c in hit):
            self.seen_as = None
        run_row(self, Event.LINK, hit)
        return self._finish()

    def on_own_endpoints(self, now: Seconds) -> list[Effect]:
        """Our own set changed; a peer in use should hear of it."""
        return self._once(now, Event.OWN_ENDPOINTS)

    # --- time ---

    def next_deadline(self) -> Seconds | None:
        """When to call `on_deadline`; None: nothing is armed."""
        times = list(self.timers.values())
        times += [p.timeout_at if p.is_missed else p.miss_at for p in self.probes.values()]
        return Seconds(min(times)) if times else None

    def on_deadline(self, now: Seconds) -> list[Effect]:
        """Raise every timer that is due, in order."""
        self._begin(now)
        due = [(at, e.value, e, b"") for e, at in self.timers.items() if at <= now]
        for txid, probe in self.probes.items():
            if not probe.is_missed and probe.miss_at <= now:
                due.append((probe.miss_at, Event.MISS.value, Event.MISS, txid))
            if probe.timeout_at <= now:
                due.append((probe.timeout_at, Event.TIMEOUT.value, Event.TIMEOUT, txid))
        for _, _, event, txid in sorted(due, key=lambda d: d[:2]):
            if event in TIMERS:
                self._raise_timer(event)
            else:
                self._raise_probe(event, txid)
        return self._finish()

    def _raise_timer(self, event: Event) -> None:
        """A timer that an earlier one of this round cancelled or moved does not fire."""
        if self.timers.get(event, self.now + 1.0) > self.now:
            return
        del self.timers[event]
        if event is Event.RELAY_UP:
            self.is_peer_gone = False
            if not self.is_relay_up:
                return
        run_row(self, event)

    def _raise_probe(self, event: Event, txid: bytes) -> None:
        probe = self.probes.get(txid)
        if probe is None:
            return
        if event is Event.MISS:
            probe.is_missed = True
        else:
            del self.probes[txid]
            if probe.purpose is not Purpose.SIZE:
                probe.candidate.take_loss()
        run_row(self, event, probe)

    # --- one step ---

    def _once(self, now: Seconds, event: Event, *about: object) -> list[Effect]:
        self._begin(now)
        run_row(self, event, *about)
        return self._finish()

    def _begin(self, now: Seconds) -> None:
        self.now = now
        self.out = []

    def _finish(self) -> list[Effect]:
        keep_sized(self)
        planned = plan(self, self.now)
        if planned != self.last_path:
            self.last_path = planned
            self.out.insert(0, planned)  # before a kick: its initiation goes by the new plan
        return self.out

    # --- questions ---

    def status(self) -> PathStatus:
        """A view of this moment."""
        act = self.act
        shown = sorted(self.candidates.values(), key=lambda c: (c is not act, -c.pong_at, str(c.endpoint)))
        return PathStatus(
            state=self.state,
            since=Seconds(self.since),
            reason=self.reason,
            endpoint=act.endpoint if act else None,
            latency_s=act.srtt if act else None,
            region=self.region,
            is_relay_up=self.is_relay_up,
            mode=self.last_path.mode,
            hedges=tuple(sorted(self.hedges)),
            candidates=tuple(self._shown(c) for c in shown),
            pings_sent=self.pings_sent,
            pongs_received=self.pongs_received,
            transitions=tuple(self.transitions),
            limit=act.limit if act else None,
        )

    def _shown(self, candidate: Candidate) -> CandidateStatus:
        return CandidateStatus(
            endpoint=candidate.endpoint,
            kind=candidate.kind,
            latency_s=candidate.srtt,
            pong_at=Seconds(candidate.pong_at) if candidate.pong_count else None,
            loss=candidate.loss,
            is_bad=candidate.is_bad(self.now),
        )
