"""Port prediction: a node behind a NAT that gives every destination another port is met by chance.

That side ("hard") opens many sockets towards the other's mapped endpoint, so that its NAT has as many ports open for
it; the other side ("easy") sends pings to random ports of the hard side's address. By the birthday paradox one of them
soon hits, whichever side begins. What is said are pings as ever: a hit is a ping that arrives, and the path machines
do the rest.
The easy side tries one fresh socket besides: it pings the peer, learns by STUN where it is outside, and tells the
peer. That helps where the peer's pings came before ours and our NAT took them for its own, which spoils our mapping.
It looks like a port scan, so it is off unless asked for, and bounded: one attempt of a role at a time, one per
peer in ten minutes, so many sockets, probes and packets per second, and only towards an address that the peer's own
STUN saw. Losing sockets are closed at once.
Source: docs/reliability.md 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from meshnode.base.addr import Endpoint, is_tailnet
from meshnode.base.keys import NodePublic
from meshnode.base.units import Seconds
from meshnode.core.portmap_values import is_hidden, is_no_host
from meshnode.core.report import NetReport

SOCKETS_MAX: Final = 256
PROBES_MAX: Final = 2048
PER_S: Final = 500
TICK_S: Final = 0.02
PER_TICK: Final = int(PER_S * TICK_S)
HOLD_S: Final = 20.0
"""How long the hard side keeps its sockets open, and the easy side's holes can be hoped to be."""
REFRESH_S: Final = 8.0
"""Until each socket of the hard side is heard again: less than NATs remember."""
AGAIN_S: Final = 600.0
"""Between attempts with one peer."""
ATTEMPTS_MAX: Final = 6
"""With all peers together, in AGAIN_S: nobody makes us scan for long."""
PATIENCE_S: Final = 1.5
"""How long the usual ways are tried first."""
QUIET_S: Final = 10.0
"""A socket that a peer was heard by so lately may be its way to us, whichever ours to it is."""
PEERS_MAX: Final = 1024
PORTS: Final = range(1024, 65536)


class Role(StrEnum):
    """Which part a side plays."""

    HARD = "hard"
    EASY = "easy"


class Sockets(NamedTuple):
    """Open or close these extra sockets."""

    numbers: tuple[int, ...]
    is_open: bool


class Probe(NamedTuple):
    """Ping the peer there."""

    peer: NodePublic
    endpoint: Endpoint


class AskStun(NamedTuple):
    """Ask a STUN server, by this socket, where it is outside."""

    number: int


class Announce(NamedTuple):
    """Tell the peer by its relay that we are at this endpoint, too."""

    peer: NodePublic
    endpoint: Endpoint


Effect = Sockets | Probe | AskStun | Announce


@dataclass(slots=True)
class Attempt:
    """One try to meet one peer."""

    peer: NodePublic
    role: Role
    ends_at: Seconds
    waiting: list[Endpoint]
    """Still to be pinged, the next one last."""
    sockets: tuple[Endpoint, ...] = ()
    """Where the peer is, by each socket that was opened for it: many at the hard side, a fresh one at the easy side."""
    is_told: bool = False
    refresh_at: Seconds = Seconds(float("inf"))

    @property
    def due_at(self) -> Seconds:
        """When something is to be done without a ping waiting."""
        return min(self.ends_at, self.refresh_at)


def role_of(report: NetReport) -> Role | None:
    """Which part our NAT lets us play; None: not known yet, or no UDP."""
    if not report.udp or report.mapping_varies is None:
        return None
    return Role.HARD if report.mapping_varies else Role.EASY


def address_of(endpoints: Iterable[Endpoint], own: Endpoint | None) -> Endpoint | None:
    """Where a peer is outside, as its own STUN saw it: the first IPv4 endpoint that is no address inside.

    own: our own endpoint outside. Where even that is private, addresses outside are. None: not to be told, or ours.
    """
    inside_too = own is not None and isinstance(own.ip, IPv4Address) and is_hidden(own.ip)
    for endpoint in endpoints:
        ip = endpoint.ip
        if not isinstance(ip, IPv4Address) or endpoint.vni or not endpoint.port or is_no_host(ip) or is_tailnet(ip):
            continue
        if is_hidden(ip) and not inside_too:
            continue
        return endpoint if own is None or ip != own.ip else None
    return None


class Predictor:
    """Every attempt of one node. `next_deadline`: when `on_deadline` wants to be called; None: nothing is under way."""

    def __init__(self, sample: Callable[[Sequence[int], int], list[int]]) -> None:
        """sample: so many different elements of a sequence, at random."""
        self._sample = sample
        self._attempts: dict[Role, Attempt] = {}
        self._tried_at: dict[NodePublic, Seconds] = {}
        self._won: dict[int, NodePublic] = {}
        """Sockets that carry a path, ours or the peer's, by number."""
        self._heard_at: dict[int, Seconds] = {}
        self._next_at: Seconds | None = None
        self.counts = dict.fromkeys(("attempts", "probes", "won"), 0)

    def next_deadline(self) -> Seconds | None:
        """When something is due."""
        return self._next_at if self._attempts else None

    def concerns(self, peer: NodePublic) -> bool:
        """Whether `on_path` wants to hear of this peer."""
        return peer in self._won.values() or any(attempt.peer == peer for attempt in self._attempts.values())

    @property
    def winners(self) -> tuple[tuple[int, NodePublic], ...]:
        """Sockets in use, and by whom."""
        return tuple(self._won.items())

    def consider(
        self, peer: NodePublic, endpoints: Sequence[Endpoint], report: NetReport, waited_s: float, now: Seconds
    ) -> list[Effect]:
        """A peer in use has no direct path since waited_s. Begins an attempt if it is time for one."""
        role = role_of(report)
        if role is None or waited_s < PATIENCE_S or role in self._attempts or not self._may_try(peer, now):
            return []
        target = address_of(endpoints, report.global_v4)
        if target is None:
            return []
        self._tried_at[peer] = now
        self._next_at = now
        self.counts["attempts"] += 1
        attempt = self._attempts[role] = Attempt(peer, role, Seconds(now + HOLD_S), [])
        numbers = self._free()
        if role is Role.EASY:
            attempt.waiting = [Endpoint(target.ip, port) for port in self._sample(PORTS, PROBES_MAX)]
            return self._try_fresh(attempt, target, numbers[-1:])
        attempt.sockets = tuple(Endpoint(target.ip, target.port, 0, number) for number in numbers)
        attempt.refresh_at = now
        return self._open(numbers)

    def _try_fresh(self, attempt: Attempt, target: Endpoint, numbers: tuple[int, ...]) -> list[Effect]:
        """Its ping leaves before anybody hears of it, and opens our NAT."""
        effects: list[Effect] = []
        for number in numbers:
            way = Endpoint(target.ip, target.port, 0, number)
            attempt.sockets = (way,)
            effects += [*self._open(numbers), Probe(attempt.peer, way), AskStun(number)]
        return effects

    def _open(self, numbers: tuple[int, ...]) -> list[Effect]:
        for number in numbers:
            self._heard_at.pop(number, None)
        return [Sockets(numbers, True)] if numbers else []

    def _free(self) -> tuple[int, ...]:
        taken = {*self._won, *(way.socket for attempt in self._attempts.values() for way in attempt.sockets)}
        return tuple(number for number in range(1, SOCKETS_MAX + 1) if number not in taken)

    def on_mapped(self, number: int, endpoint: Endpoint) -> list[Effect]:
        """A STUN server sees this socket there."""
        attempt = self._attempts.get(Role.EASY)
        if attempt is None or attempt.is_told or number not in [way.socket for way in attempt.sockets]:
            return []
        attempt.is_told = True
        return [Announce(attempt.peer, endpoint)]

    def _may_try(self, peer: NodePublic, now: Seconds) -> bool:
        if len(self._tried_at) >= PEERS_MAX:
            self._tried_at = {key: at for key, at in self._tried_at.items() if now - at < AGAIN_S}
        lately = sum(now - at < AGAIN_S for at in self._tried_at.values())
        return lately < ATTEMPTS_MAX and now - self._tried_at.get(peer, -1e9) >= AGAIN_S

    def on_heard(self, number: int, now: Seconds) -> None:
        """The peer of this socket was heard by it."""
        self._heard_at[number] = now

    def on_path(
        self, peer: NodePublic, used: Endpoint | None, now: Seconds, kept: Endpoint | None = None
    ) -> list[Effect]:
        """The peer's direct path is this now; None: it has none. A path ends the attempt; its socket is kept.

        kept: the path of before, where it is hoped to work still.
        """
        wanted = {way.socket for way in (used, kept) if way is not None}
        effects: list[Effect] = []
        for attempt in [a for a in self._attempts.values() if a.peer == peer and used is not None]:
            if used is not None and used in attempt.sockets:
                self._won[used.socket] = peer
                self.counts["won"] += 1
            elif attempt.role is Role.EASY and attempt.sockets:
                attempt.waiting, attempt.is_told = [], True  # the peer may be about to come by the fresh socket
                continue
            effects += self._end(attempt, now)
        for number in [n for n, key in self._won.items() if key == peer and n not in wanted]:
            if not self._is_heard(number, now):
                del self._won[number]
                effects.append(Sockets((number,), False))
        return effects

    def _is_heard(self, number: int, now: Seconds) -> bool:
        return now - self._heard_at.get(number, -1e9) < QUIET_S

    def forget(self, peer: NodePublic) -> list[Effect]:
        """The peer is gone; when it was tried is remembered."""
        gone = [number for number, key in self._won.items() if key == peer]
        for attempt in [a for a in self._attempts.values() if a.peer == peer]:
            del self._attempts[attempt.role]
            gone += [way.socket for way in attempt.sockets]
        for number in gone:
            self._won.pop(number, None)
        return [Sockets(tuple(gone), False)] if gone else []

    def on_sockets_lost(self) -> None:
        """Every extra socket is closed: the network changed."""
        self._won.clear()
        self._attempts.pop(Role.HARD, None)
        for attempt in self._attempts.values():
            attempt.sockets = ()

    def on_deadline(self, now: Seconds) -> list[Effect]:
        """Send what is due, end what is over."""
        if self._next_at is None or now < self._next_at:
            return []
        effects: list[Effect] = []
        for attempt in list(self._attempts.values()):
            effects += self._end(attempt, now) if now >= attempt.ends_at else self._send(attempt, now)
        is_sending = any(attempt.waiting for attempt in self._attempts.values())
        due = [attempt.due_at for attempt in self._attempts.values()]
        self._next_at = Seconds(now + TICK_S) if is_sending else min(due, default=None)
        return effects

    def _send(self, attempt: Attempt, now: Seconds) -> list[Effect]:
        if now >= attempt.refresh_at:
            attempt.waiting, attempt.refresh_at = list(attempt.sockets), Seconds(now + REFRESH_S)
        due, attempt.waiting = attempt.waiting[-PER_TICK:], attempt.waiting[:-PER_TICK]
        self.counts["probes"] += len(due)
        return [Probe(attempt.peer, endpoint) for endpoint in due]

    def _end(self, attempt: Attempt, now: Seconds) -> list[Effect]:
        self._attempts.pop(attempt.role, None)
        if attempt.role is Role.EASY:
            self._won |= {e.socket: attempt.peer for e in attempt.sockets if self._is_heard(e.socket, now)}
        losers = tuple(e.socket for e in attempt.sockets if e.socket not in self._won)
        return [Sockets(losers, False)] if losers else []
