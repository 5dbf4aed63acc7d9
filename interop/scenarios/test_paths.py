"""Direct and relayed: both ping commands agree, and traffic survives UDP cut at our end or theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import Bed, RelayKind, make_bed
from interop.lab import Lab, until
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled


@dataclass
class Pair:
    bed: Bed
    stock: Tailscaled
    mesh: Meshnode


@pytest.fixture(scope="module", params=["pinned", "embedded"])
def pair(request: pytest.FixtureRequest, peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    kind: RelayKind = request.param
    with Lab(tmp_path_factory.mktemp(f"paths-{kind}")) as lab:
        bed = make_bed(lab, kind)
        stock, mesh = bed.stock("stock"), bed.mesh("mesh")
        stock.wait_for_peer("mesh")
        mesh.wait_for_peer("stock")
        yield Pair(bed, stock, mesh)


def _both_ways(pair: Pair) -> None:
    for target in ("mesh", *pair.mesh.addresses):
        pair.bed.expect_hello(pair.stock, target, "mesh")
    for target in ("stock", *pair.stock.addresses):
        pair.bed.expect_hello(pair.mesh, target, "stock")


def _relayed(pair: Pair) -> bool:
    peer = pair.mesh.peer("stock")
    return peer is not None and not peer["CurAddr"] and bool(peer["Relay"])


def test_first_contact_then_direct_within_seconds(pair: Pair) -> None:
    _both_ways(pair)
    pong = pair.stock.wait_until_direct("mesh")
    assert pair.mesh.host.v4 in pong or pair.mesh.host.v6 in pong
    pong = pair.mesh.wait_until_direct("stock")
    assert pair.stock.host.v4 in pong or pair.stock.host.v6 in pong
    peer = pair.mesh.peer("stock")
    assert peer is not None and peer["CurAddr"], "status shows the direct address"


@pytest.mark.parametrize("end", ["ours", "theirs"])
def test_udp_cut_falls_back_to_the_relay_and_heals(pair: Pair, end: str) -> None:
    pair.stock.wait_until_direct("mesh")
    host = pair.mesh.host if end == "ours" else pair.stock.host
    host.cut_udp()
    try:
        assert "DERP" in pair.stock.wait_until_relayed("mesh")
        assert "DERP" in pair.mesh.wait_until_relayed("stock")
        _both_ways(pair)
        until(lambda: _relayed(pair), 15.0, "status gives the direct path up")
    finally:
        host.heal_udp()
    pair.stock.wait_until_direct("mesh", 30.0)
    pair.mesh.wait_until_direct("stock", 30.0)
    _both_ways(pair)


def test_joining_with_udp_cut_works_by_relay_alone(pair: Pair) -> None:
    """A node that never had UDP is reached, and reaches, at once."""
    host = pair.bed.lab.host("noudp")
    host.cut_udp()
    directory = pair.bed.files(host, "hello from noudp\n")
    node = Meshnode(
        host,
        "noudp",
        pair.bed.headscale.url,
        key=pair.bed.headscale.key(),
        serve=[f"http:80={directory}"],
    ).start()
    pair.stock.wait_for_peer("noudp")
    pair.bed.expect_hello(node, "stock", "stock")
    pair.bed.expect_hello(pair.stock, "noudp", "noudp")
    node.stop()
