"""The machine's network as far as paths depend on it, and what differs between two looks at it.

A look holds the addresses that packets can leave from now, and the one each family uses towards the world. What
containers and other tunnels do to their own interfaces is a minor change: paths that do not use them stay as they are.
Source: docs/protocol/paths.md 4.6, 7.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshnode.base.addr import IP, is_tailnet

VIRTUAL: Final = ("docker", "br-", "veth", "cni", "cali", "flannel", "virbr", "lxc", "podman", "kube")
"""Bridges and stubs of containers: of use on this host only."""
OTHER_TUNNELS: Final = ("zt", "wt0", "tailscale", "utun")


class Address(NamedTuple):
    """One address of one interface that is up."""

    ip: IP
    interface: str


@dataclass(frozen=True, slots=True)
class Network:
    """One look."""

    addresses: tuple[Address, ...] = ()
    """Of interfaces that are up and plugged in; containers' bridges count without."""
    outward: tuple[IP | None, IP | None] = (None, None)
    """What IPv4 and IPv6 packets to the world leave from; None: there is no way."""
    is_complete: bool = True
    """False: the kernel did not list its addresses, these are only the outward ones."""

    @property
    def ips(self) -> frozenset[IP]:
        """Every address once."""
        return frozenset(address.ip for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Change:
    """What a later look shows that an earlier one did not."""

    gone: frozenset[IP]
    came: frozenset[IP]
    moved: frozenset[int]
    """Families, 4 or 6, whose packets to the world leave from another address, or no longer at all."""
    is_minor: bool
    """Only interfaces of containers and of other tunnels changed."""


def is_aside(address: Address) -> bool:
    """Whether an address concerns containers, other tunnels, or one link only."""
    name, ip = address.interface, address.ip
    return (
        name.startswith((*VIRTUAL, *OTHER_TUNNELS)) or is_tailnet(ip) or (ip.version == 6 and ip.is_link_local)
    )  # fmt: skip


def compare(before: Network, after: Network) -> Change | None:
    """None if nothing differs."""
    moved = frozenset(
        family for family, was, now in zip((4, 6), before.outward, after.outward, strict=True) if was != now
    )
    gone, came = before.ips - after.ips, after.ips - before.ips
    if not gone and not came and not moved:
        return None
    is_minor = not moved and _all_aside(gone, before.addresses) and _all_aside(came, after.addresses)
    return Change(gone, came, moved, is_minor)


def _all_aside(ips: frozenset[IP], addresses: Iterable[Address]) -> bool:
    return all(is_aside(address) for address in addresses if address.ip in ips)
