"""The way out of this machine: the next hop of the default route, as port mapping wants it.

Asks the kernel which way it would send to the outside; a gateway counts only if its address is private, and in a
container only if asked for: there it is a bridge of the host, which maps nothing.
Source: docs/protocol/paths.md 5.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address
from typing import Final

from meshnode.core.portmap_values import Gateway, is_hidden

OUTSIDE: Final = IPv4Address("192.0.2.1")
"""Nobody's address; nothing is sent there, only the way is looked up."""
CONTAINER_MARKS: Final = ("/.dockerenv", "/run/.containerenv")

_RTM_GETROUTE: Final = 26
_RTM_NEWROUTE: Final = 24
_NLM_F_REQUEST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PREFSRC: Final = 7
_HEADER: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE: Final = 8192


def default_gateway() -> Gateway | None:
    """The private IPv4 gateway of the default route; None if there is none."""
    if not hasattr(socket, "AF_NETLINK"):
        return None
    try:
        answer = _ask_kernel()
    except OSError:
        return None
    found = dict(_attributes(answer[_HEADER.size + _ROUTE.size :])) if _is_route(answer) else {}
    hop, source, index = found.get(_RTA_GATEWAY, b""), found.get(_RTA_PREFSRC, b""), found.get(_RTA_OIF, b"")
    if len(hop) != 4 or len(source) != 4 or len(index) != 4:
        return None
    ip = IPv4Address(hop)
    if not is_hidden(ip):
        return None
    try:
        name = socket.if_indextoname(int.from_bytes(index, "little" if struct.pack("=H", 1)[0] else "big"))
    except OSError:
        return None
    return Gateway(ip, IPv4Address(source), name)


def is_in_container() -> bool:
    """Whether this process runs where the gateway is a bridge of the host."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(os.path.exists(mark) for mark in CONTAINER_MARKS)


def _ask_kernel() -> bytes:
    """One route query, one answer. OSError if the kernel refuses."""
    query = _ROUTE.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + _ATTRIBUTE.pack(8, _RTA_DST) + OUTSIDE.packed
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) as sock:
        sock.settimeout(1.0)
        sock.send(_HEADER.pack(_HEADER.size + len(query), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + query)
        return sock.recv(_RECEIVE)


def _is_route(answer: bytes) -> bool:
    return len(answer) >= _HEADER.size + _ROUTE.size and _HEADER.unpack_from(answer)[1] == _RTM_NEWROUTE


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
