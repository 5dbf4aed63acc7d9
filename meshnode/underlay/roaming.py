"""Roaming: what a change of the machine's own network, or its sleep, does to the paths of every peer.

A change is judged per path: only those whose packets leave from another address now are doubted, the others are asked
at most. After sleep all are doubted.
Source: docs/protocol/paths.md 7.6, 8.5 rows 15 and 22, 8.7, 8.8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from meshnode.base.addr import IP, Endpoint
from meshnode.core.path import PeerPath
from meshnode.core.path_values import Effect
from meshnode.core.wake import Wake
from meshnode.run.clock import Clock
from meshnode.underlay.own import OwnEndpoints
from meshnode.underlay.peers import Known
from meshnode.underlay.sources import Look, Sources

Awake = Sequence[tuple[Known, PeerPath]]


class Roaming:
    """Of one Discovery, which owns it."""

    def __init__(
        self,
        clock: Clock,
        own: OwnEndpoints,
        awake: Callable[[], Awake],
        perform: Callable[[Known, Iterable[Effect]], None],
    ) -> None:
        self._clock = clock
        self._own = own
        self._awake = awake
        self._perform = perform
        self._wake = Wake(clock.now(), self._boot())
        self._sources: Sources | None = None
        self.wakes = 0
        self.touched = 0
        """Addresses of peers whose way changed."""
        self.on_wake: Callable[[], Any] = lambda: None
        """The machine slept, or this process was stopped. Paths know already."""

    def judge_by(self, look: Look) -> None:
        """How to ask which address packets to somewhere leave from; without it, whole families are doubted."""
        self._sources = Sources(look)

    def note(self, target: IP) -> None:
        """We are about to ping there."""
        if self._sources is not None:
            self._sources.note(target)

    def on_network(self, endpoints: Iterable[Endpoint], gone: Collection[IP], usable: Collection[IP] | None) -> None:
        """The machine's network changed.

        endpoints: our own as they are now. gone: addresses that peers must not be told any more. usable: every address
        that works; None: not known.
        """
        now = self._clock.now()
        self._own.forget(gone)
        is_news = self._own.replace(tuple(endpoints), now)
        awake = self._awake()
        touched = self._touched(awake, gone, usable)
        self.touched += len(touched)
        for known, path in awake:
            called_at = path.last_call_at
            if touched:
                self._perform(known, path.on_link(lambda e: e.ip in touched, now))
            if is_news and path.last_call_at == called_at:
                self._perform(known, path.on_own_endpoints(now))

    def on_routes(self, usable: Collection[IP] | None) -> None:
        """No address changed, but routes may have: another interface may lead to some peers now."""
        awake = self._awake()
        if touched := self._touched(awake, (), usable):
            self.touched += len(touched)
            for known, path in awake:
                self._perform(known, path.on_link(lambda e: e.ip in touched, self._clock.now()))

    def on_everything(self) -> None:
        """Nothing that was known of any path need hold."""
        for known, path in self._awake():
            self._perform(known, path.on_link(lambda _: True, self._clock.now()))

    def look_for_sleep(self, due_at: float | None = None) -> None:
        """due_at: when a timer that fires now was due, which shows a process that was stopped."""
        now = self._clock.now()
        slept = self._wake.slept(now, self._boot())
        if slept or (due_at is not None and self._wake.stopped(now, due_at)):
            self.wakes += 1
            self.on_everything()
            self.on_wake()

    def _boot(self) -> float:
        return self._clock.boot_ns() / 1e9

    def _touched(self, awake: Awake, gone: Collection[IP], usable: Collection[IP] | None) -> Collection[IP]:
        targets = {endpoint.ip for _, path in awake for endpoint in path.candidates}
        if self._sources is not None:
            return self._sources.look_again(targets, usable)
        families = {ip.version for ip in gone}
        return [ip for ip in targets if ip.version in families]
