"""Where a plain WireGuard peer is looked for: the addresses of its endpoint, tried in turn while it does not answer.

A peer that answers is where it answers from; WireGuard sees to that. This is for one that does not: after TRIES
initiations without a handshake the next address of its name is used, and when none is left the name is resolved
again, since it may have moved. An endpoint given as an address is gone back to, wherever the peer roamed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshnode.base.addr import IP, Endpoint, parse_ip
from meshnode.base.units import Seconds

TRIES: Final = 3
"""Unanswered initiations, 5 s apart, before another address is used."""
FIRST_RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
"""Between attempts to resolve a name that does not resolve: doubled each time up to this."""


@dataclass(frozen=True, slots=True)
class Resolve:
    """Ask for the addresses of `host` now."""

    host: str


@dataclass(frozen=True, slots=True)
class Use:
    """Send to this endpoint from now on, and begin with a handshake."""

    endpoint: Endpoint


Action = Resolve | Use


class Whereabouts:
    """One peer's endpoint `host`:`port`."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        try:
            self._addresses: tuple[IP, ...] = (parse_ip(host),)
            self.is_name = False
        except ValueError:
            self._addresses = ()
            self.is_name = True
        self._at = 0
        self._handshakes = 0
        self._answered = 0
        """Initiations when the last handshake was seen, or when we last turned elsewhere."""
        self._failures = 0
        self._is_resolving = False
        self.retry_at: Seconds | None = None
        """Loop time of the next attempt to resolve, while the name does not."""

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it is looked for; None: its name is not resolved yet."""
        return Endpoint(self._addresses[self._at], self.port) if self._addresses else None

    def start(self) -> list[Action]:
        """What to do first."""
        if self.endpoint is not None:
            return [Use(self.endpoint)]
        return self._ask()

    def on_resolved(self, addresses: Sequence[IP]) -> list[Action]:
        """The addresses of the name, best first; never none. Those it has are kept in use if still among them."""
        before = self.endpoint
        self._is_resolving = False
        self._failures, self.retry_at = 0, None
        self._addresses = tuple(dict.fromkeys(addresses))
        after = [at for at, ip in enumerate(self._addresses) if before is not None and ip == before.ip]
        # The one in use did not answer, or we would not have asked: begin behind it.
        self._at = (after[0] + 1) % len(self._addresses) if after else 0
        return [Use(Endpoint(self._addresses[self._at], self.port))]

    def on_unresolved(self, now: Seconds) -> None:
        """The name does not resolve; `retry_at` says when to ask again."""
        self._is_resolving = False
        delay = min(FIRST_RETRY_S * 2.0**self._failures, RETRY_MAX_S)
        self._failures = min(self._failures + 1, 16)
        self.retry_at = Seconds(now + delay)

    def on_time(self, now: Seconds) -> list[Action]:
        """Time passed: ask again if it is due."""
        return self._ask() if self.retry_at is not None and now >= self.retry_at else []

    def on_count(self, handshakes: int, initiations: int) -> list[Action]:
        """The engine's counters of this peer: completed handshakes, and initiations sent."""
        if handshakes != self._handshakes:
            self._handshakes, self._answered = handshakes, initiations
        if initiations - self._answered < TRIES or not self._addresses:
            return []
        self._answered = initiations
        if self._at + 1 < len(self._addresses):
            self._at += 1
        elif self.is_name:
            return self._ask()
        return [Use(Endpoint(self._addresses[self._at], self.port))]

    def _ask(self) -> list[Action]:
        if self._is_resolving:
            return []
        self._is_resolving, self.retry_at = True, None
        return [Resolve(self.host)]
