"""Our candidate addresses: what this machine's interfaces have, best first.

`choose` decides which of them peers may hear, and in which order; `local_endpoints` adds the engine's ports. Bridges
of containers come last and are few, so that starting a container changes nothing of note.
Source: docs/protocol/paths.md 4.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from meshnode.base.addr import IP, Endpoint, is_tailnet
from meshnode.base.bounds import OWN_ENDPOINTS_MAX
from meshnode.core.network import OTHER_TUNNELS, VIRTUAL, Address, Network

VIRTUAL_MAX: Final = 4
PER_V6_SUBNET_MAX: Final = 2
"""Temporary addresses would fill the list."""
ULA: Final = IPv6Network("fc00::/7")


def local_endpoints(network: Network, port4: int, port6: int, *, loopback_ok: bool = False) -> list[Endpoint]:
    """What to tell peers, best first. A port of 0 leaves its family out. loopback_ok: 127.0.0.1 and ::1 too."""
    ports = {4: port4, 6: port6}
    chosen = choose(network.addresses, loopback_ok=loopback_ok)
    return [Endpoint(ip, ports[ip.version]) for ip in chosen if ports[ip.version]][:OWN_ENDPOINTS_MAX]


def choose(addresses: Iterable[Address], *, loopback_ok: bool) -> list[IP]:
    """Which addresses peers should hear, in which order. Loopback only if asked for, or if there is nothing else."""
    real: list[IP] = []
    virtual: list[IP] = []
    loopback: list[IP] = []
    fallback: list[IP] = []
    for ip, interface in addresses:
        if interface.startswith(OTHER_TUNNELS) or is_tailnet(ip) or ip.is_multicast or ip.is_unspecified:
            continue
        if ip.is_loopback:
            loopback.append(ip)
        elif ip.is_link_local:
            if ip.version == 4:
                fallback.append(ip)
        elif interface.startswith(VIRTUAL):
            virtual.append(ip)
        else:
            real.append(ip)
    real = _thin_v6(real)
    out = real + virtual[:VIRTUAL_MAX] or fallback
    if loopback_ok or not out:
        out = out + loopback
    return list(dict.fromkeys(out))


def _thin_v6(ips: list[IP]) -> list[IP]:
    """At most two per IPv6 subnet; unique-local ones only without a global one."""
    has_global = any(ip.version == 6 and ip not in ULA for ip in ips)
    seen: dict[bytes, int] = {}
    out: list[IP] = []
    for ip in ips:
        if isinstance(ip, IPv6Address):
            subnet = ip.packed[:8]
            seen[subnet] = seen.get(subnet, 0) + 1
            if seen[subnet] > PER_V6_SUBNET_MAX or (has_global and ip in ULA):
                continue
        out.append(ip)
    return out
