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

from meshnode.base.addr import IP, Endpoint, parse_ip
from meshnode.netmap.model import RelayNode

LOOKUP_S: Final = 2.0
LOOKUPS: Final = 2
"""Names asked for at once: a resolver that hangs must not keep others of this process waiting."""
KEPT_S: Final = 300.0
KEPT_IN_VAIN_S: Final = 10.0
KEPT_MAX: Final = 256
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
NO_FAMILY: Final = "none"


class Targets:
    """Resolves relays' names, with memory. now: loop time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: dict[str, tuple[float, dict[int, IP]]] = {}
        """Name → when it was looked up, and an address of each family."""
        self._turns = asyncio.Semaphore(LOOKUPS)

    async def find(self, node: RelayNode, family: int) -> Endpoint | None:
        """Where to send a binding request; None: nowhere."""
        text = node.stun_test_ip or (node.ipv4 if family == 4 else node.ipv6) or node.host
        if text == NO_FAMILY or node.stun_port <= 0:
            return None
        try:
            ip: IP | None = parse_ip(text)
        except ValueError:
            ip = (await self._look_up(text)).get(family)
        return Endpoint(ip, node.stun_port) if ip is not None and ip.version == family else None

    def forget(self) -> None:
        """Another network may have other names."""
        self._kept.clear()

    async def _look_up(self, host: str) -> dict[int, IP]:
        """Its addresses; who comes while another asks for the same name takes the answer."""
        if not self._is_kept(host):
            async with self._turns:
                if not self._is_kept(host):
                    if len(self._kept) >= KEPT_MAX:
                        self._kept.clear()
                    self._kept[host] = (self._now(), await _resolve(host))
        return self._kept[host][1]

    def _is_kept(self, host: str) -> bool:
        kept = self._kept.get(host)
        return kept is not None and self._now() - kept[0] < (KEPT_S if kept[1] else KEPT_IN_VAIN_S)


async def _resolve(host: str) -> dict[int, IP]:
    try:
        async with asyncio.timeout(LOOKUP_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError):
        return {}
    ips = [parse_ip(str(address[0]).partition("%")[0]) for _, _, _, _, address in found]
    return {ip.version: ip for ip in reversed(ips)}


def has_route(to: Endpoint) -> bool:
    """Whether the system knows a way there. Sends nothing."""
    try:
        with closing(socket.socket(FAMILIES[to.ip.version], socket.SOCK_DGRAM)) as sock:
            sock.connect((str(to.ip), to.port))
    except OSError:
        return False
    return True
