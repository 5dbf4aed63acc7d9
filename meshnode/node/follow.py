"""Carries netmap changes to engine, paths and relays.

Order matters: the filter goes first, so that a new peer never meets the old rules, then our
addresses, then peers leave, change and arrive, then the relay map. A peer whose key expired is
treated as gone. Only a peer's own addresses are routed to it: subnet routes are not accepted yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from meshnode.base.addr import IP, Prefix
from meshnode.base.keys import NodePublic
from meshnode.netmap.model import Changes, Netmap, Peer, RelayMap
from meshnode.netmap.rules import compile_rules, peers_with
from meshnode.run.log import get_logger

RELAY_TARGET: Final = "tailscale.com/cap/relay-target"
"""Granted to a peer relay towards the members it may relay for."""
NO_RELAY_CLIENT: Final = "disable-relay-client"
"""Our own attribute: use no peer relay."""

_log = get_logger("netmap")


class EngineFace(Protocol):
    """What following needs of the engine."""

    def set_filter(self, blob: bytes) -> None: ...
    def set_addresses(self, addresses: tuple[IP, ...]) -> None: ...
    def upsert_peer(self, key: NodePublic, prefixes: tuple[Prefix, ...]) -> None: ...
    def remove_peer(self, key: NodePublic) -> None: ...


@dataclass(slots=True)
class Follower:
    """Applies (netmap, changes), one after the other."""

    engine: EngineFace
    on_peer: Callable[[Peer], None]
    """The path machine learns of a peer or of its new particulars."""
    on_peer_gone: Callable[[NodePublic], None]
    on_relays: Callable[[RelayMap], None]
    _filter: bytes = b""
    _known: dict[int, Peer] | None = None
    """Peers the engine has, by node id."""

    def apply(self, netmap: Netmap, changes: Changes) -> None:
        """Make the rooms agree with `netmap`."""
        first = self._known is None
        known = self._known if self._known is not None else {}
        self._known = known
        if first or _touches_filter(changes):
            self._apply_filter(netmap)
        if first or changes.full or changes.self_changed:
            self.engine.set_addresses(netmap.self_node.ips)
        if first or changes.relays_changed or changes.full:
            self.on_relays(netmap.relays)
        wanted = {peer.id: peer for peer in netmap.peers.values() if is_usable(peer)}
        if first or changes.full:
            touched = set(known) | set(wanted)
        else:
            touched = {p.id for p in (*changes.removed, *changes.added)} | {after.id for _, after in changes.changed}
        for peer_id in sorted(touched):
            self._apply_peer(known.get(peer_id), wanted.get(peer_id), known)

    def _apply_filter(self, netmap: Netmap) -> None:
        blob = compile_rules(netmap)
        if blob != self._filter:
            self.engine.set_filter(blob)
            self._filter = blob
            _log.debug("filter set", rules=len(netmap.rules), bytes=len(blob))

    def _apply_peer(self, before: Peer | None, after: Peer | None, known: dict[int, Peer]) -> None:
        if before is not None and (after is None or after.key != before.key):
            self.on_peer_gone(before.key)
            self.engine.remove_peer(before.key)
            del known[before.id]
            before = None
        if after is None or after == before:
            return
        if before is None or prefixes_of(before) != prefixes_of(after):
            self.engine.upsert_peer(after.key, prefixes_of(after))
        known[after.id] = after
        self.on_peer(after)


def is_usable(peer: Peer) -> bool:
    """Whether we may talk to it at all."""
    return not peer.expired and not peer.key.is_zero


def relay_servers(netmap: Netmap) -> list[NodePublic]:
    """The members that the policy lets relay between us and others, those of our own home region first."""
    own = netmap.self_node
    if NO_RELAY_CLIENT in own.caps:
        return []
    servers = [peer for peer in peers_with(netmap, RELAY_TARGET) if is_usable(peer)]
    return [peer.key for peer in sorted(servers, key=lambda peer: (peer.home != own.home, peer.id))]


def may_change_relay_servers(changes: Changes) -> bool:
    """Whether it is worth asking the policy again, which takes a look at every peer."""
    is_rekeyed = any(before.key != after.key for before, after in changes.changed)
    return bool(changes.full or changes.rules_changed or changes.self_changed or changes.added or is_rekeyed)


def prefixes_of(peer: Peer) -> tuple[Prefix, ...]:
    """What is routed to it: its own addresses."""
    return peer.addresses


def _touches_filter(changes: Changes) -> bool:
    if changes.full or changes.rules_changed or changes.self_changed or changes.added or changes.removed:
        return True
    return any(
        (before.jailed, before.addresses, before.caps) != (after.jailed, after.addresses, after.caps)
        for before, after in changes.changed
    )
