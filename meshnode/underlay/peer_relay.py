"""Meetings at peer relays: seals what `core.peer_relay` asks for, opens what relays say, keeps its time.

A peer relay has a DISCO key of its own, learned with an allocation; its Challenges are opened only while a handshake
with it is under way, so that strangers cost no cipher.
Source: docs/protocol/paths.md 6.3, 7.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.core.allocation import Bound, Lost, SendBind
from meshnode.core.peer_relay import Ask, Effect, PeerRelays, Tell
from meshnode.run.clock import Clock
from meshnode.underlay.deadlines import CallLater, Timer
from meshnode.underlay.own import OwnEndpoints
from meshnode.underlay.peers import DiscoKeys, Known
from meshnode.wire import disco as wire
from meshnode.wire import geneve

BOXES_MAX: Final = 64


class Send(Protocol):
    """Speaker's way out by UDP."""

    def __call__(self, to: Endpoint, packet: bytes, *, is_control: bool = False) -> None: ...


def _ignore(*_: Any, **__: Any) -> None:
    """Until Discovery sets the callable."""


class Meetings:
    """Our side of every peer relay."""

    def __init__(self, keys: DiscoKeys, own: OwnEndpoints, clock: Clock, call_later: CallLater) -> None:
        self._keys = keys
        self._clock = clock
        self._call_later = call_later
        self._core = PeerRelays(keys.public, own.admits)
        self._boxes: dict[DiscoPublic, wire.Box] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._closed = False
        self._is_allowed = True
        self.send: Send = _ignore
        self.tell: Callable[[NodePublic, wire.Message], Any] = _ignore
        """Seal to a member and send by its relay region."""
        self.on_leg: Callable[[NodePublic, Endpoint], Any] = _ignore
        self.on_lost: Callable[[NodePublic, Endpoint], Any] = _ignore

    @property
    def suppressed(self) -> int:
        """Binds that the limit held back."""
        return self._core.binds.refused

    @property
    def has_leg(self) -> Callable[[NodePublic, Endpoint], bool]:
        """Whether DISCO of this peer may come and go by that leg."""
        return self._core.has_leg

    def set_servers(self, servers: Iterable[NodePublic]) -> None:
        """Who may relay for us, best first."""
        self._core.set_servers(servers)

    def allow(self, is_allowed: bool) -> None:
        """Whether peer relays may be used at all."""
        self._is_allowed = is_allowed
        if not is_allowed:
            self._perform(self._core.forget_all())

    def search(self, known: Known, *, is_urgent: bool) -> None:
        """The peer cannot be reached directly, or a leg to it stopped carrying."""
        if known.disco is not None and self._is_allowed:
            self._perform(self._core.search(known.key, known.disco, self._clock.now(), is_urgent=is_urgent))

    def on_via(self, known: Known, message: wire.CallMeMaybeVia) -> None:
        """A peer proposes an allocation."""
        if known.disco is not None and self._is_allowed:
            self._perform(self._core.on_via(known.key, known.disco, message.block, self._clock.now()))

    def on_response(self, known: Known, message: wire.AllocateResponse) -> None:
        """A member answers our request."""
        now = self._clock.now()
        self._perform(self._core.on_response(known.key, message.generation, message.block, now))

    def on_control(self, source: Endpoint, relayed: geneve.Relayed) -> bool:
        """A relay itself speaks; False if it is none of ours, or says what a relay may not say to a client."""
        raw = wire.sender_of(relayed.packet)
        if len(relayed.packet) < wire.MESSAGE_MIN:
            return False
        server = DiscoPublic(raw)
        box = self._box(server) if self._core.is_awaited(server) else None
        message = box.open(relayed.packet) if box is not None else None
        if not isinstance(message, wire.Bind) or message.kind != wire.BIND_CHALLENGE or message.vni != relayed.vni:
            return False
        way = Endpoint(source.ip, source.port, relayed.vni)
        self._perform(self._core.on_challenge(server, way, message, self._clock.now()))
        return True

    def on_pong(self, known: Known, leg: Endpoint) -> None:
        """The peer answered a ping of ours to this address."""
        if leg.vni:
            self._core.on_pong(known.key, leg, self._clock.now())
            self._arm()

    def forget(self, known: Known) -> None:
        """The peer left, or restarted."""
        self._perform(self._core.forget(known.key))

    def close(self) -> None:
        """No more wake-ups."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- effects and time ---

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self.tell(effect.server, effect.request)
            elif isinstance(effect, Tell):
                self.tell(effect.peer, effect.via)
            elif isinstance(effect, SendBind):
                self._send_bind(effect)
            elif isinstance(effect, Bound):
                self.on_leg(effect.peer, effect.leg)
            elif isinstance(effect, Lost):
                self.on_lost(effect.peer, effect.leg)
        self._arm()

    def _send_bind(self, effect: SendBind) -> None:
        box = self._box(effect.server)
        if box is not None and self._core.binds.take(self._clock.now()):
            packet = box.seal(effect.bind, self._clock.entropy(wire.NONCE_LEN))
            self.send(effect.to, packet, is_control=True)

    def _box(self, server: DiscoPublic) -> wire.Box | None:
        box = self._boxes.pop(server, None) or self._keys.box_of_relay(server)
        if box is not None:
            self._boxes[server] = box  # the one used last is the last to go
            if len(self._boxes) > BOXES_MAX:
                del self._boxes[next(iter(self._boxes))]
        return box

    def _arm(self) -> None:
        due = self._core.next_deadline()
        if self._timer is not None and (due is None or due != self._timer_at):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None and not self._closed:
            self._timer_at = due
            self._timer = self._call_later(max(0.0, due - self._clock.now()), self._on_due)

    def _on_due(self) -> None:
        self._timer = None
        self._perform(self._core.on_deadline(self._clock.now()))
