"""Addresses: text in, value out, no resolver.

`Endpoint` is an IP and a port of the underlay or the tailnet; `Prefix` is a network with no host
bits; both rest on the standard library's `ipaddress`. Packed forms are 4 or 16 bytes, network order.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple, NewType

IP = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
RegionId = NewType("RegionId", int)
"""A relay region's number; 0 means none."""

TAILNET_V4 = IPv4Network("100.64.0.0/10")
TAILNET_V6 = IPv6Network("fd7a:115c:a1e0::/48")


class Endpoint(NamedTuple):
    """An IP address and a port, or a leg of a peer relay there. `str` brackets IPv6, as URLs do."""

    ip: IP
    port: int
    vni: int = 0
    """The virtual network of a peer relay at this address that leads to one peer; 0: the address itself."""
    socket: int = 0
    """Which of our extra sockets speaks with it (port prediction); 0: the tunnel's own."""

    def __str__(self) -> str:
        text = f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"
        return f"{text}:vni:{self.vni}" if self.vni else text

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `a.b.c.d:port` or `[v6]:port`. Raises ValueError naming the text."""
        host, sep, port = text.rpartition(":")
        if not sep or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not an address with a port")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address wants brackets, as [::1]:80")
        return cls(parse_ip(host), int(port))


def parse_ip(text: str) -> IP:
    """Read an address; a v4-mapped one becomes plain IPv4. Raises ValueError naming the text."""
    return unmap(ip_address(text))


def unmap(ip: IP) -> IP:
    """::ffff:a.b.c.d as a.b.c.d; anything else unchanged."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def from_packed(raw: bytes) -> IP:
    """An address from its 4 or 16 packed bytes."""
    return unmap(IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw))


def parse_prefix(text: str) -> Prefix:
    """Read `a.b.c.d/n` or a bare address. Host bits set: ValueError naming the text."""
    return ip_network(text, strict=True)


def is_tailnet(ip: IP) -> bool:
    """Whether the address lies in the ranges Tailscale and Headscale hand out."""
    return ip in (TAILNET_V4 if ip.version == 4 else TAILNET_V6)


def split_host_port(text: str, *, default_host: str = "") -> tuple[str, int]:
    """Split `host:port`, `[v6]:port` or `:port`. Raises ValueError naming the text."""
    host, sep, port = text.rpartition(":")
    if not sep or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} has no port; write HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host or default_host, int(port)
