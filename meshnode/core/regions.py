"""By which relay region a peer is reached: its home, else where it was last heard, else where we are at home ourselves.

The home comes from the netmap and may be dead, or left while control has not said so: a relay that says the peer is
not there is believed for a while if there is another region to try.
Source: docs/protocol/paths.md 2.3, 8.8, 9.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshnode.base.addr import RegionId

GONE_S: Final = 30.0
GONE_MAX: Final = 8
NOWHERE: Final = RegionId(0)


class Regions:
    """Of one peer. All instants are loop time."""

    __slots__ = ("_gone_until", "home", "route")

    def __init__(self) -> None:
        self.home = NOWHERE
        """As the netmap has it."""
        self.route = NOWHERE
        """Where it was last heard."""
        self._gone_until: dict[RegionId, float] = {}

    def note_gone(self, region: RegionId, now: float) -> None:
        """That region's relay says the peer is not connected to it."""
        self._gone_until = {r: until for r, until in self._gone_until.items() if now < until}
        if len(self._gone_until) < GONE_MAX:
            self._gone_until[region] = now + GONE_S
        if self.route == region:
            self.route = NOWHERE

    def note_heard(self, region: RegionId) -> None:
        """Something of the peer came by that region."""
        self.route = region
        self._gone_until.pop(region, None)

    def note_home(self, region: RegionId) -> None:
        """The netmap says so; if that is news, it is newer than what a relay said of that region before."""
        if region != self.home:
            self.home = region
            self._gone_until.pop(region, None)

    def is_gone(self, region: RegionId, now: float) -> bool:
        """Whether that region's relay lately said that the peer is not there."""
        return now < self._gone_until.get(region, -1e9)

    def choose(self, is_up: Callable[[RegionId], bool], own_home: RegionId, now: float) -> RegionId:
        """The best region now; 0: nowhere. Where the peer is not beats where we are not; a dead home beats nothing."""
        known = [region for region in (self.home, self.route) if region != NOWHERE]
        if not known:
            return NOWHERE
        options = [*known, own_home] if own_home != NOWHERE else known
        up = [r for r in options if is_up(r)]
        usable = [r for r in up if not self.is_gone(r, now)]
        return (usable or up or known)[0]
