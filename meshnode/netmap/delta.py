"""(what we know, MapResponse) → the next Netmap; two Netmaps → Changes.

A Fold lives for one map stream: it starts empty, the first message must be complete, and each
message is applied whole or not at all. Nodes a message does not touch stay the same objects, which
keeps `difference` cheap. Absent means unchanged; the order of the steps is the protocol's.
Source: docs/protocol/control.md 4.4 to 4.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from meshnode.base.addr import RegionId
from meshnode.base.bounds import PEERS_MAX
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.units import Unix
from meshnode.netmap import rules, tailcfg, translate
from meshnode.netmap.model import Changes, DnsConfig, FilterRule, Grant, Netmap, Node, RelayMap, RelayRegion, User

TEXTS_MAX: Final = 32
"""Health texts and display messages kept of one server."""
POISONED: Final = (
    "the filter rules would let in a peer that may reach nothing but the peer API; nothing may enter until they change"
)


@dataclass(slots=True)
class _Draft:
    """Everything a stream has told so far. Copied before a message, so that a broken one leaves no trace."""

    self_node: Node | None = None
    peers: dict[int, Node] = field(default_factory=dict)
    users: dict[int, User] = field(default_factory=dict)
    regions: dict[RegionId, RelayRegion] = field(default_factory=dict)
    scores: dict[RegionId, float] = field(default_factory=dict)
    dns: DnsConfig = field(default_factory=DnsConfig)
    filters: dict[str, list[tailcfg.WireRule | None]] = field(default_factory=dict)
    domain: str = ""
    health: tuple[str, ...] = ()
    messages: dict[str, str] = field(default_factory=dict)
    locked: bool = False
    rules: tuple[FilterRule, ...] = ()
    grants: tuple[Grant, ...] = ()
    complaints: tuple[str, ...] = ()
    relays: RelayMap = field(default_factory=RelayMap)

    def copy(self) -> _Draft:
        """A draft that shares values but no container that `_apply` changes in place."""
        return replace(
            self,
            peers=dict(self.peers),
            users=dict(self.users),
            regions=dict(self.regions),
            scores=dict(self.scores),
            filters=dict(self.filters),
            messages=dict(self.messages),
        )


class Fold:
    """One stream's messages, folded into netmaps."""

    def __init__(self) -> None:
        self._draft = _Draft()

    def apply(self, message: tailcfg.MapResponse, wall: Unix) -> Netmap:
        """The netmap after `message`, which is no keep-alive. `wall` is the server's time.

        RemoteProtocolError if the first message lacks our own node or anything cannot be read; the
        stream must end then.
        """
        draft = self._draft.copy()
        if draft.self_node is None and message.node is None:
            raise RemoteProtocolError("the control server's first map message does not say who we are")
        _apply(draft, message, wall)
        self._draft = draft
        return _netmap(draft)

    def expire(self, wall: Unix) -> Netmap:
        """The netmap with every node marked expired whose key is past its date at `wall`."""
        draft = self._draft
        if draft.self_node is None:
            raise RemoteProtocolError("no map yet")
        draft.self_node = _aged(draft.self_node, wall)
        draft.peers = {ident: _aged(peer, wall) for ident, peer in draft.peers.items()}
        return _netmap(draft)


def _aged(node: Node, wall: Unix) -> Node:
    past = node.key_expiry is not None and node.key_expiry < wall
    return replace(node, expired=True) if past and not node.expired else node


def next_expiry(netmap: Netmap, wall: Unix) -> Unix | None:
    """The next instant after `wall` at which a key expires, ours or a peer's; None if none does."""
    nodes = [netmap.self_node, *netmap.peers.values()]
    dates = [n.key_expiry for n in nodes if n.key_expiry is not None and n.key_expiry >= wall and not n.expired]
    return min(dates, default=None)


def _netmap(draft: _Draft) -> Netmap:
    assert draft.self_node is not None
    netmap = Netmap(
        self_node=draft.self_node,
        peers=MappingProxyType(draft.peers),
        users=MappingProxyType(draft.users),
        relays=draft.relays,
        dns=draft.dns,
        rules=draft.rules,
        grants=draft.grants,
        domain=draft.domain,
        health=(*draft.health, *draft.messages.values(), *draft.complaints),
        locked=draft.locked,
    )
    if rules.poisoned(netmap):
        return replace(netmap, rules=(), health=(*netmap.health, POISONED))
    return netmap


# --- one message ----------------------------------------------------------------------------------


def _apply(draft: _Draft, message: tailcfg.MapResponse, wall: Unix) -> None:
    if message.peers:
        draft.peers = _upserted({}, message.peers, wall)
    else:
        _apply_peer_deltas(draft, message, wall)
    if len(draft.peers) > PEERS_MAX:
        raise RemoteProtocolError(f"the control server sent {len(draft.peers)} peers; at most {PEERS_MAX} are allowed")
    if message.node is not None:
        draft.self_node = translate.node_of(message.node, wall=wall)
        draft.peers.pop(draft.self_node.id, None)
    for profile in message.user_profiles or ():
        user = translate.user_of(profile) if profile is not None else None
        if user is not None:
            draft.users[user.id] = user
    if message.derp_map is not None:
        _apply_relays(draft, message.derp_map)
    _apply_filters(draft, message)
    if message.dns_config is not None:
        draft.dns = translate.dns_of(message.dns_config)
    draft.domain = message.domain or draft.domain
    _apply_health(draft, message)
    if message.tka_info is not None:
        draft.locked = not message.tka_info.disabled


def _upserted(
    peers: dict[int, Node], wires: list[tailcfg.WireNode | None], wall: Unix
) -> dict[int, Node]:  # fmt: skip
    for wire in wires:
        if wire is not None:
            node = translate.node_of(wire, wall=wall)
            peers[node.id] = node
    return peers


def _apply_peer_deltas(draft: _Draft, message: tailcfg.MapResponse, wall: Unix) -> None:
    peers = draft.peers
    for ident in message.peers_removed or ():
        peers.pop(ident, None)
    if message.peers_changed:
        _upserted(peers, message.peers_changed, wall)
    for ident, seen in (message.peer_seen_change or {}).items():
        if ident in peers:
            peers[ident] = replace(peers[ident], last_seen=wall if seen else None)
    for ident, online in (message.online_change or {}).items():
        if ident in peers:
            peers[ident] = replace(peers[ident], online=online)
    for change in message.peers_changed_patch or ():
        if change is not None and change.node_id in peers:
            peers[change.node_id] = patched(peers[change.node_id], change, wall)


def patched(peer: Node, change: tailcfg.WirePeerChange, wall: Unix) -> Node:
    """The peer with what the patch names. A re-keyed peer keeps its prefixes."""
    last_seen = tailcfg.parse_time(change.last_seen)
    disco = translate.disco_key(change.disco_key)
    if disco is not None and change.online is False and _is_stale(last_seen, peer.last_seen):
        return peer  # an echo from before the peer went offline
    endpoints = translate.endpoints(change.endpoints) if change.endpoints else None
    expired, key_expiry = peer.expired, peer.key_expiry
    if change.key_expiry is not None:
        key_expiry = tailcfg.parse_time(change.key_expiry)
        expired = key_expiry is not None and key_expiry < wall
    return replace(
        peer,
        home=RegionId(change.derp_region) if change.derp_region else peer.home,
        caps=peer.caps if change.cap_map is None else translate.caps_of(change.cap_map),
        endpoints=peer.endpoints if endpoints is None else endpoints,
        key=translate.node_key(change.key) if change.key else peer.key,
        disco=disco or peer.disco,
        online=peer.online if change.online is None else change.online,
        last_seen=peer.last_seen if last_seen is None else last_seen,
        key_expiry=key_expiry,
        expired=expired,
    )


def _is_stale(told: Unix | None, known: Unix | None) -> bool:
    return told is not None and known is not None and told <= known


def _apply_relays(draft: _Draft, wire: tailcfg.WireDerpMap) -> None:
    if wire.regions is not None:
        draft.regions = {
            RegionId(ident): translate.region_of(region, RegionId(ident))
            for ident, region in wire.regions.items()
            if region is not None and ident > 0
        }
    if wire.home_params is not None and wire.home_params.region_score is not None:
        draft.scores = {RegionId(ident): score for ident, score in wire.home_params.region_score.items() if score > 0}
    draft.relays = RelayMap(MappingProxyType(draft.regions), MappingProxyType(draft.scores))


def _apply_filters(draft: _Draft, message: tailcfg.MapResponse) -> None:
    if message.packet_filter is None and message.packet_filters is None:
        return
    if message.packet_filter is not None:
        draft.filters["base"] = message.packet_filter
    named = message.packet_filters or {}
    if "*" in named and named["*"] is None:
        draft.filters.clear()
    for name, wires in named.items():
        if wires is None:
            draft.filters.pop(name, None)
        else:
            draft.filters[name] = wires
    complaints: list[str] = []
    every = [wire for name in sorted(draft.filters) for wire in draft.filters[name]]
    draft.rules, draft.grants = rules.read_rules(every, complaints)
    draft.complaints = tuple(complaints)


def _apply_health(draft: _Draft, message: tailcfg.MapResponse) -> None:
    if message.health is not None:
        draft.health = tuple(message.health[:TEXTS_MAX])
    shown = message.display_messages or {}
    if "*" in shown and shown["*"] is None:
        draft.messages.clear()
    for ident, told in shown.items():
        if told is None:
            draft.messages.pop(ident, None)
        elif len(draft.messages) < TEXTS_MAX or ident in draft.messages:
            draft.messages[ident] = ": ".join(part for part in (told.title, told.text) if part)


# --- two netmaps ----------------------------------------------------------------------------------


def difference(before: Netmap | None, after: Netmap) -> Changes:
    """What a reader of `before` has to do to be where `after` is."""
    if before is None:
        return Changes(
            full=True,
            added=tuple(after.peers.values()),
            self_changed=True,
            relays_changed=True,
            dns_changed=True,
            rules_changed=True,
        )
    added, changed = _compared(before.peers, after.peers)
    removed = tuple(peer for ident, peer in before.peers.items() if ident not in after.peers)
    return Changes(
        added=added,
        removed=removed,
        changed=changed,
        self_changed=before.self_node != after.self_node,
        relays_changed=before.relays is not after.relays and not _same_relays(before.relays, after.relays),
        dns_changed=before.dns != after.dns,
        rules_changed=_rules_differ(before, after),
    )


def _compared(
    before: Mapping[int, Node], after: Mapping[int, Node]
) -> tuple[tuple[Node, ...], tuple[tuple[Node, Node], ...]]:
    added: list[Node] = []
    changed: list[tuple[Node, Node]] = []
    for ident, peer in after.items():
        old = before.get(ident)
        if old is None:
            added.append(peer)
        elif old is not peer and old != peer:
            changed.append((old, peer))
    return tuple(added), tuple(changed)


def _same_relays(one: RelayMap, other: RelayMap) -> bool:
    return dict(one.regions) == dict(other.regions) and dict(one.scores) == dict(other.scores)


def _rules_differ(before: Netmap, after: Netmap) -> bool:
    """Whether the engine needs a new filter: rules, who holds a capability, who is jailed."""
    if before.rules is not after.rules and before.rules != after.rules:
        return True
    if before.peers == after.peers:
        return False
    return rules.compile_rules(before) != rules.compile_rules(after)
