"""Where a relay listens, who it is for its clients, and which others it is told of: text of an operator, checked.

Every problem is a ConfigError that names the setting and shows how it is written.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from typing import Final

from meshnode.base.addr import split_host_port
from meshnode.base.errors import ConfigError

OFF: Final = "off"
ANYWHERE: Final = "::"
"""Every address of both families."""
LOOPBACK: Final = "127.0.0.1"
NAME_MAX: Final = 253
PORT_MAX: Final = 65535
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def listen_addresses(text: str, name: str, *, default_host: str = ANYWHERE) -> list[tuple[str, int]]:
    """`[HOST]:PORT` as something to bind; none for '' and `off`. name: of the setting."""
    if not text or text == OFF:
        return []
    try:
        host, port = split_host_port(text, default_host=default_host)
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is no address; write :443 or 192.0.2.1:443") from None
    if host == ANYWHERE and not socket.has_ipv6:
        host = "0.0.0.0"
    return [(host, port)]


def usual_host(text: str, name: str) -> str:
    """A host name or an address in its one form: lower case, addresses as short as they are written."""
    word = text.lower().rstrip(".")
    with suppress(ValueError):
        address = ipaddress.ip_address(word.strip("[]"))
        if not (address.is_unspecified or address.is_multicast or "%" in word):
            return str(address)
        raise ConfigError(f"{name}: {text!r} is no address by which anybody reaches a relay")
    labels = word.split(".")
    if len(word) > NAME_MAX or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigError(
            f"{name}: {text!r} is neither a host name nor an IP address; write relay.example or 192.0.2.1"
        )
    return word


def parse_target(text: str, name: str, default_port: int) -> tuple[str, int]:
    """(host, port) of `HOST[:PORT]`; an IPv6 address before a port stands in brackets."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(text.strip("[]"))), default_port
    host, sep, port = text.rpartition(":")
    if not sep or text.endswith("]"):
        return usual_host(text, name), default_port
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX):
        raise ConfigError(f"{name}: {text!r} is not HOST[:PORT]; ports are 1 to {PORT_MAX}")
    return usual_host(host, name), int(port)
