"""A node that is killed and started again: back in the tunnel at once, and direct before control has told its news."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import Bed, make_bed
from interop.lab import Lab, until
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled


@dataclass
class Pair:
    bed: Bed
    stock: Tailscaled
    mesh: Meshnode


@pytest.fixture(scope="module")
def pair(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Headscale with its delays as shipped: news of a node takes it up to a second."""
    with Lab(tmp_path_factory.mktemp("restart")) as lab:
        bed = make_bed(lab, "pinned", tuned=False)
        stock, mesh = bed.stock("stock"), bed.mesh("mesh")
        stock.wait_for_peer("mesh")
        mesh.wait_for_peer("stock")
        yield Pair(bed, stock, mesh)


def _is_direct(node: Meshnode | Tailscaled, name: str) -> bool:
    peer = node.peer(name)
    return peer is not None and bool(peer["CurAddr"])


def test_data_at_once_and_direct_again(pair: Pair) -> None:
    """WireGuard alone needs five seconds: the stock node answers where it knew us for 6.5 s."""
    pair.bed.expect_hello(pair.mesh, "stock", "stock")
    pair.stock.wait_until_direct("mesh")
    waits = []
    for _ in range(3):
        pair.bed.expect_hello(pair.stock, "mesh", "mesh")
        pair.mesh.running.kill()
        pair.mesh.start()
        since = time.monotonic()
        pair.bed.expect_hello(pair.mesh, "stock", "stock")
        waits.append(time.monotonic() - since)
        until(lambda: _is_direct(pair.mesh, "stock"), 20.0, "direct again, as we see it")
        pair.stock.wait_until_direct("mesh")
    assert sorted(waits)[1] < 3.0, f"first data after {waits}"


def test_keys_are_told_inside_the_tunnel_both_ways(pair: Pair) -> None:
    assert pair.stock.process is not None
    log = pair.stock.process
    until(lambda: "got TSMP disco key advertisement" in log.err(), 20.0, "stock hears our key in the tunnel")
    before = int(pair.mesh.status()["Counters"].get("disco_keys_confirmed", 0))
    pair.stock.cli("ping", "--tsmp", "-c", "1", "mesh")

    def is_heard() -> bool:
        return int(pair.mesh.status()["Counters"].get("disco_keys_confirmed", 0)) > before

    until(is_heard, 20.0, "we hear its key in the tunnel")
