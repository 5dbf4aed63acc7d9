"""A stock member relays by UDP between two nodes behind symmetric NATs; the policy of Headscale lets it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from interop.bed import MIB, Bed, make_bed, random_file
from interop.lab import Lab, until
from interop.peers.meshnode import Meshnode
from interop.peers.origin import start_origin
from interop.peers.tailscaled import Tailscaled
from tests.lab.rules import Nat
from tests.lab.site import Site

PORT = 40000
SIZE = 16 * MIB
POLICY: dict[str, Any] = {
    "tagOwners": {"tag:relay": ["lab@"], "tag:client": ["lab@"]},
    "grants": [
        {"src": ["tag:relay", "tag:client"], "dst": ["tag:relay", "tag:client"], "ip": ["*"]},
        {"src": ["tag:client"], "dst": ["tag:relay"], "app": {"tailscale.com/cap/relay": [{}]}},
    ],
}


@dataclass
class Hidden:
    """Three nodes that nobody reaches directly, each serving a file, and the member that relays."""

    bed: Bed
    relay: Tailscaled
    stock: Tailscaled
    mesh: Meshnode
    other: Meshnode
    site: Site
    """Where mesh is."""
    sha256: dict[str, str]

    @property
    def way(self) -> str:
        return f"{self.relay.host.v4}:{PORT}:vni:"


def _mesh(bed: Bed, name: str, site: Site, sha256: dict[str, str]) -> Meshnode:
    host = site.host(name)
    folder = bed.files(host, f"hello from {name}\n")
    sha256[name] = random_file(folder / "blob", SIZE)
    key = bed.headscale.key(tags="tag:client")
    return Meshnode(host, name, bed.headscale.url, key=key, serve=[f"http:80={folder}"]).start()


@pytest.fixture(scope="module")
def hidden(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hidden]:
    with Lab(tmp_path_factory.mktemp("peer-relay")) as lab:
        bed = make_bed(lab, "pinned")
        bed.headscale.user()
        bed.headscale.set_policy(POLICY)
        relay = bed.stock("relay", key=bed.headscale.key(tags="tag:relay"))
        relay.cli("set", f"--relay-server-port={PORT}")
        sites = {name: Site(lab, f"at-{name}", Nat.SYMMETRIC).build() for name in ("stock", "mesh", "other")}
        host = sites["stock"].host("stock")
        stock = Tailscaled(host, "stock").start().up(bed.headscale.url, bed.headscale.key(tags="tag:client"))
        sha256: dict[str, str] = {}
        folder = bed.files(host, "hello from stock\n")
        sha256["stock"] = random_file(folder / "blob", SIZE)
        start_origin(host, folder, 80)
        mesh, other = (_mesh(bed, name, sites[name], sha256) for name in ("mesh", "other"))
        for name in ("mesh", "other"):
            stock.wait_for_peer(name)
        yield Hidden(bed, relay, stock, mesh, other, sites["mesh"], sha256)


def _by_peer_relay(hidden: Hidden, node: Meshnode | Tailscaled, name: str, timeout_s: float = 40.0) -> str:
    """Traffic from `node` until its status names the relay; what it names."""

    def look() -> str:
        hidden.bed.curl(node, f"http://{name}/hello.txt", timeout_s=5)
        peer = node.peer(name)
        return str(peer["PeerRelay"]) if peer and str(peer["PeerRelay"]).startswith(hidden.way) else ""

    return until(look, timeout_s, f"{node.name} reaches {name} by the peer relay", interval_s=0.2)


def _download(hidden: Hidden, node: Meshnode | Tailscaled, name: str) -> None:
    got = hidden.bed.curl(node, f"http://{name}/blob")
    assert (got.status, got.size, got.sha256) == (200, SIZE, hidden.sha256[name]), got


def test_ours_and_stock_meet_there(hidden: Hidden) -> None:
    _by_peer_relay(hidden, hidden.mesh, "stock")
    _by_peer_relay(hidden, hidden.stock, "mesh")
    assert "peer-relay(" + hidden.way in hidden.stock.ping("mesh")
    assert "peer-relay(" + hidden.way in hidden.mesh.cli("ping", "stock").stdout
    assert f"peer-relay {hidden.way}" in hidden.mesh.cli("status").stdout
    before = hidden.mesh.status()["Counters"]
    _download(hidden, hidden.mesh, "stock")
    _download(hidden, hidden.stock, "mesh")
    after = hidden.mesh.status()["Counters"]
    assert after["rx_relayed"] - before["rx_relayed"] > SIZE / 1400, "the file came by the peer relay"


def test_two_of_ours_meet_there(hidden: Hidden) -> None:
    _by_peer_relay(hidden, hidden.mesh, "other")
    _by_peer_relay(hidden, hidden.other, "mesh")
    _download(hidden, hidden.mesh, "other")
    _download(hidden, hidden.other, "mesh")


def test_found_again_when_either_end_restarts(hidden: Hidden) -> None:
    """A node that restarts has another DISCO key, and so another allocation at the same relay."""
    hidden.mesh.running.kill()
    hidden.mesh.start()
    hidden.stock.wait_for_peer("mesh")
    _by_peer_relay(hidden, hidden.mesh, "stock")
    _by_peer_relay(hidden, hidden.stock, "mesh")
    hidden.stock.stop()
    hidden.stock.start()
    hidden.mesh.wait_for_peer("stock")
    _by_peer_relay(hidden, hidden.mesh, "stock")
    _download(hidden, hidden.stock, "mesh")


def test_bound_again_when_our_nat_forgets_us(hidden: Hidden) -> None:
    _by_peer_relay(hidden, hidden.mesh, "other")
    hidden.site.rebind()
    _by_peer_relay(hidden, hidden.other, "mesh")
    _download(hidden, hidden.mesh, "other")


def test_left_for_the_relay_region_when_it_goes(hidden: Hidden) -> None:
    _by_peer_relay(hidden, hidden.mesh, "stock")
    hidden.relay.cli("set", "--relay-server-port=")

    def by_derp() -> bool:
        hidden.bed.curl(hidden.mesh, "http://stock/hello.txt", timeout_s=5)
        peer = hidden.mesh.peer("stock")
        return peer is not None and not peer["PeerRelay"] and not peer["CurAddr"]

    until(by_derp, 40.0, "mesh gives the peer relay up", interval_s=0.2)
    _download(hidden, hidden.mesh, "stock")
