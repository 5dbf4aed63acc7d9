"""Paths: one path machine per peer, and what its effects do.

Paths is the half of Discovery that keeps time and performs: pings, calls, the engine's paths, peer relays. It knows
nothing of what arrives. One heap of deadlines and one loop timer serve all peers.
Source: docs/protocol/paths.md 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, NodePublic
from meshnode.core.bucket import Bucket
from meshnode.core.path import PeerPath
from meshnode.core.path_values import Call, Effect, Kick, Mode, Notify, SeekRelay, SendPing, SetPath, State, Tuning
from meshnode.run.clock import Clock
from meshnode.underlay.deadlines import CallLater, Deadlines
from meshnode.underlay.peer_relay import Meetings
from meshnode.underlay.peers import Known
from meshnode.underlay.prediction import Prediction
from meshnode.underlay.roaming import Roaming
from meshnode.underlay.speaker import Speaker, ignore
from meshnode.wire import disco as wire

PINGS_PER_S: Final = 2000.0
CALLS_PER_S: Final = 100.0


class Paths(Speaker):
    """Every peer's path machine, performed."""

    def __init__(
        self,
        private: DiscoPrivate,
        node: NodePublic,
        *,
        clock: Clock | None = None,
        loopback_ok: bool = False,
        tuning: Tuning | None = None,
        call_later: CallLater | None = None,
    ) -> None:
        """call_later: how to be woken; the running loop's unless a simulator brings its own."""
        super().__init__(private, node, clock or Clock(), loopback_ok=loopback_ok)
        call_later = call_later or asyncio.get_running_loop().call_later
        self._deadlines = Deadlines(self._clock, call_later, self._on_due)
        self._tuning = tuning or Tuning()
        self._peers: dict[NodePublic, Known] = {}
        self._down: set[RegionId] = set()
        self._own_home = RegionId(0)
        self._is_relay_allowed = True
        self._ping_budget = Bucket(PINGS_PER_S, PINGS_PER_S)
        self._call_budget = Bucket(CALLS_PER_S, CALLS_PER_S)
        self.roaming = Roaming(self._clock, self._own, self._awake, self._perform)
        """Changes of this machine's own network."""
        self._meetings = Meetings(self._keys, self._own, self._clock, call_later)
        self._meetings.send, self._meetings.tell = self._send_to, self._tell
        self._meetings.on_leg, self._meetings.on_lost = self._on_leg, self._on_leg_lost
        self.has_leg = self._meetings.has_leg
        self.prediction: Prediction | None = None
        """Port prediction, if it is wanted."""
        self._call_later = call_later
        self.set_path: Callable[..., Any] = ignore
        """Engine.set_path: (peer, direct, region, mode, limit, others)"""
        self.kick: Callable[[NodePublic], Any] = ignore
        """Engine.kick"""
        self.tell_key: Callable[[NodePublic], Any] = ignore
        """Say our key to this peer inside the tunnel."""
        self.nudge: Callable[[NodePublic], Any] = ignore
        """Engine.nudge"""
        self.notify: Callable[[NodePublic, str, str, str], Any] = ignore
        """(peer, old state, new state, reason); equal states: another direct endpoint."""

    # --- effects ---

    def _perform(self, known: Known, effects: Iterable[Effect]) -> None:
        has_new_way = False
        for effect in effects:
            if isinstance(effect, SendPing):
                self.roaming.note(effect.endpoint.ip)
                self._send_ping(known, effect)
            elif isinstance(effect, Call):
                self._send_call(known)
            elif isinstance(effect, SeekRelay):
                self._meetings.search(known, is_urgent=effect.is_urgent)
            elif isinstance(effect, SetPath):
                self.set_path(known.key, effect.direct, effect.region, int(effect.mode), effect.limit, effect.others)
                has_new_way = has_new_way or effect.mode is not Mode.NONE
            elif isinstance(effect, Kick):
                self.kick(known.key)
            elif isinstance(effect, Notify):
                self.notify(known.key, effect.old.value, effect.new.value, effect.reason)
                has_new_way = has_new_way or effect.new is State.DIRECT
        if has_new_way:  # connections that repeat in vain, ever more seldom, need not wait it out
            self.nudge(known.key)
        self._deadlines.arm(known)
        if self.prediction is not None:
            self.prediction.look(known)

    # --- port prediction ---

    def use_prediction(self) -> Prediction:
        """Look for peers behind NATs that hide their ports; off unless this is called."""
        self.prediction = Prediction(self._clock, self._call_later)
        self.prediction.ping, self.prediction.lose = self._ping_once, self._lose_sockets
        self.prediction.call = self._send_call
        return self.prediction

    def _ping_once(self, known: Known, endpoint: Endpoint) -> None:
        self._send_ping(known, SendPing(endpoint, self._clock.entropy(wire.TXID_LEN), 0))

    def _lose_sockets(self, known: Known, numbers: Collection[int]) -> None:
        path = known.path
        lost = [way for way in path.candidates if way.socket and way.socket in numbers] if path is not None else []
        for way in lost:
            assert path is not None
            self._perform(known, path.on_way_lost(way, f"the socket that reached {way} is closed", self._clock.now()))

    # --- peer relays ---

    def _tell(self, peer: NodePublic, message: wire.Message) -> None:
        known = self._peers.get(peer)
        if known is not None:
            self._send_by_relay(known, message)

    def _on_leg(self, peer: NodePublic, leg: Endpoint) -> None:
        known = self._peers.get(peer)
        if known is not None:
            self._perform(known, self._path(known).on_leg(leg, self._clock.now()))

    def _on_leg_lost(self, peer: NodePublic, leg: Endpoint) -> None:
        known = self._peers.get(peer)
        if known is not None and known.path is not None:
            self._perform(known, known.path.on_leg_lost(leg, self._clock.now()))

    # --- peers and time ---

    def _awake(self) -> list[tuple[Known, PeerPath]]:
        return [(known, known.path) for known in self._peers.values() if known.path is not None]

    def allow_relay(self, is_allowed: bool) -> None:
        """Whether data may go by relays; DISCO may always."""
        self._is_relay_allowed = is_allowed
        for known in self._peers.values():
            if known.path is not None:
                self._perform(known, known.path.allow_relay(is_allowed, self._clock.now()))
            elif known.disco is not None:
                self._set_asleep(known)

    def _set_asleep(self, known: Known) -> None:
        """Where the packets of a peer go to which nothing has happened yet."""
        region = known.region if self._is_relay_allowed else RegionId(0)
        self.set_path(known.key, None, region, Mode.RELAY if region else Mode.NONE)

    def _is_up(self, region: RegionId) -> bool:
        return region != 0 and region not in self._down

    def _note_route(self, known: Known, region: RegionId) -> None:
        known.regions.note_heard(region)
        self._choose_region(known)

    def _choose_region(self, known: Known) -> bool:
        """By which relay the peer is reached now; True if that is another one than before."""
        now = self._clock.now()
        region = known.regions.choose(self._is_up, self._own_home, now)
        if region == known.region:
            return False
        known.region = region
        if known.path is not None:
            self._perform(known, known.path.on_relay(region, self._is_up(region), now))
        return True

    def _path(self, known: Known) -> PeerPath:
        if known.path is None:
            now = self._clock.now()
            path = known.path = PeerPath(
                txid=lambda: self._clock.entropy(wire.TXID_LEN),
                uniform=self._clock.uniform,
                admit=lambda e: self.has_leg(known.key, e) if e.vni else self._own.admits(e),
                pings=self._ping_budget,
                calls=self._call_budget,
                now=now,
                tuning=self._tuning,
            )
            path.allow_relay(self._is_relay_allowed, now)
            self._perform(known, path.on_relay(known.region, self._is_up(known.region), now))
            self._perform(known, path.on_endpoints(known.endpoints, now))
        return known.path

    def _on_due(self, known: Known) -> None:
        self.roaming.look_for_sleep()
        if known.path is not None:
            self._perform(known, known.path.on_deadline(self._clock.now()))
