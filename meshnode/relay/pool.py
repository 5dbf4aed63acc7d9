"""One connection per relay region in use: home always, idle ones retire.

Signatures; the body follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from meshnode.base.addr import RegionId
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.base.units import Seconds
from meshnode.netmap.model import RelayMap
from meshnode.run.clock import Clock


class RelayState(Enum):
    """What a region's connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DOWN = "down"
    """Lost, or never reached, for more than a second; still being tried while anybody needs it."""
    CLOSED = "closed"
    """Nobody needs it; the next packet opens it again, so this is not "down"."""


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region's connection as status shows it."""

    region: RegionId
    code: str
    name: str
    state: RelayState
    since: Seconds
    node: str
    """Name of the relay node connected to; '' while not connected."""
    is_home: bool
    rtt_s: float | None
    health: str
    """What the relay says is wrong with us; '' when nothing."""
    error: str
    """Why the last attempt failed; '' after success."""
    rx_bytes: int
    tx_bytes: int
    dropped: int
    """Data packets given up because the connection was too slow."""


class RelayPool:
    """The relay connections of one node. Made inside a running loop; ended by `aclose`."""

    on_packet: Callable[[RegionId, NodePublic, bytes], None]
    """(region, sender, data): DISCO and WireGuard alike; wire.disco.is_disco tells them apart."""
    on_state: Callable[[RegionId, RelayState], None]
    on_peer_gone: Callable[[RegionId, NodePublic, int], None]
    """(region, peer, reason): wire.derp.GONE_*."""

    def __init__(
        self,
        private: NodePrivate,
        *,
        clock: Clock | None = None,
        ca_file: str = "",
        allow_insecure: bool = False,
        plain: bool = False,
    ) -> None:
        """allow_insecure: honour the map's InsecureForTests; plain: speak HTTP without TLS to every relay."""
        raise NotImplementedError

    def set_private_key(self, private: NodePrivate) -> None:
        """Another node key: every connection is closed and the home one dialled again."""
        raise NotImplementedError

    def set_map(self, relays: RelayMap) -> None:
        """Take a new relay map; a connection whose region changed or vanished is closed."""
        raise NotImplementedError

    def set_home(self, region: RegionId) -> None:
        """Keep this region connected and tell every relay which of them is our home. 0: none."""
        raise NotImplementedError

    @property
    def home(self) -> RegionId:
        """The region last set."""
        raise NotImplementedError

    async def nearest(self, timeout_s: float = 3.0) -> RegionId:
        """The region that answers a TCP connect first, 0 if none does; at once when there is only one."""
        raise NotImplementedError

    def send(self, region: RegionId, peer: NodePublic, data: bytes) -> bool:
        """Queue one packet; never blocks. False: no such region, too long, or the pool is closed."""
        raise NotImplementedError

    def status(self) -> tuple[RegionStatus, ...]:
        """Every region connected or tried, home first."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        raise NotImplementedError
