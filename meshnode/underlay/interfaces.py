"""Looks at this machine's network: its addresses by netlink, and what packets to somewhere would leave from.

Where netlink is refused (some sandboxes), only the addresses that packets to the world leave from are known. Nothing
here sends a packet.
Source: docs/protocol/paths.md 4.6, 7.6.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Final

from meshnode.base.addr import IP, from_packed, parse_ip
from meshnode.core.network import VIRTUAL, Address, Network
from meshnode.wire import rtnetlink

WORLD_V4: Final = parse_ip("192.0.2.1")
WORLD_V6: Final = parse_ip("2001:db8::1")
"""Anywhere: addresses nobody has."""
ANSWER_S: Final = 1.0
RECEIVE: Final = 64 * 1024
DISCARD_PORT: Final = 9


def read_network() -> Network:
    """The machine's network as it is now."""
    outward = (source_towards(WORLD_V4), source_towards(WORLD_V6))
    if hasattr(socket, "AF_NETLINK"):
        with suppress(OSError):
            return Network(tuple(_read_addresses()), outward)
    found = tuple(Address(ip, "default") for ip in outward if ip is not None)
    return Network(found or (Address(parse_ip("127.0.0.1"), "lo"),), outward, is_complete=False)


def source_towards(target: IP) -> IP | None:
    """The address of ours that packets to `target` leave from; None: the system knows no way."""
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.connect((str(target), DISCARD_PORT))
            return from_packed(socket.inet_pton(family, sock.getsockname()[0].partition("%")[0]))
    except OSError:
        return None


def _read_addresses() -> Iterator[Address]:
    """OSError if the kernel refuses."""
    links = {link.index: link for body in _list(rtnetlink.ask_links()) if (link := rtnetlink.parse_link(body))}
    for body in _list(rtnetlink.ask_addresses()):
        address = rtnetlink.parse_address(body)
        link = links.get(address.index) if address is not None else None
        if address is None or link is None or not address.is_usable or not link.is_up:
            continue
        if link.has_carrier or link.name.startswith(VIRTUAL):  # a bridge has a carrier while a container runs
            yield Address(address.ip, link.name)


def _list(question: bytes) -> Iterator[bytes]:
    """The bodies of the answer."""
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)) as sock:
        sock.settimeout(ANSWER_S)
        sock.send(question)
        while True:
            data = sock.recv(RECEIVE)
            for kind, body in rtnetlink.messages(data):
                if kind == rtnetlink.DONE:
                    return
                if kind == rtnetlink.ERROR:
                    raise OSError("netlink refused to list links and addresses")
                yield body
