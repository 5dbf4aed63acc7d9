"""Just enough rtnetlink to set an interface up: its MTU, addresses and routes.

Messages are built here as bytes and sent in batches; the kernel answers each with an errno. A hundred lines instead
of a library: nothing to load, no event loop of its own, and thousands of routes in one go.
Source: rtnetlink(7); docs/protocol/dataplane.md 8.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from meshnode.base.addr import IP, Prefix

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")
_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")

_NEWLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 20, 21, 24, 25
_REQUEST, _ACK, _EXCL, _CREATE = 1, 4, 0x200, 0x400
_NLMSG_ERROR: Final = 2
_IFLA_MTU, _IFLA_SEGS, _IFA_ADDRESS, _IFA_LOCAL, _RTA_DST, _RTA_OIF, _RTA_PREFSRC = 4, 40, 1, 2, 1, 4, 7
_IFF_UP, _IFA_F_NODAD = 1, 2
_TABLE_MAIN, _PROTO_STATIC, _SCOPE_LINK, _SCOPE_UNIVERSE, _UNICAST = 254, 4, 253, 0, 1

BATCH: Final = 64
"""Messages on the way at once: their answers fit the socket's buffer."""
TIMEOUT_S: Final = 5.0
_RECEIVE: Final = 64 * 1024

Message = tuple[int, int, bytes]
"""(type, flags, body)"""


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _family(ip: IP) -> int:
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def link_up(index: int, mtu: int) -> Message:
    """Set the MTU and bring the interface up."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
    return _NEWLINK, 0, body + _attribute(_IFLA_MTU, struct.pack("=I", mtu))


def super_packets(index: int, pieces: int) -> Message:
    """Let the kernel put at most so many packets into one."""
    return (
        _NEWLINK,
        0,
        _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(_IFLA_SEGS, struct.pack("=I", pieces)),
    )


def address(index: int, ip: IP, *, add: bool) -> Message:
    """Give the interface this one address, or take it back."""
    body = _IFADDR.pack(_family(ip), ip.max_prefixlen, _IFA_F_NODAD if ip.version == 6 else 0, 0, index)
    body += _attribute(_IFA_LOCAL, ip.packed) + _attribute(_IFA_ADDRESS, ip.packed)
    return (_NEWADDR, _CREATE | _EXCL, body) if add else (_DELADDR, 0, body)


def route(index: int, prefix: Prefix, source: IP, *, add: bool) -> Message:
    """Send this prefix to the interface, from `source`; or no longer."""
    family = _family(prefix.network_address)
    scope = _SCOPE_LINK if prefix.version == 4 else _SCOPE_UNIVERSE
    body = _ROUTE.pack(family, prefix.prefixlen, 0, 0, _TABLE_MAIN, _PROTO_STATIC, scope, _UNICAST, 0)
    body += _attribute(_RTA_DST, prefix.network_address.packed) + _attribute(_RTA_OIF, struct.pack("=I", index))
    body += _attribute(_RTA_PREFSRC, source.packed)
    return (_NEWROUTE, _CREATE | _EXCL, body) if add else (_DELROUTE, 0, body)


def run(messages: Sequence[Message]) -> list[int]:
    """Carry them out in order; the errno of each, 0 for those that went well. OSError: netlink itself failed."""
    results: list[int] = []
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.bind((0, 0))
        for start in range(0, len(messages), BATCH):
            batch = messages[start : start + BATCH]
            data = b"".join(_framed(message, number) for number, message in enumerate(batch, 1))
            sock.send(data)
            results += _answers(sock, len(batch))
    return results


def _framed(message: Message, number: int) -> bytes:
    kind, flags, body = message
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, number, 0) + body


def _answers(sock: socket.socket, count: int) -> list[int]:
    found = [-1] * count
    while -1 in found:
        data = sock.recv(_RECEIVE)
        while len(data) >= _HEADER.size:
            length, kind, _, number, _ = _HEADER.unpack_from(data)
            if kind == _NLMSG_ERROR and 1 <= number <= count:
                found[number - 1] = -_ERROR.unpack_from(data, _HEADER.size)[0]
            data = data[max((length + 3) & ~3, _HEADER.size) :]
    return found
