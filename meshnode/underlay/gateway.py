"""The way out of this machine: the next hop of the default route, as port mapping wants it.

Asks the kernel which way it would send to the outside; a gateway counts only if its address is private, and in a
container only if asked for: there it is a bridge of the host, which maps nothing.
Source: docs/protocol/paths.md 5.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from ipaddress import IPv4Address
from typing import Final

from meshnode.core.portmap_values import Gateway, is_hidden
from meshnode.wire import rtnetlink

OUTSIDE: Final = IPv4Address("192.0.2.1")
"""Nobody's address; nothing is sent there, only the way is looked up."""
CONTAINER_MARKS: Final = ("/.dockerenv", "/run/.containerenv")
ANSWER_S: Final = 1.0
RECEIVE: Final = 8192


def default_gateway() -> Gateway | None:
    """The private IPv4 gateway of the default route; None if there is none, or the kernel does not say."""
    if not hasattr(socket, "AF_NETLINK"):
        return None
    try:
        route = _ask_kernel()
        if route is None or not isinstance(route.gateway, IPv4Address) or not isinstance(route.source, IPv4Address):
            return None
        name = socket.if_indextoname(route.index)
    except OSError:
        return None
    return Gateway(route.gateway, route.source, name) if is_hidden(route.gateway) else None


def is_in_container() -> bool:
    """Whether this process runs where the gateway is a bridge of the host."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(os.path.exists(mark) for mark in CONTAINER_MARKS)


def _ask_kernel() -> rtnetlink.Route | None:
    """One question, one answer. OSError if the kernel refuses."""
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)) as sock:
        sock.settimeout(ANSWER_S)
        sock.send(rtnetlink.ask_route(OUTSIDE))
        for kind, body in rtnetlink.messages(sock.recv(RECEIVE)):
            if kind == rtnetlink.NEWROUTE:
                return rtnetlink.parse_route(body)
    return None
