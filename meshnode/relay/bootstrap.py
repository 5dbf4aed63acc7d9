"""BootstrapDns: addresses of a few names for clients whose own DNS fails, as they ask any relay at /bootstrap-dns.

Names are the operator's, the control server's above all; they are looked up every REFRESH_S, and a name that cannot be
resolved keeps what was found last.
Source: docs/protocol/paths.md 1.11.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qs

from meshnode.run.log import get_logger

REFRESH_S: Final = 600.0
RETRY_S: Final = 30.0
LOOKUP_S: Final = 10.0
ADDRESSES_MAX: Final = 32
"""Of one name."""
_log = get_logger("derp")


class BootstrapDns:
    """What the page says. `keep` runs for as long as it is served."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._found: dict[str, list[str]] = {}

    def page(self, query: str) -> bytes:
        """{"name": ["address", …]}: of the name in `?q=` if it is one of ours, else of all."""
        asked = parse_qs(query[:1024]).get("q", [""])[0].lower().rstrip(".")
        told = {asked: self._found[asked]} if asked in self._found else self._found
        return json.dumps(told).encode()

    async def keep(self) -> None:
        """Look the names up, now and again, until cancelled."""
        while True:
            fine = [await self._look_up(name) for name in self._names]
            await asyncio.sleep(REFRESH_S if all(fine) else RETRY_S)

    async def _look_up(self, name: str) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOOKUP_S):
                found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no answer in time"
            _log.warning("bootstrap_dns: a name cannot be resolved", name=name, error=reason)
            return False
        addresses = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
        self._found[name] = list(addresses)[:ADDRESSES_MAX]
        return True
