"""Why packets for a peer go the way they go: one plain sentence out of what was measured.

Pure: the path machine's status, our netcheck, and what the peer says of its own network. The cause named is the
first that is proved; where nothing is proved, what was tried is told instead.
Source: docs/protocol/paths.md 8.10, 9.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshnode.base.addr import Endpoint
from meshnode.base.units import Seconds
from meshnode.core.path_values import PathStatus, State
from meshnode.core.report import Nat, NetReport
from meshnode.core.score import address_class

PRIVATE_CLASS_MAX: Final = 3
"""Of `address_class`: loopback, link-local and private addresses."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What we know of our side."""

    report: NetReport
    nat: Nat
    relays_only: bool = False
    """The owner of this node wants no UDP to peers."""
    has_v4: bool = True
    has_v6: bool = True
    """Addresses of that family, other than loopback."""


@dataclass(frozen=True, slots=True)
class Theirs:
    """What the peer says of its side. None: nothing."""

    is_hard: bool | None = None
    """Its NAT gives each destination another port."""
    has_udp: bool | None = None
    is_online: bool | None = None
    relay: str = ""
    """Code of its home region."""


def explain(path: PathStatus, ours: Ours, theirs: Theirs, now: Seconds) -> str:
    """The sentence. Times are loop seconds."""
    by_relay = f'by relay "{theirs.relay}"' if theirs.relay else "by relay"
    for_s = max(0.0, now - path.since)
    if path.state is State.UNKNOWN:
        return f"idle, {path.reason}; {by_relay} as soon as there is some" if path.region else f"idle, {path.reason}"
    if path.state is State.PROBING:
        return f"looking for a direct path for {for_s:.1f} s; packets go {by_relay} meanwhile"
    if path.state is State.DEGRADED:
        return f"in doubt for {for_s:.1f} s: {path.reason}; packets go {by_relay} too"
    if path.state is State.DIRECT and path.endpoint is not None:
        if path.endpoint.vni:
            return f"by peer relay, because {cause(path, ours, theirs)}"
        where = "on the same network" if address_class(path.endpoint.ip) <= PRIVATE_CLASS_MAX else "directly"
        took = f" in {path.latency_s * 1000:.1f} ms" if path.latency_s is not None else ""
        return f"{where}: {path.endpoint} answers{took}"
    if not path.region:
        return f"not reached at all: {cause(path, ours, theirs)}, and it has no relay"
    if not path.is_relay_up:
        return f"not reached at all: {cause(path, ours, theirs)}, and its relay does not have it"
    return f"{by_relay}, because {cause(path, ours, theirs)}"


def cause(path: PathStatus, ours: Ours, theirs: Theirs) -> str:
    """Why there is no direct path: the first cause that is proved."""
    if ours.relays_only:
        return "this node is set to use relays only"
    if ours.report.stun_sent and not ours.report.udp:
        return "no UDP leaves this machine's network: no STUN server answered"
    if theirs.has_udp is False:
        return "no UDP leaves its network, as it says"
    known = [c.endpoint for c in path.candidates if not c.endpoint.vni]
    if not known:
        return "it has told us no address to try"
    if (foreign := _foreign_family(known, ours)) is not None:
        return foreign
    is_hard = ours.nat is Nat.HARD
    if is_hard and theirs.is_hard:
        return "both its NAT and ours give each destination another port"
    if is_hard:
        return "our NAT gives each destination another port, and its side lets in nobody it has not sent to"
    if theirs.is_hard:
        return "its NAT gives each destination another port, and our side lets in nobody we have not sent to"
    return _what_was_tried(path, known)


def _foreign_family(known: list[Endpoint], ours: Ours) -> str | None:
    families = {e.ip.version for e in known}
    if families == {6} and not ours.has_v6:
        return "it has only IPv6 addresses, and this machine none"
    if families == {4} and not ours.has_v4:
        return "it has only IPv4 addresses, and this machine none"
    return None


def _what_was_tried(path: PathStatus, known: list[Endpoint]) -> str:
    count = f"{len(known)} addresses" if len(known) > 1 else "address"
    answered = [c for c in path.candidates if c.pong_at is not None and not c.endpoint.vni]
    if any(c.is_bad for c in answered):
        return f"its {count} answered probes but carried no data: something on the way drops WireGuard or large packets"
    if answered:
        return f"its {count} stopped answering"
    if all(address_class(e.ip) <= PRIVATE_CLASS_MAX for e in known):
        return f"it knows only private addresses of itself, and its {count} did not answer {path.pings_sent} pings"
    return f"its {count} did not answer {path.pings_sent} pings: a firewall or NAT on either side drops them"
