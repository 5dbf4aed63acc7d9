"""The lab itself, with stock nodes only: if these fail, the fault is not ours.

A pair of tailscaled joins the real Headscale and fetches both ways; with UDP cut at one of them the
same goes through the relay, for each kind of relay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import Bed, RelayKind, make_bed
from interop.lab import Lab
from interop.peers.tailscaled import Tailscaled


@dataclass
class Pair:
    bed: Bed
    plain: Tailscaled
    tun: Tailscaled


@pytest.fixture(scope="module", params=["pinned", "embedded"])
def pair(request: pytest.FixtureRequest, peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    kind: RelayKind = request.param
    with Lab(tmp_path_factory.mktemp(f"pair-{kind}")) as lab:
        bed = make_bed(lab, kind)
        yield Pair(bed, bed.stock("plain"), bed.stock("tun", tun=True))


def test_stock_pair_meets_directly(pair: Pair) -> None:
    pair.plain.wait_until_direct("tun")
    for host in ("tun", "tun.mesh.test", *pair.tun.addresses):
        pair.bed.expect_hello(pair.plain, host, "tun")
    for host in ("plain.mesh.test", *pair.plain.addresses):
        pair.bed.expect_hello(pair.tun, host, "plain")


def test_stock_pair_meets_by_relay_when_udp_is_cut(pair: Pair) -> None:
    pair.plain.host.cut_udp()
    pair.plain.wait_until_relayed("tun")
    pair.bed.expect_hello(pair.plain, "tun", "tun")
    pair.bed.expect_hello(pair.tun, "plain.mesh.test", "plain")
    pair.plain.host.heal_udp()
    pair.plain.wait_until_direct("tun")
