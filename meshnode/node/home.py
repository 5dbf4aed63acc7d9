"""Keeps one relay region as our home: where peers can always reach us.

For now the lowest region id that connects (latency decides once there are STUN reports); the home of
the last run is tried first. A home is reported to control only once its connection stands, so that
nobody is sent to a relay where we are not. States: no region → trying → home → (lost) trying.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from meshnode.base.addr import RegionId
from meshnode.netmap.model import RelayMap
from meshnode.run.log import get_logger

TRY_S: Final = 4.0
"""A region that does not connect within this time makes way for the next."""
LOST_S: Final = 8.0
"""A home that is lost this long is given up; shorter gaps are the relay's restarts."""
NO_REGION: Final = RegionId(0)

_log = get_logger("relay")


class HomeKeeper:
    """Chooses and watches the home region. All callables are quick and run in the loop."""

    def __init__(
        self,
        *,
        choose: Callable[[RegionId], None],
        report: Callable[[RegionId], None],
        preferred: int = 0,
    ) -> None:
        """choose: connect to this region and keep it. report: it is our home, tell control."""
        self._choose = choose
        self._report = report
        self._preferred = RegionId(preferred)
        self._order: list[RegionId] = []
        self._timer: asyncio.TimerHandle | None = None
        self._connected: set[RegionId] = set()
        self.region = NO_REGION
        """The region we try or have; 0: none."""
        self.settled = asyncio.Event()
        """Set while the home's connection stands."""

    @property
    def is_needed(self) -> bool:
        """Whether the map has any region that could be home."""
        return bool(self._order)

    def on_map(self, relays: RelayMap) -> None:
        """A new relay map: keep the home if it is still in it, else choose again."""
        usable = [
            r.id
            for r in relays.regions.values()
            if not r.avoid and not r.no_home and any(not n.stun_only for n in r.nodes)
        ]
        self._order = sorted(usable, key=lambda region: (region != self._preferred, region))
        if self.region not in self._order:
            self._try(self._order[0] if self._order else NO_REGION)

    def on_relay(self, region: RegionId, is_connected: bool) -> None:
        """The pool's connection to a region came or went."""
        (self._connected.add if is_connected else self._connected.discard)(region)
        if region != self.region:
            return
        if is_connected:
            self._settle()
        elif self.settled.is_set():
            self.settled.clear()
            self._arm(LOST_S)

    def close(self) -> None:
        """Stop the timer."""
        self._disarm()

    def _try(self, region: RegionId) -> None:
        self.region = region
        self.settled.clear()
        self._disarm()
        if region == NO_REGION:
            return
        self._choose(region)
        if region in self._connected:
            self._settle()
        else:
            self._arm(TRY_S)

    def _settle(self) -> None:
        self._disarm()
        if not self.settled.is_set():
            self.settled.set()
            self._preferred = self.region
            self._report(self.region)

    def _next(self) -> None:
        """The region did not connect in time: the one after it, round and round."""
        if not self._order:
            return
        place = self._order.index(self.region) if self.region in self._order else -1
        following = self._order[(place + 1) % len(self._order)]
        if following != self.region:
            _log.warning("home relay does not connect; trying the next region", region=self.region, next=following)
        self._try(following)

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._next)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
