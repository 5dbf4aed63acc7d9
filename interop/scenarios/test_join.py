"""Joining: what control and the stock nodes see of us."""

from __future__ import annotations

from typing import Any

from interop.conftest import Town
from interop.lab import until
from interop.peers.headscale import addresses_of
from interop.peers.tailscaled import Tailscaled


def test_ready_line_tells_what_control_knows(town: Town) -> None:
    assert town.mesh.ready is not None
    node = town.bed.headscale.node("mesh")
    assert node is not None
    assert list(town.mesh.addresses) == addresses_of(node)
    assert town.mesh.ready.name.rstrip(".") in ("mesh", "mesh.mesh.test")
    assert len([x for x in town.mesh.running.out().splitlines() if x.strip()]) == 1, "one line on stdout"


def test_control_lists_us_online(town: Town) -> None:
    def online() -> bool:
        node = town.bed.headscale.node("mesh")
        return node is not None and bool(node.get("online"))

    until(online, 5.0, "headscale lists mesh as online")


def _online(node: Tailscaled, name: str) -> dict[str, Any] | None:
    peer = node.peer(name)
    return peer if peer and peer["Online"] else None


def test_stock_nodes_see_us_with_our_name_and_addresses(town: Town) -> None:
    for stock in (town.stock, town.tun):
        peer = until(lambda node=stock: _online(node, "mesh"), 5.0, "a stock node sees mesh online")  # type: ignore[misc]
        assert peer["DNSName"] == "mesh.mesh.test."
        assert peer["TailscaleIPs"] == list(town.mesh.addresses)


def test_status_json_has_the_fields_that_scripts_parse(town: Town) -> None:
    town.mesh.wait_for_peer("stock")
    status = town.mesh.status()
    assert status["Self"]["DNSName"] == "mesh.mesh.test."
    assert status["Self"]["TailscaleIPs"] == list(town.mesh.addresses)
    peer = town.mesh.peer("stock")
    assert peer is not None
    assert peer["TailscaleIPs"] == list(town.stock.addresses)
    assert peer["Online"] is True
    assert {"CurAddr", "Relay"} <= peer.keys()


def test_whois_and_ip_know_the_peers(town: Town) -> None:
    v4, v6 = town.mesh.addresses
    assert town.mesh.cli("ip").stdout.split() == [v4, v6]
    assert "stock" in town.mesh.cli("whois", town.stock.addresses[0]).stdout
