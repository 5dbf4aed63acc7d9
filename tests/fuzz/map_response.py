"""Fuzz the JSON of control: map messages folded into netmaps and compiled, register and key replies.

The first byte picks the parser; a map message comes on top of a netmap with peers and rules. Half of
the picks treat the input as instructions for replacing values in a genuine message, so that typed
wrong values reach every field.
"""

from __future__ import annotations

import json
from typing import Any

from meshnode.base.units import Unix
from meshnode.control.pings import serve_c2n
from meshnode.netmap import rules, tailcfg
from meshnode.netmap.delta import Fold, difference, next_expiry
from meshnode.netmap.names import Names

WALL = Unix(1_800_000_000.0)
NODE: dict[str, Any] = {
    "ID": 1, "StableID": "1", "Name": "a.mesh.test.", "User": 1, "Key": "nodekey:" + "11" * 32,
    "KeyExpiry": "2030-01-01T00:00:00Z", "Machine": "mkey:" + "22" * 32, "DiscoKey": "discokey:" + "33" * 32,
    "Addresses": ["100.64.0.1/32", "fd7a::1/128"], "AllowedIPs": ["100.64.0.1/32"], "Endpoints": ["1.2.3.4:5"],
    "HomeDERP": 1, "DERP": "127.3.3.40:1", "Hostinfo": {"OS": "linux"}, "Created": "2020-01-01T00:00:00Z",
    "Tags": ["tag:a"], "PrimaryRoutes": ["10.0.0.0/8"], "LastSeen": "2020-01-01T00:00:00Z", "Online": True,
    "MachineAuthorized": True, "Capabilities": ["x"], "CapMap": {"y": [1]}, "UnsignedPeerAPIOnly": False,
    "Expired": False, "SelfNodeV4MasqAddrForThisPeer": "100.64.9.9", "IsWireGuardOnly": False, "IsJailed": True,
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "Node": NODE,
    "Peers": [{**NODE, "ID": 2, "Key": "nodekey:" + "44" * 32}],
    "PeersChanged": [{**NODE, "ID": 3}],
    "PeersRemoved": [9],
    "PeersChangedPatch": [{
        "NodeID": 2, "DERPRegion": 3, "CapMap": {}, "Endpoints": ["1.1.1.1:1"], "Key": "nodekey:" + "55" * 32,
        "DiscoKey": "discokey:" + "66" * 32, "Online": False, "LastSeen": "2020-01-01T00:00:00Z", "KeyExpiry": "",
    }],
    "PeerSeenChange": {"2": True},
    "OnlineChange": {"2": False},
    "DERPMap": {
        "HomeParams": {"RegionScore": {"1": 0.5}},
        "Regions": {"1": {"RegionID": 1, "RegionCode": "a", "Nodes": [{"Name": "1a", "HostName": "h", "DERPPort": 1}]}},
    },
    "DNSConfig": {
        "Resolvers": [{"Addr": "1.1.1.1", "BootstrapResolution": ["1.1.1.1"]}], "Routes": {"a.b": None, "c": []},
        "Domains": ["x"], "Proxied": True, "ExtraRecords": [{"Name": "n", "Value": "1.1.1.1", "Type": "A"}],
    },
    "Domain": "d",
    "PacketFilter": [{
        "SrcIPs": ["*", "10.0.0.1-10.0.0.9", "cap:x"], "IPProto": [6],
        "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 2}}],
        "CapGrant": [{"Dsts": ["100.64.0.1/32"], "Caps": ["c"], "CapMap": {"d": [1]}}],
    }],
    "PacketFilters": {"base": [{"SrcIPs": ["100.64.0.2"], "DstPorts": [{"IP": "100.64.0.1"}]}], "*": None},
    "UserProfiles": [{"ID": 1, "LoginName": "a"}],
    "Health": ["h"],
    "DisplayMessages": {"m": {"Title": "t"}, "*": None},
    "ControlTime": "2026-01-01T00:00:00Z",
    "TKAInfo": {"Head": "x", "Disabled": False},
    "Debug": {"SleepSeconds": 1.5, "Exit": 1},
    "PingRequest": {"URL": "http://x/", "Types": "c2n", "Payload": "R0VUIC8="},
    "ControlDialPlan": {"Candidates": [{"IP": "1.1.1.1"}]},
}  # fmt: skip
REGISTER = {"User": {"ID": 1}, "Login": {"LoginName": "a"}, "NodeKeyExpired": False, "AuthURL": "", "Error": ""}
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**70, 1.5, 1e308, "", "x", "*", "::/0", "0.0.0.0/0", "nodekey:00", [], [None], {},
    {"": None}, [[]], [{}], "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999+23:59", "\ud800", "1-2", "::-ffff::",
)  # fmt: skip


def replaced(value: Any, numbers: list[int]) -> Any:
    """The value with leaves and branches replaced as the numbers say; most stay."""
    pick = numbers.pop() if numbers else 255
    if pick < len(WRONG):
        return WRONG[pick]
    if isinstance(value, dict):
        return {name: replaced(part, numbers) for name, part in value.items()}
    if isinstance(value, list):
        return [replaced(part, numbers) for part in value]
    return value


def fold(raw: bytes) -> None:
    """A message on top of a genuine netmap, with everything that reads the result."""
    stream = Fold()
    before = stream.apply(tailcfg.parse_map(json.dumps(MESSAGE).encode()), WALL)
    message = tailcfg.parse_map(raw)
    tailcfg.parse_time(message.control_time)
    after = stream.apply(message, WALL)
    difference(before, after)
    rules.compile_rules(after)
    rules.describe(after.rules)
    for ip in after.self_node.ips:
        rules.caps_towards_us(after, ip)
    next_expiry(after, WALL)
    stream.expire(Unix(2e9))
    Names(after).node("a")


def target(data: bytes) -> None:
    """One input."""
    kind, body = (data[0] & 7 if data else 0), data[1:]
    match kind:
        case 0 | 1:
            fold(body)
        case 2:
            tailcfg.parse_register(body)
        case 3:
            tailcfg.parse_key_reply(body)
            tailcfg.parse_early(body)
        case 4:
            serve_c2n(body.decode("latin-1"))
        case 5:
            reply = tailcfg.parse_register(json.dumps(replaced(REGISTER, list(body))).encode())
            if reply is not None:
                reply.to_user()
        case _:
            fold(json.dumps(replaced(MESSAGE, list(body))).encode("utf-8", "surrogatepass"))


SEEDS = [
    b"\0" + json.dumps(MESSAGE).encode(),
    b'\1{"KeepAlive":true}',
    b'\1{"PeersChangedPatch":[{"NodeID":2,"Key":null}]}',
    b"\2" + json.dumps(REGISTER).encode(),
    b'\3{"publicKey":"mkey:00"}',
    b"\4R0VUIC9lY2hvIEhUVFAvMS4xDQpIb3N0OiBjMm4NCg0K",
    b"\5" + bytes((255, 255, 7, 255)),
    b"\6" + bytes(255 for _ in range(200)),
    b"\7" + bytes(255 - (n % 7 == 0) * 240 for n in range(200)),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("map_response", target, SEEDS)
