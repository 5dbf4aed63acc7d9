"""One connection per relay region in use: home always, idle ones retire.

A peer is reached at its home region; if that is not connected but the peer was last heard by another
connection that is, the answer goes there, which saves a dial. Regions nobody wrote to for a minute are
closed, home never; at most RELAY_REGIONS_MAX at once.
Source: docs/protocol/paths.md 2.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final

from meshnode.base.addr import IP, RegionId
from meshnode.base.bounds import DERP_PACKET_MAX, PEERS_MAX, RELAY_REGIONS_MAX
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.core.proxies import Proxies
from meshnode.netmap.model import RelayMap
from meshnode.relay.client import RegionStatus, RelayClient, RelayState
from meshnode.relay.options import Carrier, DialOptions
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope
from meshnode.wire.disco import is_disco

__all__ = ["RegionStatus", "RelayPool", "RelayState"]

IDLE_S: Final = 60.0
SWEEP_S: Final = 15.0
NO_REGION: Final = RegionId(0)


def _ignore(*_: Any) -> None:
    """Until wiring sets the callback."""


class RelayPool:
    """The relay connections of one node. Made inside a running loop; ended by `aclose`."""

    def __init__(
        self,
        private: NodePrivate,
        *,
        clock: Clock | None = None,
        ca_file: str = "",
        allow_insecure: bool = False,
        plain: bool = False,
        carrier: Carrier | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        """allow_insecure: honour the map's InsecureForTests; plain: speak HTTP without TLS to every relay.

        carrier: who serves the connections (`Engine.adopt_relay`); None: this loop, a packet at a time.
        proxies: which HTTP proxy leads to a relay; None: none.
        """
        self._private = private
        self._clock = clock or Clock()
        self._options = DialOptions(ca_file, allow_insecure, plain, carrier, proxies or Proxies())
        self._scope = Scope("relays")
        self._map = RelayMap()
        self._clients: dict[RegionId, RelayClient] = {}
        self._routes: dict[bytes, RegionId] = {}
        self._keys: dict[bytes, NodePublic] = {}
        self._home = NO_REGION
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None
        self.unhandled_count = 0
        """Packets whose handler raised."""
        self.on_packet: Callable[[RegionId, NodePublic, bytes], None] = _ignore
        """(region, sender, data): DISCO and WireGuard alike; wire.disco.is_disco tells them apart."""
        self.on_state: Callable[[RegionId, RelayState], None] = _ignore
        self.on_peer_gone: Callable[[RegionId, NodePublic, int], None] = _ignore
        """(region, peer, reason): wire.derp.GONE_*."""

    @property
    def home(self) -> RegionId:
        """The region last set."""
        return self._home

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Completes with the first bug of one of our tasks."""
        return self._scope.failed

    # --- what to be connected to ---

    def set_private_key(self, private: NodePrivate) -> None:
        """Another node key: every connection is closed and the home one dialled again."""
        self._private = private
        for region in list(self._clients):
            self._drop(region)
        self.set_home(self._home)

    def set_map(self, relays: RelayMap) -> None:
        """Take a new relay map; a connection whose region changed or vanished is closed."""
        self._map = relays
        for region, client in list(self._clients.items()):
            if relays.regions.get(region) != client.region:
                self._drop(region)
        self.set_home(self._home)

    def set_home(self, region: RegionId) -> None:
        """Keep this region connected and tell every relay which of them is our home. 0: none."""
        self._home = region
        for each, client in self._clients.items():
            if each != region:
                if client.is_home:
                    # Peers that have not heard of the move send there: it stays for as long as an idle one does.
                    client.written_at = self._clock.now()
                client.set_home(False)
        home = self._open(region)
        if home is not None:
            home.set_home(True)

    def connect(self, region: RegionId) -> None:
        """Try a region once beside the home; if it answers it stays until it is idle."""
        client = self._open(region)
        if client is not None:
            client.written_at = self._clock.now()
            client.open()

    def ask(self, region: RegionId) -> None:
        """Ask a connected region's relay for a sign of life; `heard_at` shows it."""
        client = self._clients.get(region)
        if client is not None:
            client.ask()

    def heard_at(self, region: RegionId) -> float | None:
        """Loop time of the last frame from that region; None while it is not connected."""
        client = self._clients.get(region)
        return client.heard_at if client is not None else None

    @property
    def options(self) -> DialOptions:
        """How relays are reached, for who asks them something else."""
        return self._options

    def on_network(self, gone: Collection[IP] = ()) -> None:
        """The network changed (gone: addresses we lost) or the machine slept: which connections still live?"""
        texts = {str(ip) for ip in gone}
        for client in list(self._clients.values()):
            client.on_network(texts)

    # --- packets ---

    def send(self, region: RegionId, peer: NodePublic, data: bytes) -> bool:
        """Queue one packet; never blocks. False: no way known, too long, or the pool is closed."""
        raw = peer.raw
        client = self._clients.get(region)
        if client is None or not client.is_connected:
            other = self._clients.get(self._routes.get(raw, NO_REGION))
            if other is not None and other.is_connected:
                client = other
        client = client or self._open(region)
        if client is None or len(data) > DERP_PACKET_MAX:
            return False
        client.send(raw, data, urgent=is_disco(data))
        return True

    def _take_packet(self, region: RegionId, sender: bytes, data: bytes) -> None:
        key = self._keys.get(sender)
        if key is None:
            key = self._remember(sender)
        if self._routes.get(sender) != region:
            self._routes[sender] = region
        try:
            self.on_packet(region, key, data)
        except Exception as error:  # a bug, or an engine that does not keep up: one packet's worth, not a connection's
            self.unhandled_count += 1
            context = {"message": "a packet that came by relay could not be handled", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _remember(self, sender: bytes) -> NodePublic:
        if len(self._keys) >= PEERS_MAX:
            self._keys.clear()
            self._routes.clear()
        key = self._keys[sender] = NodePublic(sender)
        return key

    def _take_gone(self, region: RegionId, peer: NodePublic, reason: int) -> None:
        if self._routes.get(peer.raw) == region:
            del self._routes[peer.raw]
        self.on_peer_gone(region, peer, reason)

    # --- connections ---

    def _open(self, region: RegionId) -> RelayClient | None:
        client = self._clients.get(region)
        if client is not None:
            return client
        known = self._map.regions.get(region)
        if known is None or self._closed:
            return None
        while len(self._clients) >= RELAY_REGIONS_MAX:
            self._drop(min((c.written_at, r) for r, c in self._clients.items() if r != self._home)[1])
        client = self._clients[region] = RelayClient(
            known,
            self._private,
            self._options,
            clock=self._clock,
            scope=self._scope,
            on_packet=self._take_packet,
            on_gone=self._take_gone,
            on_state=self._take_state,
        )
        self._sweep_later()
        return client

    def _take_state(self, region: RegionId, state: RelayState) -> None:
        if state is not RelayState.CONNECTED:
            for peer in [p for p, r in self._routes.items() if r == region]:
                del self._routes[peer]
        if not self._closed:
            self.on_state(region, state)

    def _drop(self, region: RegionId) -> None:
        self._clients.pop(region).retire()

    def _sweep_later(self) -> None:
        if self._sweeper is None and not self._closed:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody wrote to for a while. What arrives does not count: peers reach us at our home."""
        self._sweeper = None
        now = self._clock.now()
        for region, client in list(self._clients.items()):
            if region != self._home and now - client.written_at > IDLE_S:
                self._drop(region)
        if any(region != self._home for region in self._clients):
            self._sweep_later()

    # --- the rest ---

    def status(self) -> tuple[RegionStatus, ...]:
        """Every region connected or tried, home first."""
        found = [c.status() for c in self._clients.values()]
        return tuple(sorted(found, key=lambda s: (not s.is_home, s.region)))

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for region in list(self._clients):
            self._drop(region)
        await self._scope.aclose()
