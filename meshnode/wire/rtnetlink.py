"""What the kernel says of links, addresses and routes by rtnetlink, and how it is asked.

Questions are bytes; answers and notices are cut into messages and parsed as far as we read them. A message cut short
ends its datagram and is no error: the next look finds what it meant.
Source: rtnetlink(7), netlink(7).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from struct import Struct
from typing import Final

from meshnode.base.addr import IP, from_packed

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWRULE, DELRULE = 32, 33
ERROR: Final = 2
DONE: Final = 3

GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
"""Links; IPv4 addresses, routes and rules; IPv6 addresses, routes and rules."""

_REQUEST: Final = 0x1
_REQUEST_DUMP: Final = 0x301
_IFF_UP: Final = 0x1
_IFF_LOWER_UP: Final = 0x10000
_IFLA_IFNAME: Final = 3
_IFLA_EXT_MASK: Final = 29
_SKIP_STATS: Final = 1 << 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_UNUSABLE: Final = 0x08 | 0x20 | 0x40
"""Duplicate found, deprecated, or not yet known to be ours alone."""
_IFA_OPTIMISTIC: Final = 0x04
_CLONED: Final = 0x200
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PREFSRC: Final = 7
_AF_INET: Final = 2
_HEADER: Final = Struct("=IHHII")
_ATTRIBUTE: Final = Struct("=HH")
_MASK: Final = Struct("=I")
_IFINFO: Final = Struct("=BxHiII")
_IFADDR: Final = Struct("=BBBBI")
_ROUTE: Final = Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    index: int
    name: str
    is_up: bool
    has_carrier: bool
    """Its cable is plugged in, or whatever it has in the place of one."""


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of an interface."""

    index: int
    ip: IP
    is_usable: bool
    """Packets may leave from it, and should."""


@dataclass(frozen=True, slots=True)
class Route:
    """How packets to somewhere leave."""

    index: int
    """Of the interface."""
    gateway: IP | None
    """The next hop; None: the target is a neighbour."""
    source: IP | None
    """Which of our addresses they leave from."""


def ask_links() -> bytes:
    """List every link, without its counters."""
    mask = _ATTRIBUTE.pack(_ATTRIBUTE.size + _MASK.size, _IFLA_EXT_MASK) + _MASK.pack(_SKIP_STATS)
    return _question(GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + mask)


def ask_addresses() -> bytes:
    """List every address."""
    return _question(GETADDR, _IFADDR.pack(0, 0, 0, 0, 0))


def ask_route(target: IPv4Address) -> bytes:
    """Which way packets there would take; one NEWROUTE answers."""
    body = _ROUTE.pack(_AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + _ATTRIBUTE.pack(8, _RTA_DST) + target.packed
    return _question(GETROUTE, body, _REQUEST)


def _question(kind: int, body: bytes, flags: int = _REQUEST_DUMP) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one datagram: (kind, body)."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def parse_link(body: bytes) -> Link | None:
    """The body of NEWLINK or DELLINK; None if it is cut short."""
    if len(body) < _IFINFO.size:
        return None
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    name = dict(_attributes(body[_IFINFO.size :])).get(_IFLA_IFNAME, b"")
    text = name.rstrip(b"\0").decode("ascii", "replace")
    return Link(index, text, bool(flags & _IFF_UP), bool(flags & _IFF_LOWER_UP))


def parse_address(body: bytes) -> InterfaceAddress | None:
    """The body of NEWADDR or DELADDR; None if it is cut short, or of another family."""
    if len(body) < _IFADDR.size:
        return None
    _, _, flags, _, index = _IFADDR.unpack_from(body)
    attributes = dict(_attributes(body[_IFADDR.size :]))
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    if len(raw) not in (4, 16):
        return None
    unusable = _IFA_UNUSABLE & ~0x40 if flags & _IFA_OPTIMISTIC else _IFA_UNUSABLE
    return InterfaceAddress(index, from_packed(raw), not flags & unusable)


def parse_route(body: bytes) -> Route | None:
    """The body of NEWROUTE; None if it is cut short or names no interface."""
    if len(body) < _ROUTE.size:
        return None
    attributes = dict(_attributes(body[_ROUTE.size :]))
    index = int.from_bytes(attributes.get(_RTA_OIF, b""), sys.byteorder)
    hop, source = attributes.get(_RTA_GATEWAY, b""), attributes.get(_RTA_PREFSRC, b"")
    if not index:
        return None
    return Route(index, *(from_packed(raw) if len(raw) in (4, 16) else None for raw in (hop, source)))


def is_clone(body: bytes) -> bool:
    """Whether the route of this body is one the kernel made for itself, on its way to one host."""
    return len(body) >= _ROUTE.size and bool(_ROUTE.unpack_from(body)[8] & _CLONED)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
