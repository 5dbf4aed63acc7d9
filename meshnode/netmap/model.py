"""Netmap, Peer, SelfNode, RelayMap: one moment of the tailnet, frozen.

Readers keep the snapshot they began with. Absent, empty and filled are told apart before a value
reaches this file (`tailcfg`, `delta`); here every field has a definite meaning.
Source: docs/protocol/control.md 4.5, 5, 6, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from meshnode.base.addr import IP, Endpoint, Prefix, RegionId
from meshnode.base.keys import DiscoPublic, MachinePublic, NodePublic
from meshnode.base.units import Unix


def _nothing() -> MappingProxyType[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """What control says of any member, us included."""

    id: int
    stable_id: str
    name: str
    """FQDN without the trailing dot, lower case: `db.mesh.test`; a bare label without MagicDNS."""
    user_id: int
    key: NodePublic
    machine: MachinePublic | None
    disco: DiscoPublic | None
    """None: the node has not polled yet and cannot be pinged."""
    addresses: tuple[Prefix, ...]
    """Its tailnet /32 and /128."""
    allowed: tuple[Prefix, ...]
    """Cryptokey routing set: addresses plus routes."""
    endpoints: tuple[Endpoint, ...]
    home: RegionId
    """Relay region where it can always be reached; 0: unknown."""
    hostinfo: Mapping[str, Any] = field(default_factory=_nothing, hash=False)
    tags: tuple[str, ...] = ()
    routes: tuple[Prefix, ...] = ()
    """Subnet routes it currently serves."""
    online: bool | None = None
    """None: unknown, which is not offline; never a reason not to send."""
    last_seen: Unix | None = None
    created: Unix | None = None
    key_expiry: Unix | None = None
    """None: never."""
    expired: bool = False
    authorized: bool = True
    caps: Mapping[str, tuple[Any, ...]] = field(default_factory=_nothing, hash=False)
    """Capability name → values; membership is the signal, not truth."""
    wireguard_only: bool = False
    jailed: bool = False
    """It may not open flows to us."""
    peerapi_only: bool = False
    """It may reach our peer API and nothing else; a rule that says otherwise voids all rules."""
    masquerade4: IP | None = None
    masquerade6: IP | None = None

    @property
    def ips(self) -> tuple[IP, ...]:
        """Its tailnet addresses, IPv4 first as control orders them."""
        return tuple(p.network_address for p in self.addresses)

    @property
    def label(self) -> str:
        """First label of the name, what people call it."""
        return self.name.partition(".")[0]


Peer = Node
SelfNode = Node


@dataclass(frozen=True, slots=True)
class User:
    """The human or service that owns nodes."""

    id: int
    login: str
    display: str
    picture: str = ""


@dataclass(frozen=True, slots=True)
class RelayNode:
    """One relay server of a region. Source: paths.md 1.14."""

    name: str
    region: RegionId
    host: str
    cert_name: str = ""
    """'' = verify `host`; a name = verify that; `sha256-raw:<hex>` = pin the leaf."""
    ipv4: str = ""
    """'' = resolve; 'none' = do not use the family."""
    ipv6: str = ""
    port: int = 443
    stun_port: int = 3478
    """-1: no STUN."""
    stun_only: bool = False
    insecure: bool = False
    """The map says to skip certificate checks; honoured only if the embedder opted in."""
    stun_test_ip: str = ""
    can_port80: bool = False


@dataclass(frozen=True, slots=True)
class RelayRegion:
    """Relay servers that share their clients."""

    id: RegionId
    code: str
    name: str
    nodes: tuple[RelayNode, ...]
    avoid: bool = False
    no_home: bool = False
    """Never measured, never home; used only because a peer lives there."""


@dataclass(frozen=True, slots=True)
class RelayMap:
    """Every relay region of the tailnet."""

    regions: Mapping[RegionId, RelayRegion] = field(default_factory=_nothing, hash=False)
    scores: Mapping[RegionId, float] = field(default_factory=_nothing, hash=False)
    """Multipliers of measured latency; absent means 1."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """An upstream DNS server as control names it."""

    addr: str
    bootstrap: tuple[IP, ...] = ()
    use_with_exit_node: bool = False


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """The tailnet's DNS. Source: control.md 6."""

    magic: bool = False
    domains: tuple[str, ...] = ()
    resolvers: tuple[Resolver, ...] = ()
    fallback: tuple[Resolver, ...] = ()
    routes: Mapping[str, tuple[Resolver, ...]] = field(default_factory=_nothing, hash=False)
    """Suffix → resolvers; an empty tuple means: answer here."""
    extra: tuple[tuple[str, IP], ...] = ()
    """Extra records: (lower-case name without dot, address)."""
    cert_domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One allow rule: any of `sources` may reach any of `targets` by any of `protocols`."""

    sources: tuple[Prefix, ...]
    targets: tuple[tuple[Prefix, PortRange], ...]
    protocols: tuple[int, ...]
    source_caps: tuple[str, ...] = ()
    """Peers having one of these capabilities are sources too."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Application capabilities that `sources` have towards `targets`."""

    sources: tuple[Prefix, ...]
    targets: tuple[Prefix, ...]
    caps: Mapping[str, tuple[Any, ...]] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Netmap:
    """All we know of the tailnet at one moment."""

    self_node: SelfNode
    peers: Mapping[int, Peer] = field(hash=False)
    """By node id: ids stay when keys rotate."""
    users: Mapping[int, User] = field(hash=False)
    relays: RelayMap
    dns: DnsConfig
    rules: tuple[FilterRule, ...]
    """Empty: nothing may enter."""
    grants: tuple[Grant, ...]
    domain: str = ""
    health: tuple[str, ...] = ()
    """What control, or our reading of its rules, finds wrong; sentences for people."""
    locked: bool = False
    """The tailnet uses tailnet lock; its signatures are not verified here."""

    @property
    def suffix(self) -> str:
        """MagicDNS suffix: our own name less its first label; '' without MagicDNS."""
        return self.self_node.name.partition(".")[2]


@dataclass(frozen=True, slots=True)
class Changes:
    """How a netmap differs from the one before. A first netmap is all `added`, `full` True."""

    full: bool = False
    added: tuple[Peer, ...] = ()
    removed: tuple[Peer, ...] = ()
    changed: tuple[tuple[Peer, Peer], ...] = ()
    """(before, after) of every peer that differs in any field."""
    self_changed: bool = False
    relays_changed: bool = False
    dns_changed: bool = False
    rules_changed: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.full or self.added or self.removed or self.changed or self.self_changed
            or self.relays_changed or self.dns_changed or self.rules_changed
        )  # fmt: skip
