"""Relay maps from people's files: the two programs' own, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.bounds import RELAY_MAP_MAX, RELAY_MAP_YAML_MAX
from meshnode.base.errors import ConfigError
from meshnode.netmap.model import RelayMap
from meshnode.netmap.relayfile import map_of_one, parse_relay_map
from meshnode.relay.identity import headscale_yaml

REGION = {
    "RegionID": 900,
    "RegionCode": "lan",
    "RegionName": "The house",
    "Nodes": [
        {
            "Name": "900a", "RegionID": 900, "HostName": "relay.lan", "IPv4": "192.0.2.1", "IPv6": "none",
            "DERPPort": 8443, "STUNPort": 3479, "CertName": "sha256-raw:00", "CanPort80": True,
        },
        {"Name": "900b", "RegionID": 900, "HostName": "stun.lan", "STUNOnly": True, "STUNPort": -1},
    ],
}  # fmt: skip
TAILSCALE = json.dumps({"Regions": {"900": REGION, "7": None}, "HomeParams": {}, "Later": [1]}).encode()
HEADSCALE = b"""
# as in Headscale's documentation
regions:
  900:
    regionid: 900
    regioncode: lan
    regionname: The house
    nodes:
      - name: 900a
        regionid: 900
        hostname: relay.lan
        ipv4: 192.0.2.1
        ipv6: "none"
        derpport: 8443
        stunport: 3479
        certname: sha256-raw:00
        canport80: true
      - name: 900b
        regionid: 900
        hostname: stun.lan
        stunonly: true
        stunport: -1
"""


@pytest.mark.parametrize("data", [TAILSCALE, HEADSCALE])
def test_both_programs_files_are_the_same_map(data: bytes) -> None:
    found = parse_relay_map(data, "map")
    assert list(found.regions) == [900]
    region = found.regions[900]  # type: ignore[index]
    assert (region.code, region.name) == ("lan", "The house")
    relay, other = region.nodes
    assert (relay.host, relay.ipv4, relay.ipv6, relay.port, relay.stun_port) == (
        "relay.lan", "192.0.2.1", "none", 8443, 3479,
    )  # fmt: skip
    assert relay.cert_name == "sha256-raw:00" and relay.can_port80 and not relay.stun_only
    assert other.stun_only and other.stun_port == -1 and other.port == 443


def test_what_our_relay_prints_for_headscale_is_read() -> None:
    region = {"RegionID": 901, "RegionCode": "r", "RegionName": "r", "Nodes": [{"Name": "1", "HostName": "192.0.2.7"}]}
    assert parse_relay_map(headscale_yaml(region).encode(), "map").regions[901].nodes[0].host == "192.0.2.7"  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "map: nothing where named fields belong"),
        (b"[1]", "map: a list where named fields belong"),
        (b"{}", "map: no Regions in it"),
        (b'{"Regions": {}}', "map: no Regions in it"),
        (b'{"Regions": ', "map: neither JSON nor YAML that can be read: "),
        (b"a: b: c", "map: neither JSON nor YAML that can be read: "),
        (b"\xff\xfe\x00", "map: neither JSON nor YAML that can be read: "),
        (b'{"Regions": {"0": {}}}', "map: region 0: the number of a region is 1 to 65535"),
        (b'{"Regions": {"lan": {}}}', "map: region lan: the number of a region is 1 to 65535"),
        (b'{"Regions": {"1": {"Nodes": []}}}', "map: its regions name no relay (HostName)"),
        (b'{"Regions": {"1": {"Nodes": {}, "RegionCode": 5}}}', "map: region 1: Expected `str | null`, got `int`"),
        (b'{"Regions": {"1": {"Nodes": "x"}}}', "map: region 1: Nodes is a list of at most 16"),
        (b'{"Regions": {"1": {"Nodes": ["x"]}}}', "map: region 1: Nodes: a str where named fields belong"),
        (b'{"Regions": {"1": {"Nodes": [{"HostName": "r", "DERPPort": 65536}]}}}', "map: region 1: r has an"),
        (b'{"Regions": {"1": {"Nodes": [{"HostName": "r", "STUNPort": -2}]}}}', "map: region 1: r has an"),
        (b'{"Regions": {"1": {"Nodes": [{"HostName": "r", "DERPPort": "x"}]}}}', "map: region 1: Expected `int"),
        (json.dumps({"Regions": {n: {} for n in range(1, 258)}}).encode(), "map: 257 regions, at most 256 are taken"),
        (b" " * (RELAY_MAP_MAX + 1), f"map: more than {RELAY_MAP_MAX} bytes"),
        (b"a" * (RELAY_MAP_YAML_MAX + 1), f"map: more than {RELAY_MAP_YAML_MAX} bytes of YAML; write it as JSON"),
        (b"[" * 100_000, "map: neither JSON nor YAML that can be read: "),
        (b"<html>captive</html>", "map: a str where named fields belong"),
    ],
)  # fmt: skip
def test_what_is_none_is_said_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_relay_map(data, "map")
    assert str(raised.value).startswith(said)


def test_a_small_file_that_means_a_huge_one_is_refused() -> None:
    """Names that repeat a list, which repeats a list: by value it has 10^12 nodes."""
    lines = ["a0: &a0 {hostname: r}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 13)]
    lines += ["regions: {1: {nodes: *a12}, 2: {nodes: [*a12]}}"]
    with pytest.raises(ConfigError, match="repeat another"):
        parse_relay_map("\n".join(lines).encode(), "map")


@pytest.mark.parametrize(
    ("host", "v4", "v6"),
    [("relay.lan", "", ""), ("192.0.2.1", "192.0.2.1", "none"), ("2001:db8::1", "none", "2001:db8::1")],
)
def test_one_relay_is_a_map_too(host: str, v4: str, v6: str) -> None:
    (region,) = map_of_one(host, 8443).regions.values()
    (node,) = region.nodes
    assert (node.host, node.ipv4, node.ipv6, node.port, node.stun_port) == (host, v4, v6, 8443, 3478)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]:"\n -regionsnodes109,', max_size=80).map(str.encode))
def test_any_bytes_are_a_map_or_one_kind_of_error(data: bytes) -> None:
    try:
        assert isinstance(parse_relay_map(data, "map"), RelayMap)
    except ConfigError as error:
        assert str(error).startswith("map: ") or str(error).startswith("map: region")
