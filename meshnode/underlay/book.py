"""Our own endpoints from every source, merged: what peers and control are told, best first.

Each source (interfaces, STUN, a port mapping, the configuration) puts its whole set; the first kind to name an
endpoint wins it. Bounded in all.
Source: docs/protocol/paths.md 4.6, and 8.7 for the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from meshnode.base.addr import Endpoint
from meshnode.base.bounds import OWN_ENDPOINTS_MAX
from meshnode.netmap.tailcfg import EndpointKind

ORDER: Final = (
    EndpointKind.PORTMAPPED,
    EndpointKind.EXPLICIT,
    EndpointKind.STUN,
    EndpointKind.STUN_LOCAL_PORT,
    EndpointKind.LOCAL,
)


class EndpointBook:
    """What each source says, and the list that follows."""

    def __init__(self) -> None:
        self._sets: dict[EndpointKind, tuple[Endpoint, ...]] = {}

    def put(self, kind: EndpointKind, endpoints: Iterable[Endpoint]) -> bool:
        """Replace what a source says. True if the merged list differs from before, in members, order or kinds."""
        before = self.entries()
        self._sets[kind] = tuple(dict.fromkeys(endpoints))
        return self.entries() != before

    def of(self, kind: EndpointKind) -> tuple[Endpoint, ...]:
        """What one source says now."""
        return self._sets.get(kind, ())

    def entries(self) -> tuple[tuple[Endpoint, EndpointKind], ...]:
        """Every endpoint once, with the kind that won it, best first."""
        merged: dict[Endpoint, EndpointKind] = {}
        for kind in ORDER:
            for endpoint in self._sets.get(kind, ()):
                merged.setdefault(endpoint, kind)
        return tuple(merged.items())[:OWN_ENDPOINTS_MAX]
