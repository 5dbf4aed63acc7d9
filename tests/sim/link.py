"""One direction of a link to a host: loses, delays, reorders, doubles, cuts and scrubs UDP."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from meshnode.base.addr import Endpoint


class Stun(NamedTuple):
    """A question to a STUN server (seen None), or its answer: where the question came from."""

    txid: int
    seen: Endpoint | None = None


class Wg(NamedTuple):
    """A WireGuard packet in small."""

    kind: str
    """data, keepalive, initiation or response"""
    session: int
    number: int
    size: int
    """On the wire, IP header included."""


@dataclass(slots=True, frozen=True)
class Packet:
    """A UDP packet on its way. `sender` names the host that made it, whatever boxes did to its source."""

    sender: str
    source: Endpoint
    target: Endpoint
    data: bytes | Wg | Stun

    @property
    def size(self) -> int:
        """Of the IP packet."""
        if isinstance(self.data, Wg):
            return self.data.size
        length = len(self.data) if isinstance(self.data, bytes) else 40
        return length + (48 if self.target.ip.version == 6 else 28)


@dataclass
class Link:
    """All figures may be changed while it runs."""

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reorder: float = 0.0
    """Share of packets that are overtaken by what comes within the next 20 ms."""
    duplicate: float = 0.0
    limit: int = 0
    """Larger IP packets vanish without a word; 0: none does."""
    is_cut: bool = False
    scrubs_wireguard: bool = False
    """Drops WireGuard and lets everything else pass."""
    last_at: float = -1e9

    def is_clear(self) -> bool:
        """Whether packets pass at once and unharmed."""
        return not (
            self.loss or self.delay_s or self.jitter_s or self.reorder or self.duplicate or self.limit
            or self.is_cut or self.scrubs_wireguard
        )  # fmt: skip

    def carry(self, packet: Packet, now: float, dice: random.Random) -> tuple[float, ...]:
        """After how many seconds the packet arrives, for each copy of it; empty: it is lost."""
        if self.is_cut or (self.limit and packet.size > self.limit):
            return ()
        if self.scrubs_wireguard and isinstance(packet.data, Wg):
            return ()
        if self.loss and dice.random() < self.loss:
            return ()
        delay = self.delay_s + (dice.uniform(0.0, self.jitter_s) if self.jitter_s else 0.0)
        if self.reorder and dice.random() < self.reorder:
            delay += dice.uniform(0.0, 0.02)
        else:
            self.last_at = max(self.last_at, now + delay)
            delay = self.last_at - now
        if self.duplicate and dice.random() < self.duplicate:
            return (delay, delay + 0.001)
        return (delay,)
