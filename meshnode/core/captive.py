"""Captive portals: whom to ask in plain HTTP, and what an answer that is not theirs says.

A relay repeats our challenge; whoever answers in its place cannot know that. A control server proves nothing: only
being sent to another host, or 511, counts against the network. No answer is no verdict.
Source: docs/protocol/paths.md 4.4; RFC 6585 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from meshnode.base.addr import RegionId
from meshnode.netmap.model import RelayMap

AFTER_S: Final = 0.2
"""Into a full report: a relay that answers STUN by then leaves nothing to ask."""
TOTAL_S: Final = 3.0
TARGETS_MAX: Final = 5
PATH: Final = "/generate_204"
HTTP_PORT: Final = 80
CHALLENGE_HEADER: Final = "X-Tailscale-Challenge"
RESPONSE_HEADER: Final = "x-tailscale-response"
CHALLENGE_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Target:
    """One server to ask."""

    host: str
    """As the Host header names it."""
    address: str
    """To connect to: an IP address, or a name."""
    port: int = HTTP_PORT
    is_relay: bool = True

    @property
    def challenge(self) -> str:
        """What a relay repeats: letters, digits, `.`, `-`, `_` and `:`."""
        fit = "".join(c for c in self.host if c.isascii() and (c.isalnum() or c in ".-_:"))
        return f"ts_{fit}"[:CHALLENGE_MAX]

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTP_PORT else f"{host}:{self.port}"


def relay_targets(relays: RelayMap, nearest: Sequence[RegionId]) -> list[Target]:
    """The relays that serve the check on port 80, of the regions in this order and then of the others."""
    order = [*nearest, *sorted(relays.regions)]
    found: dict[str, Target] = {}
    for region in order:
        known = relays.regions.get(region)
        for node in known.nodes if known is not None else ():
            with suppress(ValueError):
                if node.can_port80 and ip_address(node.ipv4).version == 4:
                    found.setdefault(node.name, Target(node.host, node.ipv4))
    return list(found.values())[:TARGETS_MAX]


def control_target(url: str) -> Target | None:
    """The control server by plain HTTP; None on this machine, where no portal is on the way."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    with suppress(ValueError):
        if ip_address(host).is_loopback:
            return None
    if not host or host == "localhost":
        return None
    port = HTTP_PORT if parts.scheme == "https" else parts.port or HTTP_PORT
    return Target(host, host, port, is_relay=False)


def judge(target: Target, status: int, headers: Mapping[str, str]) -> bool | None:
    """Whether this answer is a portal's; None: it does not tell. headers: lower-case names."""
    if target.is_relay:
        return status != 204 or headers.get(RESPONSE_HEADER) != f"response {target.challenge}"
    if status == 511:
        return True
    if 300 <= status <= 399:
        with suppress(ValueError):
            return (urlsplit(headers.get("location", "")).hostname or target.host) != target.host.lower()
    return False if status == 204 else None


def sum_up(verdicts: Iterable[tuple[Target, bool | None]]) -> tuple[bool | None, str]:
    """(the verdict of all, as a sentence if there is a portal): one portal's answer outweighs the rest."""
    known = [(target, verdict) for target, verdict in verdicts if verdict is not None]
    for target, verdict in known:
        if verdict:
            whom = "the relays" if target.is_relay else "the control server"
            return True, f"a captive portal at this network answers for {whom}: open a browser and log in"
    return (False if known else None), ""
