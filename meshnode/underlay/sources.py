"""Which of our addresses packets to each candidate leave from, so that a change of the network is judged per path.

The system is asked about an address when that is first pinged, and again after each change. Only where the answer
differs, or names an address that is not ours any more, was the path touched; a container's new interface touches none.
Source: docs/protocol/paths.md 7.6, 8.5 row 15.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from meshnode.base.addr import IP

KNOWN_MAX: Final = 8192

Look = Callable[[IP], IP | None]
"""`interfaces.source_towards`, or a simulator's."""


class Sources:
    """Bounded: what was noted longest ago is forgotten first, and then its path's own probes find a change."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._known: dict[IP, IP | None] = {}

    def note(self, target: IP) -> None:
        """We are about to send there."""
        if target in self._known:
            return
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[target] = self._look(target)

    def look_again(self, targets: Collection[IP], usable: Collection[IP] | None) -> frozenset[IP]:
        """Those of `targets` whose way changed since they were noted; the others that were noted are forgotten.

        usable: every address of ours that works; None: not known.
        """
        fresh: dict[IP, IP | None] = {}
        for target in targets:
            if target in self._known:
                source = self._look(target)
                fresh[target] = source if usable is None or source in usable else None
        before, self._known = self._known, fresh
        return frozenset(target for target, source in fresh.items() if source != before[target])
