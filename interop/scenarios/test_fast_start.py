"""DERP's fast start: ours at a stock derper, stock clients at our relay, and the relay that cannot have it."""

from __future__ import annotations

import pytest

from interop.bed import make_bed
from interop.certs import Authority
from interop.lab import Lab, until
from interop.peers.derper import PORT, Derper
from interop.peers.logins import Visit, visit
from tests.bench.link import A, Link

ONE_WAY_MS = 50


@pytest.mark.parametrize("kind", ["authority", "pinned"])
def test_both_links_start_fast_at_derper(kind: str, peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A round trip of 100 ms is saved: three instead of four, TCP's and TLS's among them."""
    with Lab(tmp_path_factory.mktemp(kind)) as lab:
        authority = Authority.create(lab.folder / "ca") if kind == "authority" else None
        derper = Derper(lab.host("relay"), authority, dual=True).start()
        guest = lab.host("guest")
        with Link((derper.host.namespace, guest.namespace), devices=("far", "far")) as link:
            link.set(delay_us=ONE_WAY_MS * 1000)
            pin, ca = ("", str(authority.ca)) if authority else (derper.pin, "")
            rows = visit(guest, Visit(derper.host.v4, PORT, A, pin, ca))
        for row in rows:
            print(f"{row.link}: {'fast' if row.is_fast else 'ordinary'} {row.best_s * 1000:.0f} ms")
        assert [(row.link, row.is_fast) for row in rows] == [
            ("python", True), ("python", False), ("engine", True), ("engine", False),
        ]  # fmt: skip
        for fast, ordinary in (rows[:2], rows[2:]):
            assert fast.best_s >= 0.3 and ordinary.best_s >= 0.4, "three round trips, and four"
            assert ordinary.best_s - fast.best_s > 0.05


def test_stock_clients_start_fast_at_ours(peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    with Lab(tmp_path_factory.mktemp("ours")) as lab:
        bed = make_bed(lab, "ours")
        assert bed.relay is not None
        relay = bed.relay
        stock = bed.stock("stock")
        until(lambda: relay.metric("derp_current_home_connections") == 1, 20.0, "the stock node is at home with us")
        assert relay.metric("meshnode_derp_fast_starts") == 1
        mesh = bed.mesh("mesh")
        mesh.wait_for_peer("stock")
        until(lambda: relay.metric("derp_current_home_connections") == 2, 20.0, "and ours")
        assert relay.metric("meshnode_derp_fast_starts") == 2
        bed.expect_hello(mesh, "stock", "stock")
        assert stock.host is not mesh.host


def test_headscales_own_relay_is_begun_as_ever(peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It sends no meta-certificate."""
    with Lab(tmp_path_factory.mktemp("embedded")) as lab:
        bed = make_bed(lab, "embedded")
        mesh = bed.mesh("mesh", extra=["--log-level", "debug"])
        until(lambda: "relay connected" in mesh.running.err(), 20.0, "the relay is reached")
        (line,) = [line for line in mesh.running.err().splitlines() if "relay connected" in line]
        assert "fast_start=false" in line.lower(), line
