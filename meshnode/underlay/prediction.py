"""Prediction: performs port prediction with the engine's extra sockets and the pings of paths.

Looks at every path as it moves; what it decides is `core.prediction`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from meshnode.base.addr import Endpoint
from meshnode.base.errors import MeshError
from meshnode.base.keys import NodePublic
from meshnode.core.path_values import State
from meshnode.core.prediction import PATIENCE_S, Announce, AskStun, Effect, Predictor, Probe, Sockets
from meshnode.core.report import NetReport
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.underlay.deadlines import CallLater, Timer
from meshnode.underlay.peers import Known
from meshnode.wire import stun

CHECK_S: Final = 30.0
"""Between looks whether the sockets of paths are still in use."""
_SEARCHING: Final = (State.PROBING, State.RELAY_ONLY)
_log = get_logger("prediction")


class Prediction:
    """Of one Discovery, which owns it. All methods are of the loop's thread."""

    def __init__(self, clock: Clock, call_later: CallLater) -> None:
        self._clock = clock
        self._call_later = call_later
        self._core = Predictor(random.SystemRandom().sample)
        self._timer: Timer | None = None
        self._peers: dict[NodePublic, Known] = {}
        """Whom there is something under way with."""
        self.is_paused = False
        self.report: Callable[[], NetReport] = NetReport
        """The newest netcheck's result."""
        self.set_extra: Callable[[int, int, bool], Any] = lambda *_: None
        """Engine.set_extra: (first number, how many, whether open)"""
        self.ping: Callable[[Known, Endpoint], Any] = lambda *_: None
        """Send one."""
        self.call: Callable[[Known, Endpoint], Any] = lambda *_: None
        """CallMeMaybe, with one endpoint more."""
        self.server: Callable[[], Endpoint | None] = lambda: None
        """A STUN server over IPv4 that answers."""
        self.send_extra: Callable[[Endpoint, bytes], Any] = lambda *_: None
        """Engine.send_extra"""
        self._asked: dict[bytes, int] = {}
        """STUN transactions of the attempt, and by which socket."""
        self.lose: Callable[[Known, Collection[int]], Any] = lambda *_: None
        """The peer's candidates by these sockets lead nowhere any more."""

    @property
    def counts(self) -> dict[str, int]:
        """What was done so far."""
        return {f"prediction_{name}": count for name, count in self._core.counts.items()}

    def look(self, known: Known) -> None:
        """Something happened to this peer's path."""
        path, now = known.path, self._clock.now()
        if path is None or self.is_paused:
            return
        used = path.act.endpoint if path.act is not None else None
        if self._core.concerns(known.key):
            hopes = path.state in (State.UNKNOWN, State.PROBING) and now < path.hint_until
            self._perform(self._core.on_path(known.key, used, now, path.hint if hopes else None))
        if used is None and path.state in _SEARCHING and path.is_live:
            waited_s = now - path.since if path.state is State.PROBING else PATIENCE_S
            endpoints = known.endpoints or tuple(path.candidates)
            self._peers[known.key] = known
            self._perform(self._core.consider(known.key, endpoints, self.report(), waited_s, now))
        if not self._core.concerns(known.key):
            self._peers.pop(known.key, None)
        self._arm()

    def heard(self, way: Endpoint) -> None:
        """The peer was heard by the socket that this names, if any."""
        if way.socket:
            self._core.on_heard(way.socket, self._clock.now())

    def forget(self, known: Known) -> None:
        """The peer is gone."""
        self._perform(self._core.forget(known.key))
        self._peers.pop(known.key, None)

    def on_sockets_lost(self) -> None:
        """The engine closed every extra socket."""
        self._core.on_sockets_lost()
        for known in list(self._peers.values()):
            self.lose(known, range(1, 1 << 16))

    def close(self) -> None:
        """Cancel the timer; the engine closes the sockets."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self.is_paused = True

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Probe):
                self.ping(self._peers[effect.peer], effect.endpoint)
            elif isinstance(effect, Announce):
                self.call(self._peers[effect.peer], effect.endpoint)
            elif isinstance(effect, AskStun):
                self._ask(effect.number)
            else:
                self._set_sockets(effect)

    def _set_sockets(self, effect: Sockets) -> None:
        for first, count in _runs(effect.numbers):
            self.set_extra(first, count, effect.is_open)
        if not effect.is_open:
            for known in list(self._peers.values()):
                self.lose(known, effect.numbers)
        elif len(effect.numbers) > 1:
            _log.info("port prediction begins", sockets=len(effect.numbers))

    def _ask(self, number: int) -> None:
        server, txid = self.server(), self._clock.entropy(stun.TXID_LEN)
        self._asked = {txid: number}
        if server is not None:
            self.send_extra(server._replace(socket=number), stun.emit_request(txid))

    def on_stun(self, source: Endpoint, data: bytes) -> None:
        """An extra socket, which `source` names, got what looks like STUN."""
        with suppress(MeshError):
            txid, mapped = stun.parse_response(data)
            if self._asked.get(txid) == source.socket:
                self._asked.clear()
                self._perform(self._core.on_mapped(source.socket, mapped))

    def _arm(self) -> None:
        deadline = self._core.next_deadline()
        if deadline is None and not self._core.winners:
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = CHECK_S if deadline is None else max(0.0, deadline - self._clock.now())
        self._timer = self._call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._perform(self._core.on_deadline(self._clock.now()))
        for known in list(self._peers.values()):
            self.look(known)
        self._arm()


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, how many) of numbers that follow one another."""
    first = count = 0
    for number in sorted(numbers):
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
