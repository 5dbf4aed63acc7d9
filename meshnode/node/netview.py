"""NetView: the last netcheck's report as people and programs read it.

`to_json` has the field names of `tailscale netcheck --format=json` where they exist, durations in nanoseconds as
there; NAT, Home, Regions and the rest are ours, in milliseconds.
Source: docs/protocol/paths.md 4.2; docs/protocol/node-surface.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.base.addr import Endpoint, RegionId
from meshnode.core.report import Nat, NetReport, RegionReading, nat_of
from meshnode.netmap.model import RelayMap
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.node.status import rfc3339

if TYPE_CHECKING:
    from meshnode.node.house import House


@dataclass(frozen=True, slots=True)
class NetView:
    """A report, and what it means for this node now."""

    report: NetReport
    made_at: float | None
    """Wall seconds of its end; None: there is none yet."""
    nat: Nat
    nat_reason: str
    home: RegionId
    """The region peers are told; the report's choice may still be connecting."""
    is_home_connected: bool
    is_home_by_websocket: bool
    home_reason: str
    relays: RelayMap
    endpoints: tuple[tuple[Endpoint, EndpointKind], ...]

    def to_json(self) -> dict[str, Any]:
        """The object `meshnode netcheck --json` prints."""
        report = self.report
        return {
            "Now": rfc3339(self.made_at),
            "UDP": report.udp,
            "IPv4": report.ipv4,
            "IPv6": report.ipv6,
            "IPv4CanSend": report.ipv4_can_send,
            "IPv6CanSend": report.ipv6_can_send,
            "OSHasIPv6": report.os_has_ipv6,
            "ICMPv4": bool(report.icmpv4),
            "MappingVariesByDestIP": report.mapping_varies,
            "UPnP": report.upnp,
            "PMP": report.pmp,
            "PCP": report.pcp,
            "PreferredDERP": int(report.home),
            "RegionLatency": self._nanoseconds(lambda reading: reading.best_s),
            "RegionV4Latency": self._nanoseconds(lambda reading: reading.v4_s),
            "RegionV6Latency": self._nanoseconds(lambda reading: reading.v6_s),
            "GlobalV4": str(report.global_v4 or ""),
            "GlobalV6": str(report.global_v6 or ""),
            "GlobalV4Counters": self._seen(4),
            "GlobalV6Counters": self._seen(6),
            "CaptivePortal": report.captive_portal,
            "STUNSent": report.stun_sent,
            "DurationMs": round(report.duration_s * 1000, 3),
            "NAT": self.nat.value,
            "NATReason": self.nat_reason,
            "Proxy": report.proxy,
            "Home": {
                "RegionID": int(self.home),
                "RegionCode": self._code(self.home),
                "Connected": self.is_home_connected,
                "WebSocket": self.is_home_by_websocket,
                "Reason": self.home_reason,
            },
            "Regions": [self._region(region) for region in self._nearest_first()],
            "Endpoints": [{"Addr": str(e), "Kind": kind.name.lower()} for e, kind in self.endpoints],
        }

    def _nanoseconds(self, pick: Callable[[RegionReading], float | None]) -> dict[str, int]:
        found = {region: pick(reading) for region, reading in self.report.regions.items()}
        return {str(region): round(value * 1e9) for region, value in found.items() if value is not None}

    def _seen(self, family: int) -> dict[str, int]:
        return {str(e): count for e, count in self.report.seen.items() if e.ip.version == family}

    def _code(self, region: RegionId) -> str:
        known = self.relays.regions.get(region)
        return known.code if known is not None else ""

    def _nearest_first(self) -> list[RegionId]:
        def key(region: RegionId) -> tuple[bool, float, int]:
            reading = self.report.regions.get(region)
            best = reading.best_s if reading is not None else None
            return best is None, best or 0.0, region

        return sorted(self.relays.regions, key=key)

    def _region(self, region: RegionId) -> dict[str, Any]:
        known, reading = self.relays.regions[region], self.report.regions.get(region, RegionReading())
        return {
            "RegionID": int(region),
            "RegionCode": known.code,
            "RegionName": known.name,
            "Home": region == self.home,
            "Measured": not known.no_home,
            "LatencyMs": _ms(reading.best_s),
            "V4Ms": _ms(reading.v4_s),
            "V6Ms": _ms(reading.v6_s),
            "HTTPSMs": _ms(reading.https_s),
            "ICMPMs": _ms(reading.icmp_s),
        }


def view_of(house: House) -> NetView:
    """Everything at this moment."""
    reach, netmap = house.reach, house.netmap.value
    report = reach.report
    nat, why = nat_of(report, reach.book.of(EndpointKind.LOCAL))
    return NetView(
        report=report,
        made_at=house.clock.wall() - (house.clock.now() - report.at) if report.at else None,
        nat=nat,
        nat_reason=why,
        home=house.home.region,
        is_home_connected=house.home.settled.is_set(),
        is_home_by_websocket=any(r.is_home and r.is_websocket for r in house.pool.status()),
        home_reason=house.home.choice.reason,
        relays=netmap.relays if netmap is not None else RelayMap(),
        endpoints=reach.book.entries(),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
