"""Peer relays: which members may relay for us, what is asked of them, and the legs we have there.

A search asks a few of them for an allocation (over a relay region, 6.3), tells the peer of what was allocated, and
binds to it; an allocation that the peer tells us of is bound to as well, whoever relays. Of two allocations of one
relay the later one counts, by its Lamport number, and another pair of keys is another allocation whatever path is
in use: a peer that restarted has new ones. Sans-IO: messages in, effects out, time as an argument.
Source: docs/protocol/paths.md 7.8, 8.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.base.units import Seconds
from meshnode.core.allocation import Allocation, Bound, Lost, SendBind, Step
from meshnode.core.bucket import Bucket
from meshnode.wire.disco import AllocateRequest, Bind, CallMeMaybeVia, RelayBlock
from meshnode.wire.geneve import VNI_MAX

SEARCH_GAP_S: Final = 30.0
URGENT_GAP_S: Final = 5.0
"""Between searches for a peer whose leg has just stopped carrying."""
ASK_AGAIN_S: Final = 3.0
ASK_TIMEOUT_S: Final = 10.0
FRESH_S: Final = 10.0
ASKED_AT_ONCE: Final = 3
ALLOCATIONS_PER_PEER: Final = 4
ALLOCATIONS_MAX: Final = 1024
WAYS_MAX: Final = 8
BINDS_PER_S: Final = 200.0
VIAS_PER_S: Final = 1.0
VIAS_BURST: Final = 5.0


class Ask(NamedTuple):
    """Seal this to that member and send it by its relay region."""

    server: NodePublic
    request: AllocateRequest


class Tell(NamedTuple):
    """Seal this to the peer and send it by its relay region."""

    peer: NodePublic
    via: CallMeMaybeVia


Effect = Ask | Tell | SendBind | Bound | Lost


class _Asked:
    """A request without its response yet."""

    __slots__ = ("again_at", "request", "until")

    def __init__(self, request: AllocateRequest, now: Seconds) -> None:
        self.request = request
        self.again_at = now + ASK_AGAIN_S
        self.until = now + ASK_TIMEOUT_S

    @property
    def due(self) -> float:
        return min(self.again_at, self.until)


class _Meeting:
    """What goes on for one peer."""

    __slots__ = ("allocations", "asked", "searched_at", "searches", "vias")

    def __init__(self) -> None:
        self.asked: dict[NodePublic, _Asked] = {}
        self.allocations: dict[DiscoPublic, Allocation] = {}
        self.searched_at: float = -1e9
        self.searches = 0
        self.vias = Bucket(VIAS_PER_S, VIAS_BURST)


class PeerRelays:
    """The client of every peer relay, for every peer."""

    def __init__(self, own: DiscoPublic, admit: Callable[[Endpoint], bool]) -> None:
        """own: our disco key. admit: whether an address may be sent to at all."""
        self._own = own
        self._admit = admit
        self._servers: tuple[NodePublic, ...] = ()
        self._meetings: dict[NodePublic, _Meeting] = {}
        self._generation = 0
        self.binds = Bucket(BINDS_PER_S, BINDS_PER_S)

    def set_servers(self, servers: Iterable[NodePublic]) -> None:
        """Who may relay for us, best first."""
        self._servers = tuple(servers)

    # --- events ---

    def search(self, peer: NodePublic, disco: DiscoPublic, now: Seconds, *, is_urgent: bool = False) -> list[Effect]:
        """The peer cannot be reached directly: see whether somebody relays. Not more often than the gaps allow."""
        meeting = self._meetings.setdefault(peer, _Meeting())
        if now - meeting.searched_at < (URGENT_GAP_S if is_urgent else SEARCH_GAP_S):
            return []
        meeting.searched_at = now
        out = self._rebind(meeting, now)
        start = meeting.searches * ASKED_AT_ONCE % len(self._servers) if self._servers else 0
        meeting.searches += 1
        for server in (*self._servers[start:], *self._servers[:start])[:ASKED_AT_ONCE]:
            request = AllocateRequest(self._pair(disco), self._next_generation())
            meeting.asked[server] = _Asked(request, now)
            out.append(Ask(server, request))
        return out

    def _rebind(self, meeting: _Meeting, now: Seconds) -> list[Effect]:
        """Bind anew where we were bound: our address may have changed, and the relay serves one only."""
        out: list[Effect] = []
        for allocation in meeting.allocations.values():
            if not allocation.is_working:
                out += allocation.bind(self._next_generation(), now)
        return out

    def on_response(self, server: NodePublic, generation: int, block: RelayBlock, now: Seconds) -> list[Effect]:
        """A member answered a request of ours; any other answer is ignored."""
        for peer, meeting in self._meetings.items():
            asked = meeting.asked.get(server)
            if asked is None or asked.request.generation != generation or not self._is_same_pair(asked.request, block):
                continue
            del meeting.asked[server]
            remote = next(key for key in asked.request.clients if key != self._own)
            if not self._is_sound(block):
                return []
            return [Tell(peer, CallMeMaybeVia(block)), *self._take(peer, remote, block, now)]
        return []

    def on_via(self, peer: NodePublic, disco: DiscoPublic, block: RelayBlock, now: Seconds) -> list[Effect]:
        """A peer proposes an allocation. disco: the key it sealed with, one of the two that are served."""
        meeting = self._meetings.setdefault(peer, _Meeting())
        if set(block.clients) != {self._own, disco} or not self._is_sound(block) or not meeting.vias.take(now):
            return []
        return self._take(peer, disco, block, now)

    def on_challenge(self, server: DiscoPublic, source: Endpoint, challenge: Bind, now: Seconds) -> list[Effect]:
        """A relay's Challenge came from `source`, its VNI included."""
        for meeting in self._meetings.values():
            found = meeting.allocations.get(server)
            if found is not None and found.block.vni == source.vni:
                return [*found.on_challenge(source, challenge, now)]
        return []

    def on_pong(self, peer: NodePublic, leg: Endpoint, now: Seconds) -> None:
        """The peer's pong came by this leg."""
        for allocation in self._allocations_of(peer):
            if allocation.leg == leg:
                allocation.on_proved(now)

    def forget(self, peer: NodePublic) -> list[Effect]:
        """The peer is gone, or has other keys: what was allocated for it serves it no more."""
        meeting = self._meetings.pop(peer, None)
        legs = [a.leg for a in meeting.allocations.values() if a.leg is not None] if meeting is not None else []
        return [Lost(peer, leg) for leg in legs]

    def forget_all(self) -> list[Effect]:
        """No peer relay shall be used any more."""
        return [effect for peer in list(self._meetings) for effect in self.forget(peer)]

    # --- time ---

    def next_deadline(self) -> Seconds | None:
        """When to call `on_deadline`; None: nothing waits."""
        times = [a.due for m in self._meetings.values() for a in m.allocations.values()]
        times += [asked.due for m in self._meetings.values() for asked in m.asked.values()]
        return Seconds(min(times)) if times else None

    def on_deadline(self, now: Seconds) -> list[Effect]:
        """Do what is due."""
        out: list[Effect] = []
        for meeting in self._meetings.values():
            for server, asked in list(meeting.asked.items()):
                if now >= asked.until:
                    del meeting.asked[server]
                elif now >= asked.again_at:
                    asked.again_at = asked.until
                    out.append(Ask(server, asked.request))
            for key, allocation in list(meeting.allocations.items()):
                if now >= allocation.due:
                    out += allocation.on_deadline(self._next_generation(), now)
                    if allocation.step is Step.OVER:
                        del meeting.allocations[key]
        return out

    # --- questions ---

    def has_leg(self, peer: NodePublic, leg: Endpoint) -> bool:
        """Whether DISCO of this peer may come and go by that leg."""
        return any(allocation.leg == leg for allocation in self._allocations_of(peer))

    def is_awaited(self, server: DiscoPublic) -> bool:
        """Whether a handshake with a relay of this key is under way: nobody else's Challenge costs a cipher."""
        found = (m.allocations.get(server) for m in self._meetings.values())
        return any(allocation is not None and allocation.step is Step.BINDING for allocation in found)

    # --- inside ---

    def _allocations_of(self, peer: NodePublic) -> Iterable[Allocation]:
        meeting = self._meetings.get(peer)
        return meeting.allocations.values() if meeting is not None else ()

    def _take(self, peer: NodePublic, remote: DiscoPublic, block: RelayBlock, now: Seconds) -> list[Effect]:
        """Bind to this allocation, unless we are at it, it works, or a later one is known."""
        meeting = self._meetings[peer]
        had = meeting.allocations.get(block.server)
        if had is not None and had.remote == remote:
            if block.lamport < had.block.lamport:
                return []
            if (block.lamport, block.vni) == (had.block.lamport, had.block.vni):
                if had.is_working or now - had.proved_at < FRESH_S:
                    return []
                return [*had.bind(self._next_generation(), now)]
        out: list[Effect] = [Lost(peer, had.leg)] if had is not None and had.leg is not None else []
        ways = tuple(way for way in dict.fromkeys(block.endpoints) if self._admit(way))[:WAYS_MAX]
        if not ways:
            return out
        allocation = Allocation(peer, remote, block, ways, now)
        meeting.allocations.pop(block.server, None)
        out += self._make_room(meeting)
        meeting.allocations[block.server] = allocation
        return [*out, *allocation.bind(self._next_generation(), now)]

    def _make_room(self, meeting: _Meeting) -> list[Effect]:
        """The oldest gives way: of this peer when it has its share, of anybody when there are too many."""
        everybody = [(m, key) for m in self._meetings.values() for key in m.allocations]
        if len(meeting.allocations) >= ALLOCATIONS_PER_PEER:
            everybody = [(meeting, key) for key in meeting.allocations]
        elif len(everybody) < ALLOCATIONS_MAX:
            return []
        owner, oldest = min(everybody, key=lambda found: found[0].allocations[found[1]].proved_at)
        gone = owner.allocations.pop(oldest)
        return [Lost(gone.peer, gone.leg)] if gone.leg is not None else []

    def _is_sound(self, block: RelayBlock) -> bool:
        return 0 < block.vni <= VNI_MAX and block.server != self._own

    def _is_same_pair(self, request: AllocateRequest, block: RelayBlock) -> bool:
        return set(request.clients) == set(block.clients)

    def _pair(self, disco: DiscoPublic) -> tuple[DiscoPublic, DiscoPublic]:
        first, second = sorted((self._own, disco), key=lambda key: key.raw)
        return first, second

    def _next_generation(self) -> int:
        """Never zero: that means no handshake."""
        self._generation = self._generation % 0xFFFFFFFF + 1
        return self._generation
