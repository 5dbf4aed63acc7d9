"""The values port mapping speaks in: services, leases, what a mapper wants done, and what became of it.

Source: docs/protocol/paths.md 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

from meshnode.base.addr import TAILNET_V4, Endpoint
from meshnode.base.units import Seconds
from meshnode.wire.upnp import Service as IgdService

LIFETIME_S: Final = 7200
"""What is asked for."""
LOWEST_PORT: Final = 1024
"""Ports below belong to the gateway's own services."""
_HIDDEN: Final = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("169.254.0.0/16"),
    TAILNET_V4,
)
_NO_HOST: Final = (IPv4Network("0.0.0.0/8"), IPv4Network("127.0.0.0/8"), IPv4Network("224.0.0.0/3"))


class Protocol(StrEnum):
    """How a gateway is asked."""

    PMP = "NAT-PMP"
    PCP = "PCP"
    UPNP = "UPnP"


@dataclass(frozen=True, slots=True)
class Gateway:
    """The way out: the next hop of the default route, and ourselves as it sees us."""

    ip: IPv4Address
    client: IPv4Address
    interface: str


@dataclass(frozen=True, slots=True)
class Presence:
    """Which protocols the gateway speaks; None: not known."""

    upnp: bool | None = None
    pmp: bool | None = None
    pcp: bool | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A mapping that a gateway granted."""

    protocol: Protocol
    external: Endpoint
    internal_port: int
    renew_at: Seconds
    until: Seconds
    """Loop time of its end; a permanent one is renewed all the same and treated as if it ended."""
    igd: IgdService | None = None
    """With UPnP: who granted it."""


class Send(NamedTuple):
    """Send this datagram to the gateway's port 5351."""

    data: bytes


class Search(NamedTuple):
    """Search for UPnP gateways, by unicast to the gateway and by multicast."""


class Fetch(NamedTuple):
    """One HTTP exchange with the gateway; its Answer is wanted before anything else is fetched."""

    port: int
    target: str
    action: str = ""
    """SOAPAction of a POST; empty: GET."""
    body: bytes = b""


class Mapped(NamedTuple):
    """Our endpoint outside is this one now; None: there is none any more."""

    external: Endpoint | None


Effect = Send | Search | Fetch | Mapped


class Answer(NamedTuple):
    """What a Fetch brought."""

    status: int
    """HTTP status; 0: no answer."""
    body: bytes = b""


def is_hidden(ip: IPv4Address) -> bool:
    """Whether an address of a gateway lies behind another NAT."""
    return any(ip in network for network in _HIDDEN)


def is_no_host(ip: IPv4Address) -> bool:
    """Whether an address can be nobody's: a gateway without a connection says such."""
    return any(ip in network for network in _NO_HOST)


def refusal_of(ip: IPv4Address, port: int) -> str:
    """Why a mapping to this external address and port is of no use; empty if it is."""
    if is_no_host(ip):
        return "the gateway has no address outside"
    if is_hidden(ip):
        return f"the gateway's own address {ip} is private: another NAT stands before it"
    if port < LOWEST_PORT:
        return f"the gateway mapped port {port}, which is reserved"
    return ""
