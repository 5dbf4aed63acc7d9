"""Builds a Status out of the rooms, without I/O: the netmap, the path machines, the engine's counters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meshnode.base.keys import NodePublic
from meshnode.control.client import Phase
from meshnode.netmap.rules import describe
from meshnode.node.status import ACTIVE_S, PeerTraffic, RelayHome, Status

if TYPE_CHECKING:
    from meshnode.node.house import House

BACKEND: Final = {
    Phase.STARTING: "Starting",
    Phase.CONNECTING: "Starting",
    Phase.NEEDS_LOGIN: "NeedsLogin",
    Phase.NEEDS_APPROVAL: "NeedsMachineAuth",
    Phase.RUNNING: "Running",
    Phase.DEGRADED: "Running",
    Phase.EXPIRED: "NeedsLogin",
    Phase.LOGGED_OUT: "NeedsLogin",
    Phase.FAILED: "Stopped",
}
"""Our phases in the words that scripts know from tailscale."""


def status_of(house: House) -> Status:
    """Everything at this moment."""
    from meshnode import __version__

    netmap, state = house.netmap.value, house.control.state
    wall, now = house.clock.wall(), house.clock.now()
    region = netmap.relays.regions.get(house.home.region) if netmap else None
    return Status(
        version=__version__,
        backend_state=BACKEND[state.phase],
        reason=state.reason,
        since=wall - (now - state.since) if state.since else wall,
        auth_url=state.url,
        netmap=netmap,
        home=RelayHome(house.home.region, region.code if region else "", house.home.settled.is_set()),
        endpoints=house.reach.endpoints,
        traffic={p.id: _traffic(house, p.key, wall, now) for p in netmap.peers.values()} if netmap else {},
        interface=house.interface.name if house.interface else "",
        health=netmap.health if netmap else (),
        filter_rules=tuple(describe(netmap.rules)) if netmap else ("deny everything: no netmap yet",),
        counters=house.engine.stats() | house.discovery.counters() | {"engine_lost": house.engine.lost_count},
    )


def _traffic(house: House, key: NodePublic, wall: float, now: float) -> PeerTraffic:
    try:
        stats = house.engine.peer_stats(key)
    except KeyError:
        return PeerTraffic()
    handshake_ns, found = stats["last_handshake_ns"], house.discovery.status(key)
    age = (house.clock.boot_ns() - handshake_ns) / 1e9
    traffic = PeerTraffic(
        rx_bytes=stats["rx_bytes"],
        tx_bytes=stats["tx_bytes"],
        last_handshake=wall - age if handshake_ns else None,
        is_active=bool(handshake_ns) and age < ACTIVE_S,
    )
    if found is None:
        return traffic
    return replace(
        traffic,
        path_state=found.state,
        since=wall - (now - found.since),
        reason=found.reason,
        endpoint=found.endpoint,
        latency_s=found.latency_s,
        candidates=tuple(str(c) for c in found.candidates),
    )
