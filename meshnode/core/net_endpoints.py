"""Endpoints that STUN shows us, remembered for a while, and which changes of ours control is told of.

`Mapped` keeps what servers saw for five minutes, a few for each address. `Told` compares what we have with what
control was told: Headscale sends each message of ours on to every peer, so news that peers do not need waits. What
is gained at an interface, by a port mapping or by configuration, or is lost there, is told at once; what STUN gained
after a moment, and less often if it keeps changing; what STUN lost when there is other news, or late. Order, and the
ports of a NAT that gives every destination another one, are no news at all: CallMeMaybe carries those.
Source: docs/protocol/paths.md 4.6; docs/protocol/control.md 4.1, 8.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from meshnode.base.addr import IP, Endpoint
from meshnode.base.units import Seconds
from meshnode.core.report import NetReport
from meshnode.netmap.tailcfg import EndpointKind

KEPT_S: Final = 310.0
PER_IP_MAX: Final = 6
IPS_MAX: Final = 8
GAINED_S: Final = 1.0
WOBBLE_S: Final = 10.0
"""After news of STUN the next waits this long, twice as long each time it changes again at once."""
WOBBLE_MAX_S: Final = 320.0
LOST_S: Final = 320.0
FROM_STUN: Final = frozenset({EndpointKind.STUN, EndpointKind.STUN_LOCAL_PORT})

Entries = tuple[tuple[Endpoint, EndpointKind], ...]


class Mapped:
    """Our addresses as STUN servers saw them lately."""

    def __init__(self) -> None:
        self._seen: dict[Endpoint, float] = {}
        self._is_stale = False

    def note_link_change(self) -> None:
        """What the next answers do not confirm is of the old network."""
        self._is_stale = True

    def forget(self, families: Collection[int]) -> set[IP]:
        """The way out of these families, 4 or 6, is another one; returns the addresses that are ours no longer."""
        gone = {e.ip for e in self._seen if e.ip.version in families}
        self._seen = {e: at for e, at in self._seen.items() if e.ip not in gone}
        return gone

    def learn(self, report: NetReport, now: Seconds) -> set[IP]:
        """Take a report; returns the addresses that are ours no longer."""
        if not report.udp:
            return set()
        found = endpoints_of(report)
        gone: set[IP] = set()
        if self._is_stale:
            self._is_stale = False
            gone = {e.ip for e in self._seen} - {e.ip for e in found}
            self._seen = {e: at for e, at in self._seen.items() if e.ip not in gone}
        for endpoint in reversed(found):
            self._seen.pop(endpoint, None)
            self._seen[endpoint] = now
        self._bound(now)
        return gone

    def current(self) -> tuple[Endpoint, ...]:
        """Newest first."""
        return tuple(reversed(self._seen))

    def _bound(self, now: Seconds) -> None:
        """Drop what is old or too much; the dict is in the order of the last sight."""
        count: dict[IP, int] = {}
        kept = []
        for endpoint, at in reversed(self._seen.items()):
            is_new_ip = endpoint.ip not in count
            if now - at > KEPT_S or (is_new_ip and len(count) >= IPS_MAX) or count.get(endpoint.ip, 0) >= PER_IP_MAX:
                continue
            count[endpoint.ip] = count.get(endpoint.ip, 0) + 1
            kept.append((endpoint, at))
        self._seen = dict(reversed(kept))


def endpoints_of(report: NetReport) -> tuple[Endpoint, ...]:
    """What a report says others may reach us at: the usual ones, then what more than one server saw."""
    usual = [e for e in (report.global_v4, report.global_v6) if e is not None]
    often = [e for e, count in report.seen.items() if count > 1]
    return tuple(dict.fromkeys([*usual, *often]))


def forwarded_guess(report: NetReport, local_port: int) -> tuple[Endpoint, ...]:
    """Behind a hard NAT a person may have forwarded the very port that was configured. local_port: 0 = none was."""
    if not local_port or not report.mapping_varies or report.global_v4 is None:
        return ()
    return (Endpoint(report.global_v4.ip, local_port),)


class Told:
    """What control was told, and when it is told more."""

    def __init__(self) -> None:
        self._told: Entries = ()
        self._wanted: Entries = ()
        self._varies = False
        self._wobble_s = WOBBLE_S
        self._told_at = -1e9
        """When STUN was last the reason to tell."""
        self._gained_at: float | None = None
        self._lost_at: float | None = None
        """Since when STUN shows more, or less, than control was told."""
        self._due_at: float | None = None

    def offer(self, entries: Entries, now: Seconds, *, mapping_varies: bool = False) -> None:
        """What we have now, best first. mapping_varies: by a NAT that shows each destination another port."""
        self._wanted, self._varies = entries, mapping_varies
        self._gained_at = _since(self._gained_at, self._has_gained(), now)
        self._lost_at = _since(self._lost_at, self._has_lost(), now)
        self._due_at = now if self._has_plain_news() else self._stun_due_at()

    def take(self, now: Seconds) -> Entries | None:
        """What to tell control now; None: nothing yet."""
        if self._due_at is None or now < self._due_at:
            return None
        if not self._has_plain_news():
            is_wobbling = now - self._told_at < 2 * self._wobble_s
            self._wobble_s = min(2 * self._wobble_s, WOBBLE_MAX_S) if is_wobbling else WOBBLE_S
            self._told_at = now
        self._told = self._wanted
        self._due_at = self._gained_at = self._lost_at = None
        return self._told

    @property
    def due_at(self) -> float | None:
        """When to call `take`; None: there is no news."""
        return self._due_at

    def _stun_due_at(self) -> float | None:
        dues = []
        if self._gained_at is not None:
            dues.append(max(self._gained_at + GAINED_S, self._told_at + self._wobble_s))
        if self._lost_at is not None:
            dues.append(max(self._lost_at + LOST_S, self._told_at + self._wobble_s))
        return min(dues, default=None)

    def _has_plain_news(self) -> bool:
        """Whether anything but STUN's changed: in members, or in what they are."""
        told = {pair for pair in self._told if pair[1] not in FROM_STUN}
        wanted = {pair for pair in self._wanted if pair[1] not in FROM_STUN}
        return told != wanted

    def _has_lost(self) -> bool:
        return not {e for e, _ in self._told} <= {e for e, _ in self._wanted}

    def _has_gained(self) -> bool:
        """Whether STUN shows what control does not know."""
        gained = {e for e, kind in self._wanted if kind in FROM_STUN} - {e for e, _ in self._told}
        if self._varies:
            known = {e.ip for e, kind in self._told if kind in FROM_STUN}
            gained = {e for e in gained if e.ip not in known}
        return bool(gained)


def _since(known: float | None, holds: bool, now: Seconds) -> float | None:
    if not holds:
        return None
    return now if known is None else known
