"""What a gateway lets us see of itself: which protocols it speaks, and whether it restarted since.

Source: docs/protocol/paths.md 5; RFC 6886 3.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from meshnode.base.units import Seconds
from meshnode.core.portmap_values import Presence, Protocol

PRESENT_S: Final = 600.0
"""A protocol counts as spoken this long after its last sign."""
SLACK_S: Final = 2.0


class Watch:
    """Of one gateway."""

    def __init__(self) -> None:
        self._seen_at: dict[Protocol, Seconds] = {}
        self._asked: set[Protocol] = set()
        self._absent: set[Protocol] = set()
        self._epochs: dict[Protocol, tuple[int, Seconds]] = {}

    def asked(self, protocols: Iterable[Protocol]) -> None:
        """These are being asked for."""
        self._asked |= set(protocols)

    def conclude(self, now: Seconds) -> None:
        """Whoever was asked for had the time to answer: silence is absence."""
        self._absent = {protocol for protocol in self._asked if not self.is_present(protocol, now)}

    def saw(self, protocol: Protocol, now: Seconds) -> None:
        """It answered."""
        self._seen_at[protocol] = now
        self._absent.discard(protocol)

    def forget(self, protocol: Protocol) -> None:
        """It answered, but not to us."""
        self._seen_at.pop(protocol, None)

    def is_present(self, protocol: Protocol, now: Seconds) -> bool:
        """Whether it answered lately."""
        at = self._seen_at.get(protocol)
        return at is not None and now - at < PRESENT_S

    def is_anyone_present(self, now: Seconds) -> bool:
        """Whether any of them did."""
        return any(self.is_present(protocol, now) for protocol in Protocol)

    def presence(self) -> Presence:
        """All three; None for those not asked for, or not long enough ago."""
        return Presence(upnp=self._one(Protocol.UPNP), pmp=self._one(Protocol.PMP), pcp=self._one(Protocol.PCP))

    def _one(self, protocol: Protocol) -> bool | None:
        if protocol in self._absent:
            return False
        return True if protocol in self._seen_at else None

    def has_reset(self, protocol: Protocol, epoch: int, now: Seconds) -> bool:
        """Note an epoch; True if it lags so far behind the last one that the gateway lost its mappings between."""
        before = self._epochs.get(protocol)
        self._epochs[protocol] = (epoch, now)
        if before is None:
            return False
        expected = before[0] + (now - before[1]) * 7 / 8
        return epoch < expected - SLACK_S
