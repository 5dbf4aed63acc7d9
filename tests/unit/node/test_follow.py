"""Netmap changes reach the rooms in the right order, and only what changed."""

from __future__ import annotations

import os
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from meshnode.base.addr import IP, Endpoint, Prefix, RegionId, parse_prefix
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.netmap.model import Changes, DnsConfig, FilterRule, Grant, Netmap, Node, PortRange, RelayMap
from meshnode.node.follow import NO_RELAY_CLIENT, RELAY_TARGET, Follower, may_change_relay_servers, relay_servers


def key() -> NodePublic:
    return NodePrivate.generate(os.urandom).public()


def node(number: int, **fields: Any) -> Node:
    addresses = (parse_prefix(f"100.64.0.{number}"), parse_prefix(f"fd7a:115c:a1e0::{number:x}"))
    values: dict[str, Any] = {
        "id": number,
        "stable_id": str(number),
        "name": f"n{number}.mesh.test",
        "user_id": 1,
        "key": key(),
        "machine": None,
        "disco": None,
        "addresses": addresses,
        "allowed": (*addresses, parse_prefix("10.0.0.0/8")),
        "endpoints": (),
        "home": RegionId(1),
    }
    return Node(**(values | fields))


def netmap(*peers: Node, **fields: Any) -> Netmap:
    rule = FilterRule((parse_prefix("0.0.0.0/0"),), ((parse_prefix("0.0.0.0/0"), PortRange(80, 80)),), (6,))
    values: dict[str, Any] = {
        "self_node": node(1),
        "peers": {p.id: p for p in peers},
        "users": {},
        "relays": RelayMap(),
        "dns": DnsConfig(),
        "rules": (rule,),
        "grants": (),
    }
    return Netmap(**(values | fields))


class Rooms:
    """Writes down what it is told, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.follower = Follower(
            engine=self,
            on_peer=lambda peer: self.said.append(("path", peer.key)),
            on_peer_gone=lambda gone: self.said.append(("path gone", gone)),
            on_relays=lambda relays: self.said.append(("relays", relays)),
        )

    def set_filter(self, blob: bytes) -> None:
        self.said.append(("filter", blob))

    def set_addresses(self, addresses: tuple[IP, ...]) -> None:
        self.said.append(("addresses", addresses))

    def upsert_peer(self, key: NodePublic, prefixes: tuple[Prefix, ...]) -> None:
        self.said.append(("peer", key, prefixes))

    def remove_peer(self, key: NodePublic) -> None:
        self.said.append(("remove", key))

    def take(self) -> list[str]:
        kinds = [str(entry[0]) for entry in self.said]
        self.said.clear()
        return kinds


def started(*peers: Node) -> tuple[Rooms, Netmap]:
    rooms, first = Rooms(), netmap(*peers)
    rooms.follower.apply(first, Changes(full=True, added=peers))
    return rooms, first


def test_the_filter_comes_before_any_peer() -> None:
    rooms, _ = started(node(2), node(3))
    assert rooms.take() == ["filter", "addresses", "relays", "peer", "path", "peer", "path"]


def test_only_its_own_addresses_are_routed_to_a_peer() -> None:
    peer = node(2)
    rooms, _ = started(peer)
    assert [entry[2] for entry in rooms.said if entry[0] == "peer"] == [peer.addresses]


def test_endpoints_of_a_peer_concern_its_path_only() -> None:
    peer = node(2)
    rooms, before = started(peer)
    rooms.take()
    moved = replace(peer, endpoints=(Endpoint.parse("192.0.2.1:1"),))
    rooms.follower.apply(replace(before, peers={2: moved}), Changes(changed=((peer, moved),)))
    assert rooms.take() == ["path"]


def test_a_rotated_key_is_another_peer() -> None:
    peer = node(2)
    rooms, before = started(peer)
    rooms.take()
    rotated = replace(peer, key=key())
    rooms.follower.apply(replace(before, peers={2: rotated}), Changes(changed=((peer, rotated),)))
    assert [entry[:2] for entry in rooms.said] == [
        ("path gone", peer.key),
        ("remove", peer.key),
        ("peer", rotated.key),
        ("path", rotated.key),
    ]


def test_an_expired_peer_is_gone_and_comes_back() -> None:
    peer = node(2)
    rooms, before = started(peer)
    rooms.take()
    expired = replace(peer, expired=True)
    rooms.follower.apply(replace(before, peers={2: expired}), Changes(changed=((peer, expired),)))
    assert rooms.take() == ["path gone", "remove"]
    rooms.follower.apply(before, Changes(changed=((expired, peer),)))
    assert rooms.take() == ["peer", "path"]


def test_removed() -> None:
    peer = node(2)
    rooms, before = started(peer)
    rooms.take()
    rooms.follower.apply(replace(before, peers={}), Changes(removed=(peer,)))
    assert rooms.take() == ["path gone", "remove"]


def test_a_rule_change_sets_the_filter_and_nothing_else() -> None:
    rooms, before = started(node(2))
    rooms.take()
    rooms.follower.apply(replace(before, rules=()), Changes(rules_changed=True))
    assert rooms.take() == ["filter"]
    rooms.follower.apply(replace(before, rules=()), Changes(rules_changed=True))
    assert rooms.take() == [], "the same filter is not set twice"


def test_a_second_full_map_is_compared_with_the_first() -> None:
    kept, lost, new = node(2), node(3), node(4)
    rooms, before = started(kept, lost)
    rooms.take()
    after = replace(before, peers={2: kept, 4: new})
    rooms.follower.apply(after, Changes(full=True, added=(new,), removed=(lost,)))
    assert [kind for kind in rooms.take() if kind not in ("addresses", "relays")] == [
        "path gone",
        "remove",
        "peer",
        "path",
    ]


# --- who may relay for us ---


def granted(*relays: Node, own: Node | None = None, peers: tuple[Node, ...] = ()) -> Netmap:
    sources = tuple(prefix for relay in relays for prefix in relay.addresses)
    made = netmap(*relays, *peers, **({"self_node": own} if own else {}))
    grant = Grant(sources, made.self_node.addresses, MappingProxyType({RELAY_TARGET: ()}))
    return replace(made, grants=(grant,))


def test_relays_of_our_own_home_region_come_first_and_others_are_none() -> None:
    home = netmap().self_node.home
    far, near = node(2, home=RegionId(home + 1)), node(3, home=home)
    assert relay_servers(granted(far, near, peers=(node(4),))) == [near.key, far.key]
    assert relay_servers(granted(far, replace(near, expired=True))) == [far.key]
    assert relay_servers(netmap(far, near)) == []


def test_a_node_that_must_not_be_a_client_has_no_relays() -> None:
    own = replace(netmap().self_node, caps=MappingProxyType({NO_RELAY_CLIENT: ()}))
    assert relay_servers(granted(node(2), own=own)) == []


def test_when_it_is_worth_asking_who_relays() -> None:
    before = node(2)
    assert may_change_relay_servers(Changes(changed=((before, replace(before, key=key())),)))
    assert may_change_relay_servers(Changes(rules_changed=True)) and may_change_relay_servers(Changes(added=(before,)))
    assert not may_change_relay_servers(Changes(changed=((before, replace(before, online=True)),), removed=(before,)))
