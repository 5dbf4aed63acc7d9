"""Reach: what keeps this node reachable: its own endpoints, told to peers and to control as they change.

Sources put what they find into the book; whatever changes there is told once. Watches the machine's addresses.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meshnode.base.addr import Endpoint
from meshnode.core.report import NetReport
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.underlay.book import EndpointBook

if TYPE_CHECKING:
    from meshnode.node.house import House

ENDPOINTS_EVERY_S: Final = 10.0


class Reach:
    """Of one running House, which owns it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.book = EndpointBook()
        self.report = NetReport()
        """The last netcheck's result."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Our own, best first."""
        return tuple(endpoint for endpoint, _ in self.book.entries())

    def put(self, kind: EndpointKind, endpoints: tuple[Endpoint, ...]) -> None:
        """A source has news: peers and control hear of it if the list changed."""
        if self.book.put(kind, endpoints):
            self._house.discovery.set_endpoints(self.endpoints)
            self._house.control.update(endpoints=self.book.entries())

    async def watch(self) -> None:
        """Look at the machine's addresses for ever."""
        while True:
            await asyncio.sleep(ENDPOINTS_EVERY_S)
            self.refresh()

    def refresh(self) -> None:
        """Look at the machine's addresses now."""
        from meshnode.underlay.endpoints import local_endpoints

        house = self._house
        had = self.book.of(EndpointKind.LOCAL)
        found = tuple(local_endpoints(house.engine.port4, house.engine.port6, loopback_ok=house.node.use_loopback))
        if found == had:
            return
        gone = {e.ip for e in had} - {e.ip for e in found}
        self.put(EndpointKind.LOCAL, found)
        if gone:
            house.engine.rebind()
            house.discovery.on_link_change(gone)
        house.pool.on_link_change()
