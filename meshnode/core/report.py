"""What we know of the network this machine is in: one netcheck's result, a value.

Made by the netcheck, read by home choice, endpoint gathering, port prediction, `netcheck`, `status` and the
sentence that says why a peer is relayed. Tri-states: None is "not known".
Source: docs/protocol/paths.md 4.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds

_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RegionReading:
    """One region's latency in one report, by how it was measured; seconds, None where nothing answered."""

    v4_s: float | None = None
    """STUN over IPv4."""
    v6_s: float | None = None
    """STUN over IPv6."""
    https_s: float | None = None
    """Request to first byte on an established connection; asked only when STUN is silent."""
    icmp_s: float | None = None

    @property
    def best_s(self) -> float | None:
        """The least of them."""
        return min((x for x in (self.v4_s, self.v6_s, self.https_s, self.icmp_s) if x is not None), default=None)


@dataclass(frozen=True, slots=True)
class NetReport:
    """One look at the network."""

    at: Seconds = Seconds(0.0)
    """Loop time of its end."""
    duration_s: float = 0.0
    is_full: bool = False
    """Every region was asked, not only the nearest."""
    stun_sent: int = 0
    """STUN requests that left. 0: no relay of the map answers STUN, so that `udp` says nothing."""
    udp: bool = False
    """A STUN answer came, over either family."""
    ipv4: bool = False
    """A packet came back over IPv4."""
    ipv6: bool = False
    ipv4_can_send: bool = False
    ipv6_can_send: bool = False
    os_has_ipv6: bool = False
    icmpv4: bool | None = None
    mapping_varies: bool | None = None
    """The NAT gives another address for each destination: "hard", symmetric."""
    global_v4: Endpoint | None = None
    """Our address as most servers saw it."""
    global_v6: Endpoint | None = None
    seen: Mapping[Endpoint, int] = field(default_factory=lambda: _NOTHING, hash=False)
    """Every mapped address and how many servers reported it."""
    regions: Mapping[RegionId, RegionReading] = field(default_factory=lambda: _NOTHING, hash=False)
    home: RegionId = RegionId(0)
    """0: none could be chosen."""
    home_reason: str = ""
    """Why this home: a sentence with both figures."""
    upnp: bool | None = None
    pmp: bool | None = None
    pcp: bool | None = None
    captive_portal: bool | None = None
    proxy: str = ""
    """HTTP proxy in the way of TCP, host and port only; empty: none is used."""


class Nat(StrEnum):
    """What stands between us and the world, as far as hole punching cares."""

    NONE = "none"
    EASY = "easy"
    HARD = "hard"
    UNKNOWN = "unknown"


NAT_WORDS: Final = {
    Nat.NONE: "no NAT: servers see the address this machine has",
    Nat.EASY: "every destination sees the same address and port, so that peers can be met there",
    Nat.HARD: "each destination sees another port, so that peers behind such a NAT too are reached by relay only",
    Nat.UNKNOWN: "it takes two STUN servers that answer to tell",
}
NO_UDP: Final = "no STUN server answers by UDP"
NO_STUN: Final = "no relay of this tailnet has a STUN server to ask"


def nat_of(report: NetReport, own: Collection[Endpoint]) -> tuple[Nat, str]:
    """(kind, why in words). own: the endpoints of this machine's interfaces."""
    if not report.udp:
        return Nat.UNKNOWN, NO_UDP if report.stun_sent else NO_STUN
    if report.global_v4 is None and report.global_v6 is not None:
        kind = Nat.NONE if report.global_v6 in own else Nat.UNKNOWN
    elif report.global_v4 in own:
        kind = Nat.NONE
    elif report.mapping_varies is None:
        kind = Nat.UNKNOWN
    else:
        kind = Nat.HARD if report.mapping_varies else Nat.EASY
    return kind, NAT_WORDS[kind]
