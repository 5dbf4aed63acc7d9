"""Where a relay's STUN server is: the addresses of its map entry, or of its name.

Names are looked up once in a while; nobody is asked over a family that has no route.
Source: docs/protocol/paths.md 1.14, 4.1.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Final

from meshnode.base.addr import Endpoint, parse_ip
from meshnode.netmap.model import RelayNode

LOOKUP_S: Final = 2.0
KEPT_S: Final = 300.0
KEPT_MAX: Final = 256
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
NO_FAMILY: Final = "none"


class Targets:
    """Resolves relays' names, with memory. now: loop time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: dict[tuple[str, int], tuple[float, Endpoint | None]] = {}

    async def find(self, node: RelayNode, family: int) -> Endpoint | None:
        """Where to send a binding request; None: nowhere."""
        text = node.stun_test_ip or (node.ipv4 if family == 4 else node.ipv6) or node.host
        if text == NO_FAMILY or node.stun_port <= 0:
            return None
        try:
            ip = parse_ip(text)
        except ValueError:
            return await self._look_up(text, node.stun_port, family)
        return Endpoint(ip, node.stun_port) if ip.version == family else None

    def forget(self) -> None:
        """Another network may have other names."""
        self._kept.clear()

    async def _look_up(self, host: str, port: int, family: int) -> Endpoint | None:
        key = (host, family)
        kept = self._kept.get(key)
        if kept is None or self._now() - kept[0] > KEPT_S:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            kept = self._kept[key] = (self._now(), await _resolve(host, port, family))
        found = kept[1]
        return Endpoint(found.ip, port) if found is not None else None


async def _resolve(host: str, port: int, family: int) -> Endpoint | None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_S):
            found = await loop.getaddrinfo(host, port, family=FAMILIES[family], type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError):
        return None
    return Endpoint(parse_ip(str(found[0][4][0]).partition("%")[0]), port) if found else None


def has_route(to: Endpoint) -> bool:
    """Whether the system knows a way there. Sends nothing."""
    try:
        with closing(socket.socket(FAMILIES[to.ip.version], socket.SOCK_DGRAM)) as sock:
            sock.connect((str(to.ip), to.port))
    except OSError:
        return False
    return True
