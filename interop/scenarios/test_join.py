"""Joining: what control and the stock nodes see of us, and what a bad key gets."""

from __future__ import annotations

from typing import Any

import pytest

from interop.bed import Bed
from interop.conftest import Town
from interop.lab import LabError, until
from interop.peers.headscale import addresses_of
from interop.peers.meshnode import Meshnode
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


def _refusal(bed: Bed, name: str, key: str) -> tuple[int, str]:
    """Join with a bad key; returns the exit code and what was said."""
    host = bed.lab.host(name)
    node = Meshnode(host, name, bed.headscale.url, key=key, socks5=False)
    process = node.launch()
    code = process.wait(20.0)
    said = process.err()
    assert key not in said + process.out(), "the key was printed"
    return code, said


@pytest.fixture(scope="module")
def refusals(town: Town) -> dict[str, tuple[int, str]]:
    """Exit code and words for each kind of key that control refuses."""
    headscale = town.bed.headscale
    spent = headscale.key(reusable=False)
    user = Meshnode(town.bed.lab.host("once"), "once", headscale.url, key=spent, socks5=False)
    user.start().stop()
    return {
        "wrong": _refusal(town.bed, "wrongkey", "hskey-auth-0123456789ab-" + "f" * 64),
        "expired": _refusal(town.bed, "expiredkey", headscale.expired_key()),
        "used": _refusal(town.bed, "usedkey", spent),
    }


@pytest.mark.parametrize("kind", ["wrong", "expired", "used"])
def test_refused_key_ends_at_once_with_a_sentence(refusals: dict[str, tuple[int, str]], kind: str) -> None:
    code, said = refusals[kind]
    assert code not in (0, 1), f"no exit code of its own: {code}\n{said}"
    last = said.strip().splitlines()[-1]
    assert "key" in last.lower(), last
    assert "Traceback" not in said


def test_expired_and_used_are_told_apart(refusals: dict[str, tuple[int, str]]) -> None:
    assert "expired" in refusals["expired"][1]
    assert "used" in refusals["used"][1]


def test_no_control_server_there(town: Town) -> None:
    """A plain web server in place of control is named as such, with its own exit code."""
    host = town.bed.lab.host("nocontrol")
    node = Meshnode(host, "nocontrol", f"http://{town.stock.host.v4}:80", key="hskey-auth-x-y", socks5=False)
    process = node.launch()
    try:
        code = process.wait(20.0)
    except LabError as error:
        raise AssertionError("still trying something that is no control server") from error
    assert code not in (0, 1)
    assert town.stock.host.v4 in process.err()
    assert "Traceback" not in process.err()
