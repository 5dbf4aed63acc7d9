"""NetInfo: what control is told of our network, and no more often than it matters.

Headscale sends every difference on to every peer, so a fact changes only when two reports in a row say so, or the
network itself changed; "not known" never replaces what was known; that no gateway maps ports is not worth a message;
latencies are rounded and alone no news.
Source: docs/protocol/control.md 8.
"""

from __future__ import annotations

from typing import Any, Final

from meshnode.base.addr import Endpoint
from meshnode.core.report import NetReport

DIGITS: Final = 3
"""Milliseconds are enough to sort regions by."""

GATEWAY: Final = frozenset({"UPnP", "PMP", "PCP"})


class NetInfo:
    """What control knows of our network."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._doubted: dict[str, Any] = {}
        """Facts that the last report contradicted."""
        self._at: float | None = None
        """Of the last report: one that is shown again confirms nothing."""
        self._is_elsewhere = False

    def note_link_change(self) -> None:
        """Another network: the next report is believed at once."""
        self._is_elsewhere = True

    def learn(self, report: NetReport, portmapped: Endpoint | None = None) -> dict[str, Any]:
        """The whole of it after a report. portmapped: an address a gateway gave us."""
        is_new, self._at = report.at != self._at, report.at
        if is_new and self._is_elsewhere:
            self._facts, self._doubted, self._is_elsewhere = {}, {}, False
        doubted = {}
        for name, value in _facts(report).items():
            if value is None or (value is False and name in GATEWAY and name not in self._facts):
                continue
            if name not in self._facts or (is_new and self._doubted.get(name) == value):
                self._facts[name] = value
            elif value != self._facts[name]:
                doubted[name] = value
        if is_new:
            self._doubted = doubted
        self._facts["HavePortMap"] = portmapped is not None
        return self._facts | {"DERPLatency": latencies(report)}


def latencies(report: NetReport) -> dict[str, float]:
    """`<region>-v4` and `<region>-v6` to seconds."""
    found: dict[str, float] = {}
    for region, reading in sorted(report.regions.items()):
        v4 = reading.v4_s if reading.v4_s is not None else reading.https_s
        for name, value in (("v4", v4), ("v6", reading.v6_s)):
            if value is not None:
                found[f"{region}-{name}"] = round(value, DIGITS)
    return found


def _facts(report: NetReport) -> dict[str, Any]:
    return {
        "MappingVariesByDestIP": report.mapping_varies,
        "WorkingIPv6": report.ipv6,
        "OSHasIPv6": report.os_has_ipv6,
        "WorkingUDP": report.udp if report.stun_sent else None,
        "WorkingICMPv4": report.icmpv4,
        "UPnP": report.upnp,
        "PMP": report.pmp,
        "PCP": report.pcp,
    }
