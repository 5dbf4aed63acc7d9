"""Names of one snapshot: short, full, any case, extra records, the nearest ones."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from meshnode.base.errors import NameNotFound
from meshnode.base.units import Unix
from meshnode.netmap import tailcfg
from meshnode.netmap.model import DnsConfig, Netmap, RelayMap
from meshnode.netmap.names import Names
from meshnode.netmap.translate import node_of


def member(ident: int, name: str) -> Any:
    wire = {
        "ID": ident,
        "Key": f"nodekey:{ident:064x}",
        "Name": name,
        "Addresses": [f"100.64.0.{ident}/32", f"fd7a::{ident}/128"],
    }
    return node_of(msgspec.convert(wire, tailcfg.WireNode), wall=Unix(0.0))


PEERS = {2: member(2, "GPU-1.mesh.test."), 3: member(3, "db.mesh.test."), 4: member(4, "far.other.test.")}
DNS = DnsConfig(
    domains=("mesh.test", "corp.test"),
    extra=(("wiki.corp.test", ip_address("10.0.0.1")), ("wiki.corp.test", ip_address("10.0.0.2"))),
)
NAMES = Names(Netmap(member(1, "me.mesh.test."), PEERS, {}, RelayMap(), DNS, (), ()))


@pytest.mark.parametrize("host", ["gpu-1", "GPU-1", "gpu-1.mesh.test", "gpu-1.MESH.test.", " gpu-1 "])
def test_every_spelling_of_a_name(host: str) -> None:
    assert [str(ip) for ip in NAMES.addresses(host)] == ["100.64.0.2", "fd7a::2"]


def test_ourselves_others_and_extra_records() -> None:
    assert NAMES.node("me") is not None and NAMES.node("far.other.test") == PEERS[4]
    assert NAMES.node("far") is None, "another suffix wants its full name"
    assert [str(ip) for ip in NAMES.addresses("wiki")] == ["10.0.0.1", "10.0.0.2"]
    assert NAMES.extra("wiki") == () and len(NAMES.extra("Wiki.corp.test.")) == 2


def test_addresses_stand_for_themselves() -> None:
    assert NAMES.addresses("192.0.2.1") == (ip_address("192.0.2.1"),)
    assert NAMES.addresses("[fd7a::3]") == (ip_address("fd7a::3"),)
    assert NAMES.node("100.64.0.3") == PEERS[3] == NAMES.owner(ip_address("fd7a::3"))
    assert NAMES.owner(ip_address("1.1.1.1")) is None


def test_a_dot_at_the_end_means_no_search() -> None:
    assert NAMES.node("gpu-1.") is None


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(NameNotFound, match="did you mean gpu-1") as caught:
        NAMES.addresses("gpu1")
    assert caught.value.near == ("gpu-1",)
    with pytest.raises(NameNotFound, match="lists the 3 peers") as caught:
        NAMES.addresses("zzzzzz")
    assert caught.value.near == ()
    with pytest.raises(NameNotFound, match="gpu-1.mesh.test"):
        NAMES.addresses("gpu-2.mesh.test")
    alone = Names(Netmap(member(1, "me.mesh.test."), {}, {}, RelayMap(), DnsConfig(), (), ()))
    with pytest.raises(NameNotFound, match="no peers at all"):
        alone.addresses("zzzzzz")
