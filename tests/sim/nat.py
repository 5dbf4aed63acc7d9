"""A NAT box and a stateful firewall, pure and seeded: what leaves gets an address, what arrives may get in.

A box is described by how its mapping and its filtering depend on the far end (RFC 4787), how it chooses
ports and for how long it remembers. `is_closed` is the router's own input firewall: without one, a packet
from a stranger that arrives before ours to him takes the port for itself, and our mapping towards him moves.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, IntEnum

from meshnode.base.addr import IP, Endpoint

UNREPLIED_S = 30.0


class Depends(IntEnum):
    """On what of the far end a mapping, or a permission to come in, depends."""

    NOTHING = 0
    ADDRESS = 1
    ADDRESS_AND_PORT = 2


class Allocation(Enum):
    """Which outer port a new mapping gets."""

    PRESERVE = "preserve"
    RANDOM = "random"
    SEQUENTIAL = "sequential"
    PARITY = "parity"


@dataclass(frozen=True)
class NatKind:
    """What a box is like."""

    mapping: Depends = Depends.NOTHING
    filtering: Depends = Depends.ADDRESS_AND_PORT
    allocation: Allocation = Allocation.PRESERVE
    timeout_s: float = 120.0
    hairpin: bool = False
    refreshes_inbound: bool = True
    """What comes in keeps the mapping alive as well."""
    is_closed: bool = True
    is_static: bool = False
    """One to one with the only host behind it, for ever."""
    ports: tuple[int, int] = (1024, 65535)


FULL_CONE = NatKind(filtering=Depends.NOTHING)
ADDRESS_RESTRICTED = NatKind(filtering=Depends.ADDRESS)
PORT_RESTRICTED = NatKind()
PORT_RESTRICTED_OPEN = NatKind(is_closed=False)
ADDRESS_DEPENDENT = NatKind(mapping=Depends.ADDRESS, allocation=Allocation.RANDOM)
SYMMETRIC = NatKind(mapping=Depends.ADDRESS_AND_PORT, allocation=Allocation.RANDOM)
ONE_TO_ONE = NatKind(filtering=Depends.NOTHING, is_static=True)

KINDS = {
    "1:1": ONE_TO_ONE,
    "FC": FULL_CONE,
    "AR": ADDRESS_RESTRICTED,
    "PR": PORT_RESTRICTED,
    "PR*": PORT_RESTRICTED_OPEN,
    "ADM": ADDRESS_DEPENDENT,
    "SYM": SYMMETRIC,
}
"""The types of the NAT matrix by their names there."""


def _part(remote: Endpoint, depends: Depends) -> object:
    if depends is Depends.NOTHING:
        return None
    return remote.ip if depends is Depends.ADDRESS else remote


class _Mapping:
    """One inner endpoint's outer port."""

    __slots__ = ("allowed", "inner", "port", "used_at")

    def __init__(self, inner: Endpoint, port: int, now: float) -> None:
        self.inner = inner
        self.port = port
        self.used_at = now
        self.allowed: dict[object, float] = {}


class Nat:
    """The table of one box. Times are the caller's."""

    def __init__(self, kind: NatKind, dice: random.Random) -> None:
        self.kind = kind
        self.dice = dice
        self.exposed: IP | None = None
        """The host that gets everything of a static box."""
        self._mappings: dict[object, _Mapping] = {}
        self._ports: dict[int, _Mapping] = {}
        self._taken: dict[tuple[Endpoint, int], float] = {}
        self._has_moved = False
        self._last_port = dice.randint(*kind.ports)

    def outbound(self, inner: Endpoint, remote: Endpoint, now: float) -> int:
        """The outer port by which a packet of `inner` to `remote` leaves."""
        if self.kind.is_static:
            return inner.port
        own_key = (inner, "moved", remote)
        mapping = self._live(own_key, now) or self._of(inner, remote, now)
        if now - self._taken.get((remote, mapping.port), -1e9) < UNREPLIED_S:
            mapping = self._make(own_key, inner, now)
        mapping.used_at = now
        mapping.allowed[_part(remote, self.kind.filtering)] = now
        return mapping.port

    def inbound(self, remote: Endpoint, port: int, now: float) -> Endpoint | None:
        """The inner endpoint that a packet from `remote` to an outer port is for; None: nobody."""
        if self.kind.is_static:
            return Endpoint(self.exposed, port) if self.exposed is not None else None
        mapping = self._ports.get(port)
        part = _part(remote, self.kind.filtering)
        if mapping is not None and now - mapping.used_at < self.kind.timeout_s:
            passes = self.kind.filtering is Depends.NOTHING
            if passes or now - mapping.allowed.get(part, -1e9) < self.kind.timeout_s:
                if self.kind.refreshes_inbound:
                    mapping.used_at = mapping.allowed[part] = now
                return mapping.inner
        if not self.kind.is_closed:
            self._taken[(remote, port)] = now
        return None

    def forget(self) -> None:
        """The box restarts: everything is forgotten and no port is what it was."""
        self._mappings.clear()
        self._ports.clear()
        self._taken.clear()
        self._has_moved = True

    def _of(self, inner: Endpoint, remote: Endpoint, now: float) -> _Mapping:
        key = (inner, _part(remote, self.kind.mapping))
        return self._live(key, now) or self._make(key, inner, now)

    def _live(self, key: object, now: float) -> _Mapping | None:
        mapping = self._mappings.get(key)
        if mapping is None or now - mapping.used_at < self.kind.timeout_s:
            return mapping
        del self._mappings[key]
        del self._ports[mapping.port]
        return None

    def _make(self, key: object, inner: Endpoint, now: float) -> _Mapping:
        mapping = _Mapping(inner, self._allocate(inner.port, now), now)
        self._mappings[key] = self._ports[mapping.port] = mapping
        return mapping

    def _allocate(self, inner_port: int, now: float) -> int:
        """A free port by the box's rule; memory of dead mappings is cleared when it is in the way."""
        low, high = self.kind.ports
        for key in [k for k, m in self._mappings.items() if now - m.used_at >= self.kind.timeout_s]:
            del self._ports[self._mappings.pop(key).port]
        rule = self.kind.allocation
        preserves = rule is Allocation.PRESERVE and not self._has_moved
        if preserves and low <= inner_port <= high and inner_port not in self._ports:
            return inner_port
        if rule is Allocation.SEQUENTIAL:
            port = self._last_port
            while port in self._ports or port == self._last_port:
                port = low + (port + 1 - low) % (high - low + 1)
            self._last_port = port
            return port
        while True:
            port = self.dice.randint(low, high)
            if rule is Allocation.PARITY and port % 2 != inner_port % 2:
                continue
            if port not in self._ports and not (self._has_moved and port == inner_port):
                return port


class Firewall:
    """Lets in what answers to what went out; as routers do for IPv6, and hosts for themselves."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self._opened: dict[tuple[Endpoint, Endpoint], float] = {}

    def outbound(self, inner: Endpoint, remote: Endpoint, now: float) -> None:
        """A packet went out."""
        self._opened[(inner, remote)] = now

    def inbound(self, remote: Endpoint, inner: Endpoint, now: float) -> bool:
        """Whether a packet from `remote` may come in."""
        if now - self._opened.get((inner, remote), -1e9) >= self.timeout_s:
            return False
        self._opened[(inner, remote)] = now
        return True
