"""Filter rules: every form of entry, the engine's blob read back, grants (control.md 13, 38 and 41)."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import msgspec
import pytest

from meshnode.base.units import Unix
from meshnode.netmap import rules, tailcfg
from meshnode.netmap.model import DnsConfig, Netmap, RelayMap
from meshnode.netmap.translate import node_of


def read(*wires: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...], list[str]]:
    complaints: list[str] = []
    parsed = [msgspec.convert(wire, tailcfg.WireRule) for wire in wires]
    found, grants = rules.read_rules(parsed, complaints)
    return found, grants, complaints


def target(ip: str = "*", first: int = 80, last: int = 80, **more: Any) -> dict[str, Any]:
    return {"IP": ip, "Ports": {"First": first, "Last": last}, **more}


def member(ident: int, **more: Any) -> Any:
    wire = {"ID": ident, "Key": f"nodekey:{ident:064x}", "Addresses": [f"100.64.0.{ident}/32", f"fd7a::{ident}/128"]}
    return node_of(msgspec.convert({**wire, **more}, tailcfg.WireNode), wall=Unix(0.0))


def netmap(*wires: dict[str, Any], peers: tuple[Any, ...] = ()) -> Netmap:
    found, grants, _ = read(*wires)
    by_id = {peer.id: peer for peer in peers}
    return Netmap(member(1), by_id, {}, RelayMap(), DnsConfig(), found, grants)


@pytest.mark.parametrize(
    ("text", "prefixes"),
    [
        ("*", ["0.0.0.0/0", "::/0"]),
        ("100.64.0.1", ["100.64.0.1/32"]),
        ("100.64.0.0/10", ["100.64.0.0/10"]),
        ("fd7a::/16", ["fd7a::/16"]),
        ("10.0.0.1-10.0.0.4", ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]),
        ("::1-::1", ["::1/128"]),
    ],
)
def test_source_forms(text: str, prefixes: list[str]) -> None:
    found, _, complaints = read({"SrcIPs": [text], "DstPorts": [target()]})
    assert [str(p) for p in found[0].sources] == prefixes and not complaints


@pytest.mark.parametrize("text", ["100.64.0.1/10", "nonsense", "", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "1-2-3"])
def test_a_bad_entry_invalidates_itself_only(text: str) -> None:
    found, _, complaints = read({"SrcIPs": [text, "10.0.0.1"], "DstPorts": [target()]})
    assert [str(p) for p in found[0].sources] == ["10.0.0.1/32"] and len(complaints) == 1
    found, _, _ = read({"SrcIPs": [text], "DstPorts": [target()]})
    assert not found


def test_old_forms_and_impossible_ports_are_left_out() -> None:
    assert not read({"SrcIPs": ["*"], "SrcBits": [8], "DstPorts": [target()]})[0]
    for bad in (target(Bits=8), target(first=5, last=4), target(first=-1), target(last=70_000)):
        found, _, complaints = read({"SrcIPs": ["*"], "DstPorts": [bad, target(first=7, last=7)]})
        assert {t[1].first for t in found[0].targets} == {7} and complaints


@pytest.mark.parametrize(
    ("given", "meant"),
    [(None, (6, 17, 1, 58)), ([], (6, 17, 1, 58)), ([6, 17], (6, 17)), ([1], (1,)), ([999, -1], ()), ([999, 6], (6,))],
)
def test_protocols(given: list[int] | None, meant: tuple[int, ...]) -> None:
    found, _, _ = read({"SrcIPs": ["*"], "DstPorts": [target()], "IPProto": given})
    assert found[0].protocols == meant


def unpack(blob: bytes) -> tuple[list[tuple[list[int], list[str], list[str]]], list[str]]:
    """The blob as the engine reads it."""
    at = 8
    magic, count = struct.unpack_from("<II", blob)
    assert magic == 0x31464E4D

    def prefix() -> str:
        nonlocal at
        ip, bits = IPv6Address(blob[at : at + 16]), blob[at + 16]
        at += 17
        return f"{ip.ipv4_mapped}/{bits - 96}" if ip.ipv4_mapped else f"{ip}/{bits}"

    out = []
    for _ in range(count):
        n_protocols, n_sources, n_targets = struct.unpack_from("<BHH", blob, at)
        at += 5
        protocols = list(blob[at : at + n_protocols])
        at += n_protocols
        sources = [prefix() for _ in range(n_sources)]
        targets = []
        for _ in range(n_targets):
            where = prefix()
            targets.append(f"{where}:{'-'.join(map(str, struct.unpack_from('<HH', blob, at)))}")
            at += 4
        out.append((protocols, sources, targets))
    (n_jailed,) = struct.unpack_from("<I", blob, at)
    at += 4
    jailed = [prefix() for _ in range(n_jailed)]
    assert at == len(blob)
    return out, jailed


def test_blob() -> None:
    now = netmap(
        {"SrcIPs": ["100.64.0.2", "*"], "DstPorts": [target("100.64.0.1", 17, 53)]},
        {"SrcIPs": ["fd7a::/16"], "DstPorts": [target("fd7a::1", 0, 65535)], "IPProto": [6]},
        peers=(member(3, IsJailed=True), member(2)),
    )
    assert unpack(rules.compile_rules(now)) == (
        [
            ([6, 17, 1, 58], ["100.64.0.2/32", "0.0.0.0/0", "::/0"], ["100.64.0.1/32:17-53"]),
            ([6], ["fd7a::/16"], ["fd7a::1/128:0-65535"]),
        ],
        ["100.64.0.3/32", "fd7a::3/128"],
    )


def test_no_rules_is_deny_all() -> None:
    assert rules.compile_rules(netmap()) == rules.deny_all() and unpack(rules.deny_all()) == ([], [])


def test_capability_sources_are_the_peers_that_hold_it() -> None:
    wire = {"SrcIPs": ["cap:door"], "DstPorts": [target()]}
    nobody = netmap(wire, peers=(member(2),))
    assert unpack(rules.compile_rules(nobody))[0] == []
    somebody = netmap(wire, peers=(member(2), member(3, CapMap={"door": []})))
    assert unpack(rules.compile_rules(somebody))[0][0][1] == ["100.64.0.3/32", "fd7a::3/128"]


def test_grants_never_open_ports() -> None:
    now = netmap({"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"x": [1]}}]})
    assert not now.rules and unpack(rules.compile_rules(now)) == ([], []) and len(now.grants) == 1


def test_capabilities_of_a_pair_are_united_per_family() -> None:
    now = netmap(
        {"SrcIPs": ["100.64.0.2"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"x": [1], "y": None}}]},
        {"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.0/10"], "CapMap": {"x": [2]}, "Caps": ["z"]}]},
        {"SrcIPs": ["fd7a::2"], "CapGrant": [{"Dsts": ["fd7a::1/128"], "CapMap": {"six": []}}]},
    )
    four = rules.caps_towards_us(now, ip_address("100.64.0.2"))
    assert four == {"x": (1, 2), "y": (), "z": ()}
    assert rules.caps_towards_us(now, ip_address("100.64.0.9")) == {"x": (2,), "z": ()}
    assert rules.caps_towards_us(now, ip_address("fd7a::2")) == {"six": ()}
    assert rules.caps_between(now, ip_address("100.64.0.2"), ip_address("fd7a::1")) == {}
    lonely = replace(now, self_node=replace(now.self_node, addresses=(ip_network("100.64.0.1/32"),)))
    assert rules.caps_towards_us(lonely, ip_address("fd7a::2")) == {}


def test_description_for_people() -> None:
    now = netmap(
        {"SrcIPs": ["100.64.0.2", "cap:x"], "DstPorts": [target("100.64.0.1", 0, 65535), target("fd7a::1", 5, 9)]}
    )
    assert rules.describe(now.rules) == ["100.64.0.2/32, cap:x → 100.64.0.1/32:*, fd7a::1/128:5-9"]


def test_peers_that_have_a_capability_towards_us() -> None:
    relay = "tailscale.com/cap/relay-target"
    peers = (member(2), member(3), member(4, UnsignedPeerAPIOnly=True))
    to_us = {"Dsts": ["100.64.0.1/32"], "CapMap": {relay: None}}
    to_another = {"Dsts": ["100.64.0.9/32"], "CapMap": {relay: None}}
    other_cap = {"Dsts": ["*"], "CapMap": {"tailscale.com/cap/drive": None}}
    by = {"SrcIPs": ["100.64.0.2", "100.64.0.4"]}

    def holders(*grants: dict[str, Any]) -> list[int]:
        return [p.id for p in rules.peers_with(netmap({**by, "CapGrant": list(grants)}, peers=peers), relay)]

    assert holders(to_us) == [2], "never one that may reach the peer API only"
    assert holders(to_another) == [] and holders(other_cap) == [] and holders() == []
    both = netmap(
        {"SrcIPs": ["fd7a::3"], "CapGrant": [{"Dsts": ["fd7a::1/128"], "CapMap": {relay: None}}]}, peers=peers
    )
    assert [p.id for p in rules.peers_with(both, relay)] == [3]
