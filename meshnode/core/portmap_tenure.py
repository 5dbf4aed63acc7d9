"""How long a mapping is held: the lease, when to look again, and why there is none.

Source: docs/protocol/paths.md 5.
"""

from __future__ import annotations

from typing import Final

from meshnode.base.addr import Endpoint
from meshnode.base.units import Seconds
from meshnode.core.portmap_values import LIFETIME_S, Lease, Protocol
from meshnode.wire.upnp import Service

AGAIN_S: Final = (5.0, 30.0, 120.0, 600.0)
"""Between attempts that end without a mapping; the last one repeats. Never sooner than the first."""
CHECK_S: Final = 60.0
"""Between looks at the epoch and the external address while mapped; one small datagram each."""
CHECK_UPNP_S: Final = 600.0


class Tenure:
    """Of one port at one gateway."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.reason = "not tried yet"
        """Why there is no lease: a sentence."""
        self.wish = 0
        """The external port we had last; 0: none."""
        self.failures = 0
        """Attempts in a row that brought nothing."""

    def hold(
        self,
        protocol: Protocol,
        external: Endpoint,
        internal_port: int,
        lifetime: int,
        now: Seconds,
        igd: Service | None = None,
    ) -> None:
        """A mapping was granted or renewed, for so many seconds."""
        kept = min(lifetime, LIFETIME_S)
        half, end = Seconds(now + max(kept / 2, AGAIN_S[0])), Seconds(now + kept)
        self.lease = Lease(protocol, external, internal_port, half, end, igd)
        self.wish, self.failures, self.reason = external.port, 0, ""

    def lose(self, reason: str) -> None:
        """The mapping is gone."""
        self.lease, self.reason = None, reason

    def refuse(self, reason: str) -> None:
        """What was granted is of no use."""
        self.lose(reason)
        self.wish, self.failures = 0, self.failures + 1

    def next_at(self, now: Seconds) -> Seconds:
        """The next attempt, check or renewal; after a failed renewal, half of what is left."""
        lease = self.lease
        if lease is None:
            return Seconds(now + AGAIN_S[min(max(self.failures, 1), len(AGAIN_S)) - 1])
        if now >= lease.renew_at:
            return Seconds(max(min(now + max((lease.until - now) / 2, AGAIN_S[0]), lease.until), now))
        check_s = CHECK_UPNP_S if lease.protocol is Protocol.UPNP else CHECK_S
        return Seconds(min(now + check_s, lease.renew_at))
