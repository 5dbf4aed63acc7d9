"""Builds a Status out of the rooms, without I/O: the netmap, the path machines, the engine's counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meshnode.base.units import Seconds
from meshnode.control.client import Phase
from meshnode.core.explain import Ours, Theirs, explain
from meshnode.core.report import nat_of
from meshnode.netmap.model import Netmap, Node
from meshnode.netmap.rules import describe
from meshnode.netmap.tailcfg import EndpointKind
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
WAYS: Final = ("rx_direct", "rx_relay", "tx_direct", "tx_relay")


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
        traffic=_all_traffic(house, netmap) if netmap else {},
        interface=house.interface.name if house.interface else "",
        health=_health(house, netmap),
        filter_rules=tuple(describe(netmap.rules)) if netmap else ("deny everything: no netmap yet",),
        counters=house.engine.stats()
        | house.discovery.counters()
        | house.links.counters()
        | house.reach.netcheck.counts
        | {"engine_lost": house.engine.lost_count},
    )


def _health(house: House, netmap: Netmap | None) -> tuple[str, ...]:
    """What is wrong with us, as control, a portal on the way and relays have it."""
    portal = (house.portal.text,) if house.portal.text else ()
    relays = (f"relay {r.code} says: {r.health}" for r in house.pool.status() if r.health)
    return (*(netmap.health if netmap else ()), *portal, *relays)


def _all_traffic(house: House, netmap: Netmap) -> dict[int, PeerTraffic]:
    wall, now, ours = house.clock.wall(), house.clock.now(), _ours(house)
    return {p.id: _traffic(house, p, ours, _theirs(netmap, p), wall, now) for p in netmap.peers.values()}


def _traffic(house: House, peer: Node, ours: Ours, theirs: Theirs, wall: float, now: Seconds) -> PeerTraffic:
    key = peer.key
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
        candidates=found.candidates,
        clock_offset=wall - now,
        why=explain(found, ours, theirs, now),
        is_relay_up=found.is_relay_up,
        hedges=tuple(str(h) for h in found.hedges),
        limit=found.limit,
        by_path={way: stats[f"{way}_bytes"] for way in WAYS},
        transitions=tuple((wall - now + at, str(state), reason) for at, state, reason in found.transitions),
        pings_sent=found.pings_sent,
        pongs_received=found.pongs_received,
    )


def _ours(house: House) -> Ours:
    """Our side of every path."""
    reach = house.reach
    families = {e.ip.version for e in reach.endpoints if not e.ip.is_loopback}
    nat, _ = nat_of(reach.report, reach.book.of(EndpointKind.LOCAL))
    return Ours(reach.report, nat, house.node.paths == "relay", 4 in families or not families, 6 in families)


def _theirs(netmap: Netmap, peer: Node) -> Theirs:
    """What a peer's Hostinfo says of its network; a control server may keep that to itself."""
    told = peer.hostinfo.get("NetInfo")
    info: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    region = netmap.relays.regions.get(peer.home)
    hard, udp = info.get("MappingVariesByDestIP"), info.get("WorkingUDP")
    return Theirs(
        hard if isinstance(hard, bool) else None,
        udp if isinstance(udp, bool) else None,
        peer.online,
        region.code if region else "",
    )
