"""The embedded server's tailnet: who is a member, what each may see."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from meshnode.base.errors import ConfigError
from meshnode.base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from meshnode.base.units import Unix
from meshnode.control.policy import Policy
from meshnode.control.tailnet import Change, Member, Tailnet, format_time
from meshnode.netmap.tailcfg import LOGOUT_TIME

WALL = Unix(1_800_000_000.0)


class Bed:
    """A tailnet, a clock that stands still, and what it told its listeners."""

    def __init__(self) -> None:
        numbers = count(1)
        self.draw = lambda n: bytes([next(numbers) % 256]) * n
        self.net = Tailnet(url="http://c", domain="mesh.test", relays={}, entropy=self.draw)
        self.told: list[Change] = []
        self.net.listeners.append(self.told.append)

    def node(self) -> tuple[MachinePrivate, NodePrivate]:
        return MachinePrivate.generate(self.draw), NodePrivate.generate(self.draw)

    def key(self, **more: Any) -> str:
        return self.net.add_key(expires_at=Unix(WALL + 60), **more)

    def register(self, who: tuple[MachinePrivate, NodePrivate], **request: Any) -> dict[str, Any]:
        auth = request.pop("auth", None)
        body = {"NodeKey": str(who[1].public()), "Hostinfo": {"Hostname": "web"}, **request}
        if auth:
            body["Auth"] = {"AuthKey": auth}
        return self.net.register(who[0].public(), body, WALL)

    def join(self, name: str = "web", **more: Any) -> Member:
        who = self.node()
        self.register(who, auth=self.key(**more), Hostinfo={"Hostname": name})
        member = self.net.by_key(who[1].public())
        assert member is not None
        return member


def test_names_collide_politely() -> None:
    bed = Bed()
    assert [bed.join(name).name for name in ("web", "web", "WEB", "a b!c", "", "web-1")] == [
        "web", "web-1", "web-2", "a-b-c", "node", "web-1-1",
    ]  # fmt: skip


def test_one_use_keys_and_the_same_machine() -> None:
    bed = Bed()
    who, once = bed.node(), bed.key(reusable=False)
    assert bed.register(who, auth=once)["MachineAuthorized"]
    assert bed.register(who)["MachineAuthorized"], "the same identity needs no key"
    assert bed.register(who, auth=once)["MachineAuthorized"], "and does not spend one"
    assert bed.register(bed.node(), auth=once)["Error"] == "authkey already used"
    assert len(bed.net.members) == 1


def test_rotation_keeps_the_member() -> None:
    bed = Bed()
    machine, node = bed.node()
    bed.register((machine, node), auth=bed.key())
    fresh = NodePrivate.generate(bed.draw)
    assert bed.register((machine, fresh), auth=bed.key())["MachineAuthorized"]
    (member,) = bed.net.members.values()
    assert member.key == fresh.public()


def test_a_stolen_node_key_is_refused() -> None:
    bed = Bed()
    machine, node = bed.node()
    bed.register((machine, node), auth=bed.key())
    thief = MachinePrivate.generate(bed.draw)
    assert "different machine key" in bed.register((thief, node), auth=bed.key())["Error"]
    assert bed.net.authenticate(thief.public(), {"NodeKey": str(node.public())}) is None


def test_logout() -> None:
    bed = Bed()
    for ephemeral, left in ((True, 0), (False, 1)):
        who = bed.node()
        bed.register(who, auth=bed.key(ephemeral=ephemeral))
        assert bed.register(who, Expiry=LOGOUT_TIME)["NodeKeyExpired"]
        assert len(bed.net.members) == left
    assert bed.register(who)["NodeKeyExpired"], "an expired member is told so"
    assert bed.register(bed.node(), Expiry=LOGOUT_TIME)["Error"] == "node not found"


@pytest.mark.parametrize("broken", [{}, {"NodeKey": 5}, {"NodeKey": "nodekey:" + "0" * 64}, {"NodeKey": "x"}])
def test_broken_requests(broken: dict[str, Any]) -> None:
    bed = Bed()
    with pytest.raises(ValueError):
        bed.net.register(bed.node()[0].public(), broken, WALL)


def test_deltas_show_what_happened_and_to_whom() -> None:
    bed = Bed()
    one, two = bed.join("one"), bed.join("two")
    bed.told.clear()
    disco = str(DiscoPrivate.generate(bed.draw).public())
    bed.net.update(
        two,
        {"DiscoKey": disco, "Endpoints": ["1.2.3.4:5"], "Hostinfo": {**two.hostinfo, "NetInfo": {"PreferredDERP": 3}}},
    )
    delta = bed.net.delta(one, bed.told, WALL)
    patch = {"NodeID": two.id, "DiscoKey": disco, "Endpoints": ["1.2.3.4:5"], "DERPRegion": 3}
    assert delta == {"PeersChangedPatch": [patch], "ControlTime": format_time(WALL)}
    assert "PeersChangedPatch" not in bed.net.delta(two, bed.told, WALL), "our own news come as Node"
    bed.told.clear()
    bed.net.update(two, {"DiscoKey": disco, "Endpoints": ["1.2.3.4:5"]})
    assert not bed.told, "nothing new, nothing said"
    bed.net.update(two, {"DiscoKey": disco, "Endpoints": []})
    assert bed.net.delta(one, bed.told, WALL)["PeersChanged"][0]["Endpoints"] == []
    bed.told.clear()
    bed.net.remove(two.id)
    assert bed.net.delta(one, bed.told, WALL)["PeersRemoved"] == [two.id]


def test_policy_forms() -> None:
    bed = Bed()
    web, dev = bed.join("web", tags=("tag:web",)), bed.join("dev", user="ann")
    members = bed.net.members.values()
    policy = Policy.parse([{"src": ["ann@"], "dst": ["tag:web:80,443", f"{web.v4}:8000-8002"], "proto": [6]}])
    (rule,) = policy.rules_for(web, members)
    assert rule["SrcIPs"] == [str(dev.v4), str(dev.v6)] and rule["IPProto"] == [6]
    assert [(t["IP"], t["Ports"]["First"], t["Ports"]["Last"]) for t in rule["DstPorts"]] == [
        (str(ip), first, last) for first, last in ((80, 80), (443, 443), (8000, 8002)) for ip in web.ips
    ]
    assert policy.rules_for(dev, members) == []
    assert Policy.allow_all().rules_for(dev, members)[0]["SrcIPs"] == ["*"]
    assert Policy.parse([]).rules_for(web, members) == []


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"src": "a", "dst": ["b:1"]},
        {"src": [], "dst": ["b"]},
        {"src": [], "dst": ["b:x"]},
        {"src": [], "dst": ["b:9-1"]},
    ],
)
def test_policies_that_are_none(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="policy"):
        Policy.parse([rule])
