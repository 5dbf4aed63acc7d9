"""Our own endpoints, as others are told of them, and which endpoints of others we are willing to ping.

Lists we send are sticky: a receiver forgets an address that a later list lacks, its best path included, so
what we announced in the last minutes stays in until it is known to be gone.
Source: docs/protocol/paths.md 6.7, 8.7.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from meshnode.base.addr import IP, Endpoint, is_tailnet
from meshnode.base.bounds import OWN_ENDPOINTS_MAX

STICKY_S: Final = 300.0
FRESH_S: Final = 27.0


class OwnEndpoints:
    """What we have, what we said, what we accept."""

    def __init__(self, loopback_ok: bool) -> None:
        self._loopback_ok = loopback_ok
        self._current: tuple[Endpoint, ...] = ()
        self._said: dict[Endpoint, float] = {}
        self._learned_at = -1e9

    @property
    def current(self) -> tuple[Endpoint, ...]:
        """The set as it was last taken."""
        return self._current

    def replace(self, endpoints: tuple[Endpoint, ...], now: float) -> bool:
        """Take the set as it is now; True if it differs from the one before."""
        for endpoint in self._current:
            self._said[endpoint] = now
        changed = set(endpoints) != set(self._current)
        self._current, self._learned_at = endpoints, now
        return changed

    def forget(self, vanished: Collection[IP]) -> None:
        """These addresses are no longer ours: naming them would hold peers on dead paths."""
        self._said = {e: at for e, at in self._said.items() if e.ip not in vanished}
        self._current = tuple(e for e in self._current if e.ip not in vanished)

    def is_fresh(self, now: float) -> bool:
        """Whether the set was looked up lately."""
        return now - self._learned_at < FRESH_S

    def to_announce(self, seen_as: Endpoint | None, now: float) -> tuple[Endpoint, ...]:
        """For a CallMeMaybe: how this peer saw us first, then what we have, then what we lately had."""
        lately = sorted((e for e, at in self._said.items() if now - at < STICKY_S), key=str)
        reported = (seen_as,) if seen_as is not None and self._is_sane(seen_as) else ()
        return tuple(dict.fromkeys((*reported, *self._current, *lately)))[:OWN_ENDPOINTS_MAX]

    def admits(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint of a peer may be pinged."""
        return self._is_sane(endpoint) and endpoint not in self._current

    def _is_sane(self, endpoint: Endpoint) -> bool:
        ip = endpoint.ip
        if endpoint.port == 0 or ip.is_unspecified or ip.is_multicast or is_tailnet(ip):
            return False
        if ip.is_loopback:
            return self._loopback_ok or self._has_loopback_only()
        if ip.version == 6:
            return not ip.is_link_local
        return ip.packed[0] not in (0, *range(240, 256))

    def _has_loopback_only(self) -> bool:
        return bool(self._current) and all(e.ip.is_loopback for e in self._current)
