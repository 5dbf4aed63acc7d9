"""Discovery: opens, seals and routes DISCO and keeps one path machine per peer.

Signatures; the body follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePublic
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock


@dataclass(frozen=True, slots=True)
class PingResult:
    """How a DISCO ping came back."""

    endpoint: Endpoint | None
    """The direct endpoint that answered; None: by relay."""
    region: RegionId
    """The relay region that carried it; 0: direct."""
    latency_s: float


class Discovery:
    """Every peer's path. Made inside a running loop; ended by `close`. All methods are of the loop's thread."""

    send_udp: Callable[[IP, int, bytes], None]
    """Engine.send_raw"""
    send_relay: Callable[[RegionId, NodePublic, bytes], bool]
    """RelayPool.send"""
    set_path: Callable[[NodePublic, Endpoint | None, RegionId, int], None]
    """Engine.set_path: (peer, direct, region, mode)"""
    kick: Callable[[NodePublic], None]
    """Engine.kick"""
    notify: Callable[[NodePublic, str, str, str], None]
    """(peer, old state, new state, reason)"""
    restun: Callable[[], None]
    """Our endpoints are wanted fresh; for the STUN client."""

    def __init__(
        self, private: DiscoPrivate, node: NodePublic, *, clock: Clock | None = None, loopback_ok: bool = False
    ) -> None: ...

    @property
    def public(self) -> DiscoPublic:
        """Our disco key, for control."""
        raise NotImplementedError

    # what the netmap says
    def on_netmap_peer(self, peer: Node) -> None:
        """Add a peer or take what changed of it."""

    def on_netmap_removed(self, key: NodePublic) -> None:
        """Forget a peer (removed, expired, or its node key changed)."""

    def set_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Our own endpoints, best first."""

    def set_node_key(self, node: NodePublic) -> None:
        """Our own node key changed."""

    # what the engine says (its on_* callbacks have these shapes)
    def on_disco(self, ip: IP, port: int, data: bytes) -> None: ...
    def on_send(self, peer: NodePublic, wanted: bool) -> None: ...
    def on_recv(self, peer: NodePublic, direct: Endpoint | None, region: int, what: int) -> None: ...
    def on_send_error(self, ip: IP, port: int, number: int) -> None: ...
    def on_handshake(self, peer: NodePublic, ok: bool) -> None: ...

    # what the relay pool says
    def on_relay_disco(self, region: RegionId, sender: NodePublic, data: bytes) -> None: ...
    def on_peer_gone(self, region: RegionId, peer: NodePublic, reason: int) -> None: ...
    def relay_up(self, region: RegionId) -> None: ...
    def relay_down(self, region: RegionId) -> None: ...

    # what the link says
    def on_link_change(self, gone: Iterable[IP] = ()) -> None:
        """Local addresses vanished, or (empty) everything may have changed, as after sleep."""

    # questions
    def status(self, peer: NodePublic) -> Any:
        """core.path.PathStatus, or None for a stranger."""

    async def ping(self, peer: NodePublic, timeout_s: float = 5.0) -> PingResult:
        """One DISCO ping by the best way. TimedOut, or PeerOffline when there is no way at all."""
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        """What was dropped and why."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel every timer and forget the keys."""
