"""Folding map messages: absent, null and filled; order; patches; differences (control.md 13, 19 to 28)."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.units import Unix
from meshnode.netmap import rules
from meshnode.netmap.delta import Fold, difference, next_expiry
from meshnode.netmap.model import Netmap
from meshnode.netmap.tailcfg import parse_map

WALL = Unix(1_800_000_000.0)
PAST, FUTURE = "2020-01-01T00:00:00Z", "2040-01-01T00:00:00.123456789Z"
ZERO = "0001-01-01T00:00:00Z"


def node(ident: int, **more: Any) -> dict[str, Any]:
    return {
        "ID": ident,
        "StableID": str(ident),
        "Name": f"N{ident}.Mesh.Test.",
        "User": 1,
        "Key": f"nodekey:{ident:064x}",
        "DiscoKey": f"discokey:{ident:064x}",
        "Addresses": [f"100.64.0.{ident}/32", f"fd7a:115c:a1e0::{ident:x}/128"],
        "Endpoints": [f"192.0.2.{ident}:41641"],
        "HomeDERP": 900,
        **more,
    }


class Stream:
    """A fold fed with JSON."""

    def __init__(self, *peers: dict[str, Any], **more: Any) -> None:
        self.fold = Fold()
        self.now = self.feed(Node=node(1), Peers=list(peers), **more)

    def feed(self, **message: Any) -> Netmap:
        self.now = self.fold.apply(parse_map(json.dumps(message).encode()), WALL)
        return self.now

    def patch(self, ident: int, **change: Any) -> Netmap:
        return self.feed(PeersChangedPatch=[{"NodeID": ident, **change}])


def test_first_message_must_say_who_we_are() -> None:
    with pytest.raises(RemoteProtocolError):
        Fold().apply(parse_map(b'{"Peers":[]}'), WALL)


def test_a_node_is_read_completely() -> None:
    me = Stream(node(2, Tags=["tag:a"], Online=True, CapMap={"x": None, "y": [1]}, Machine="mkey:" + "1" * 64)).now
    peer = me.peers[2]
    assert (peer.name, peer.label, peer.home, peer.tags, peer.online) == ("n2.mesh.test", "n2", 900, ("tag:a",), True)
    assert peer.endpoints == (Endpoint.parse("192.0.2.2:41641"),) and peer.allowed == peer.addresses
    assert peer.caps == {"x": (), "y": (1,)} and me.suffix == "mesh.test"


@pytest.mark.parametrize("nothing", [{}, {"Peers": None}, {"Peers": []}])
def test_empty_peers_mean_no_change(nothing: dict[str, Any]) -> None:
    stream = Stream(node(2), node(3))
    assert set(stream.feed(**nothing, Domain="x").peers) == {2, 3}


def test_peers_replace_and_shadow_the_deltas() -> None:
    stream = Stream(node(2), node(3))
    now = stream.feed(Peers=[node(4)], PeersRemoved=[4], PeersChanged=[node(5)])
    assert set(now.peers) == {4}


def test_deltas_in_order() -> None:
    stream = Stream(node(2), node(3))
    now = stream.feed(
        PeersRemoved=[2, 99],
        PeersChanged=[node(2, HomeDERP=1), node(4)],
        OnlineChange={"4": True, "77": True},
        PeerSeenChange={"3": True, "4": False},
        PeersChangedPatch=[{"NodeID": 4, "DERPRegion": 7}, {"NodeID": 99, "DERPRegion": 7}, None],
    )
    assert set(now.peers) == {2, 3, 4}
    assert (now.peers[2].home, now.peers[4].home, now.peers[4].online) == (1, 7, True)
    assert now.peers[3].last_seen == WALL and now.peers[4].last_seen is None


def test_patch_of_each_field() -> None:
    stream = Stream(node(2, AllowedIPs=["10.0.0.0/8"], CapMap={"a": None}))
    before = stream.now.peers[2]
    assert stream.patch(2).peers[2] == before
    assert stream.patch(2, Endpoints=["1.2.3.4:5"]).peers[2].endpoints == (Endpoint.parse("1.2.3.4:5"),)
    assert stream.patch(2, Endpoints=[]).peers[2].endpoints == (Endpoint.parse("1.2.3.4:5"),)
    assert stream.patch(2, CapMap={}).peers[2].caps == {}
    assert stream.patch(2, CapMap={"b": [2]}).peers[2].caps == {"b": (2,)}
    assert stream.patch(2, Online=False).peers[2].online is False
    assert stream.patch(2, LastSeen=PAST).peers[2].last_seen is not None
    rekeyed = stream.patch(2, Key="nodekey:" + "ab" * 32).peers[2]
    assert rekeyed.key != before.key and rekeyed.allowed == before.allowed
    assert stream.patch(2, DERPRegion=0).peers[2].home == 900


def test_expiry_patches() -> None:
    stream = Stream(node(2))
    assert stream.patch(2, KeyExpiry=PAST).peers[2].expired
    assert stream.patch(2, Online=True).peers[2].expired
    alive = stream.patch(2, KeyExpiry=ZERO).peers[2]
    assert not alive.expired and alive.key_expiry is None
    assert stream.patch(2, KeyExpiry=FUTURE).peers[2].key_expiry is not None


def test_stale_disco_echo_is_dropped() -> None:
    stream = Stream(node(2, LastSeen="2026-01-01T00:00:00Z"))
    disco = "discokey:" + "cd" * 32
    stale = stream.patch(2, DiscoKey=disco, Online=False, LastSeen="2025-12-31T00:00:00Z", DERPRegion=3)
    assert str(stale.peers[2].disco) != disco and stale.peers[2].home == 900
    fresh = stream.patch(2, DiscoKey=disco, Online=False, LastSeen="2026-01-02T00:00:00Z")
    assert str(fresh.peers[2].disco) == disco
    assert str(stream.patch(2, DiscoKey="discokey:" + "0" * 64).peers[2].disco) == disco


def test_allowed_null_is_the_addresses_and_empty_is_none() -> None:
    now = Stream(node(2, AllowedIPs=None), node(3, AllowedIPs=[]), node(4, AllowedIPs=["0.0.0.0/0"])).now
    assert now.peers[2].allowed == now.peers[2].addresses
    assert now.peers[3].allowed == () and str(now.peers[4].allowed[0]) == "0.0.0.0/0"
    clamped = Stream(node(5, AllowedIPs=["0.0.0.0/0"], UnsignedPeerAPIOnly=True)).now.peers[5]
    assert clamped.allowed == clamped.addresses


def test_home_from_either_field() -> None:
    def home(**fields: Any) -> int:
        return Stream(node(2, **fields)).now.peers[2].home

    assert home(HomeDERP=0, DERP="127.3.3.40:12") == 12
    assert home(HomeDERP=3, DERP="127.3.3.40:12") == 3
    assert home(HomeDERP=None, DERP="127.0.0.1:12") == 0


def test_endpoints_that_cannot_be_used_are_left_out() -> None:
    texts = [
        "1.2.3.4:5",
        "[fe80::1%eth0]:1",
        "x",
        "0.0.0.0:1",
        "1.2.3.4:0",
        "224.0.0.1:9",
        "1.2.3.4:5",
        "[2001:db8::1]:7",
    ]
    found = Stream(node(2, Endpoints=texts)).now.peers[2].endpoints
    assert [str(e) for e in found] == ["1.2.3.4:5", "[2001:db8::1]:7"]


@pytest.mark.parametrize(
    "broken",
    [
        {"ID": 0},
        {"Key": None},
        {"Key": "nodekey:" + "0" * 64},
        {"Key": "nodekey:12"},
        {"Addresses": ["100.64.0.1/8"]},
        {"Addresses": ["nonsense"]},
        {"DiscoKey": "x"},
        {"Name": 5},
        {"SelfNodeV4MasqAddrForThisPeer": "x"},
    ],
)
def test_a_broken_message_leaves_no_trace(broken: dict[str, Any]) -> None:
    stream = Stream(node(2))
    before = stream.now
    with pytest.raises(RemoteProtocolError):
        stream.feed(PeersRemoved=[2], PeersChanged=[node(3, **broken)])
    assert stream.feed(Domain=before.domain) == before


def test_unusual_nodes() -> None:
    now = Stream(node(2, Addresses=["100.64.0.9/32"], Name="plain", Hostinfo=None, Endpoints=None)).now
    assert [str(ip) for ip in now.peers[2].ips] == ["100.64.0.9"] and now.peers[2].name == "plain"
    assert 1 not in Stream(node(1), node(2)).now.peers, "we are no peer of ours"


def test_relays() -> None:
    region = {"RegionID": 900, "Nodes": [{"Name": "a", "HostName": "h", "IPv6": "none", "STUNPort": -1}, None]}
    stream = Stream(DERPMap={"Regions": {"900": region, "901": None}, "HomeParams": {"RegionScore": {"900": 0.5}}})
    relays = stream.now.relays
    assert set(relays.regions) == {900} and relays.scores == {900: 0.5}
    server = relays.regions[RegionId(900)].nodes[0]
    assert (server.ipv6, server.stun_port, server.port) == ("none", -1, 443)
    kept = stream.feed(DERPMap={"HomeParams": {"RegionScore": {}}}).relays
    assert set(kept.regions) == {900} and kept.scores == {}
    assert set(stream.feed(DERPMap={"Regions": None}).relays.regions) == {900}
    assert stream.feed(DERPMap={"Regions": {}}).relays.regions == {}


def rule(source: str = "*", port: int = 80) -> dict[str, Any]:
    return {"SrcIPs": [source], "DstPorts": [{"IP": "*", "Ports": {"First": port, "Last": port}}]}


def ports(netmap: Netmap) -> list[int]:
    return [target[1].first for rule in netmap.rules for target in rule.targets[:1]]


def test_filters() -> None:
    stream = Stream()
    assert stream.now.rules == ()
    assert ports(stream.feed(PacketFilter=[rule(port=1)])) == [1]
    assert ports(stream.feed(PacketFilters={"b": [rule(port=3)], "a": [rule(port=2)]})) == [2, 3, 1]
    assert ports(stream.feed(PacketFilters={"a": None})) == [3, 1]
    assert ports(stream.feed(PacketFilters={"*": None, "z": [rule(port=9)]})) == [9]
    assert ports(stream.feed(Domain="x")) == [9], "absent is unchanged"
    assert ports(stream.feed(PacketFilters={"z": []})) == []
    stream.feed(PacketFilters={"base": [rule()]})
    assert stream.feed(PacketFilters={"base": None}).rules == ()


def test_dns() -> None:
    stream = Stream(
        DNSConfig={
            "Proxied": True,
            "Domains": ["Mesh.Test"],
            "Routes": {"Corp.": [{"Addr": "10.0.0.53"}], "own": None},
            "Resolvers": [{"Addr": "1.1.1.1", "BootstrapResolution": ["1.0.0.1", "x"]}, None],
            "ExtraRecords": [{"Name": "A.mesh.test.", "Value": "1.2.3.4"}, {"Name": "t", "Type": "TXT", "Value": "x"}],
        }
    )
    dns = stream.now.dns
    assert dns.magic and dns.domains == ("mesh.test",) and dns.routes["own"] == ()
    assert dns.routes["corp"][0].addr == "10.0.0.53" and len(dns.resolvers[0].bootstrap) == 1
    assert dns.extra == (("a.mesh.test", ip_address("1.2.3.4")),)
    assert stream.feed(Domain="x").dns == dns
    assert not stream.feed(DNSConfig={}).dns.magic


def test_health_and_messages() -> None:
    stream = Stream(Health=["one"], DisplayMessages={"m": {"Title": "T", "Text": "x"}})
    assert stream.now.health == ("one", "T: x")
    assert stream.feed(Health=None).health == ("one", "T: x")
    assert stream.feed(Health=[]).health == ("T: x",)
    assert stream.feed(DisplayMessages={"*": None, "n": {"Title": "N"}}).health == ("N",)
    assert stream.feed(DisplayMessages={"n": None}).health == ()


def test_users_lock_and_domain() -> None:
    stream = Stream(UserProfiles=[{"ID": 1, "LoginName": "a"}], TKAInfo={"Head": "x"}, Domain="d")
    assert stream.now.users[1].login == "a" and stream.now.locked
    now = stream.feed(UserProfiles=[{"ID": 2, "LoginName": "b"}], TKAInfo={"Disabled": True}, Domain="")
    assert set(now.users) == {1, 2} and not now.locked and now.domain == "d"


def test_unknown_fields_big_numbers_and_duplicates() -> None:
    raw = (
        json.dumps({"Node": node(1), "Peers": [node(2**62)]})[:-1]
        + ',"Future":{"x":[1]},"Domain":"a","Domain":"b\\u0000"}'
    )
    raw = (
        raw.replace(f"100.64.0.{2**62}", "100.64.0.9")
        .replace(f"192.0.2.{2**62}", "192.0.2.9")
        .replace(f"::{2**62:x}", "::9")
    )
    now = Fold().apply(parse_map(raw.encode()), WALL)
    assert 2**62 in now.peers and now.domain == "b\0"


def test_jailed_and_poison() -> None:
    stream = Stream(node(2, UnsignedPeerAPIOnly=True), node(3), PacketFilters={"base": [rule("100.64.0.3")]})
    assert len(stream.now.rules) == 1
    poisoned = stream.feed(PacketFilters={"base": [rule("100.64.0.3"), rule("100.64.0.0/24")]})
    assert poisoned.rules == () and rules.compile_rules(poisoned) == rules.deny_all() and poisoned.health
    assert len(stream.feed(PeersRemoved=[2]).rules) == 2, "the rules are back once the cause is gone"


# --- differences ----------------------------------------------------------------------------------


def test_first_difference_is_full() -> None:
    now = Stream(node(2)).now
    changes = difference(None, now)
    assert changes.full and [p.id for p in changes.added] == [2] and changes.rules_changed and changes


def test_differences_name_what_changed_and_nothing_else() -> None:
    stream = Stream(node(2), node(3), DERPMap={"Regions": {}}, PacketFilters={"base": [rule()]})
    before = stream.now
    assert not difference(before, stream.feed(ControlTime=FUTURE))
    after = stream.feed(PeersRemoved=[3], PeersChanged=[node(4)], PeersChangedPatch=[{"NodeID": 2, "Online": True}])
    changes = difference(before, after)
    assert [p.id for p in changes.added] == [4] and [p.id for p in changes.removed] == [3]
    assert [(a.id, b.online) for a, b in changes.changed] == [(2, True)]
    assert not (changes.self_changed or changes.relays_changed or changes.dns_changed or changes.rules_changed)
    assert difference(after, stream.feed(Node=node(1, Tags=["tag:x"]))).self_changed
    assert difference(after, stream.feed(DNSConfig={"Proxied": True})).dns_changed
    assert difference(after, stream.feed(PacketFilters={"base": []})).rules_changed


def test_reconnecting_to_the_same_map_changes_nothing() -> None:
    one = Stream(node(2), node(3), PacketFilters={"base": [rule()]}, DERPMap={"Regions": {"1": {"Nodes": None}}}).now
    two = Stream(node(2), node(3), PacketFilters={"base": [rule()]}, DERPMap={"Regions": {"1": {"Nodes": None}}}).now
    assert not difference(one, two)


def test_capability_sources_and_jail_change_the_rules() -> None:
    stream = Stream(node(2), PacketFilters={"base": [rule("cap:door")]})
    before = stream.now
    after = stream.patch(2, CapMap={"door": None})
    assert difference(before, after).rules_changed
    jailed = stream.feed(PeersChanged=[node(2, IsJailed=True)])
    assert difference(after, jailed).rules_changed


def test_expiry_by_time() -> None:
    stream = Stream(node(2, KeyExpiry=FUTURE))
    when = next_expiry(stream.now, WALL)
    assert when is not None and not stream.now.peers[2].expired
    assert stream.fold.expire(Unix(when + 1)).peers[2].expired
    assert next_expiry(stream.fold.expire(Unix(when + 1)), Unix(when + 1)) is None


_scalars = st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=8) | st.just("100.64.0.1/32")
_values = st.recursive(
    _scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=6
)
_FIELDS = [
    "Node",
    "Peers",
    "PeersChanged",
    "PeersRemoved",
    "PeersChangedPatch",
    "OnlineChange",
    "PeerSeenChange",
    "DERPMap",
    "DNSConfig",
    "PacketFilter",
    "PacketFilters",
    "UserProfiles",
    "Health",
    "DisplayMessages",
    "TKAInfo",
    "Debug",
    "ControlTime",
    "PingRequest",
]


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(_FIELDS), _values, max_size=4))
def test_any_json_is_applied_or_refused(message: dict[str, Any]) -> None:
    stream = Stream(node(2), PacketFilters={"base": [rule()]})
    try:
        now = stream.feed(**message)
    except RemoteProtocolError:
        return
    rules.compile_rules(now)
    difference(None, now)
