"""The tailnet's policy, enforced by us for what comes in, and seen from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from interop.bed import Bed, Fetched
from interop.lab import until
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled

TAKES_EFFECT_S = 5.0


def allow(*destinations: str, source: str = "*") -> dict[str, Any]:
    return {"acls": [{"action": "accept", "src": [source], "dst": list(destinations)}]}


@dataclass
class Pair:
    bed: Bed
    stock: Tailscaled
    mesh: Meshnode


@pytest.fixture(scope="module")
def pair(bed: Bed) -> Pair:
    stock, mesh = bed.stock("stock"), bed.mesh("mesh")
    stock.wait_for_peer("mesh")
    mesh.wait_for_peer("stock")
    bed.expect_hello(stock, "mesh", "mesh", port=81)
    bed.expect_hello(mesh, "stock", "stock", port=81)
    return Pair(bed, stock, mesh)


def _closes(pair: Pair, node: Tailscaled | Meshnode, target: str, port: int) -> None:
    def refused() -> bool:
        got = pair.bed.curl(node, f"http://{target}:{port}/hello.txt", timeout_s=2.0)
        return got.status == 0

    until(refused, TAKES_EFFECT_S, f"{node.name} → {target}:{port} is refused")


def _opens(pair: Pair, node: Tailscaled | Meshnode, target: str, port: int) -> None:
    def answered() -> bool:
        got: Fetched = pair.bed.curl(node, f"http://{target}:{port}/hello.txt", timeout_s=2.0)
        return got.status == 200

    until(answered, TAKES_EFFECT_S, f"{node.name} → {target}:{port} is open")


def test_port_80_and_nothing_else(pair: Pair) -> None:
    pair.bed.headscale.set_policy(allow("*:80"))
    _closes(pair, pair.stock, "mesh", 81)
    _closes(pair, pair.mesh, "stock", 81)
    for target in ("mesh", *pair.mesh.addresses):
        pair.bed.expect_hello(pair.stock, target, "mesh")
        pair.bed.expect_refused(pair.stock, target, 81)
    for target in ("stock", *pair.stock.addresses):
        pair.bed.expect_hello(pair.mesh, target, "stock")
        pair.bed.expect_refused(pair.mesh, target, 81)


def test_policy_change_takes_effect_both_ways_without_restart(pair: Pair) -> None:
    pids = pair.mesh.running.pid, pair.stock.process.pid if pair.stock.process else 0
    pair.bed.headscale.set_policy(allow("*:81"))
    _opens(pair, pair.stock, "mesh", 81)
    _opens(pair, pair.mesh, "stock", 81)
    _closes(pair, pair.stock, "mesh", 80)
    _closes(pair, pair.mesh, "stock", 80)
    pair.bed.headscale.set_policy(allow("*:80,81"))
    _opens(pair, pair.stock, "mesh", 80)
    _opens(pair, pair.mesh, "stock", 80)
    assert pair.mesh.running.running
    assert pids == (pair.mesh.running.pid, pair.stock.process.pid if pair.stock.process else 0)


def test_one_way_rule_lets_answers_in_and_requests_not(pair: Pair) -> None:
    """Only they may start: our answers pass, our own requests are refused by them, and the reverse."""
    stock4, mesh4 = pair.stock.addresses[0], pair.mesh.addresses[0]
    pair.bed.headscale.set_policy(allow(f"{mesh4}:80", source=stock4))
    _closes(pair, pair.mesh, stock4, 80)
    _opens(pair, pair.stock, mesh4, 80)
    pair.bed.expect_refused(pair.stock, mesh4, 81)
    pair.bed.headscale.set_policy(allow(f"{stock4}:80", source=mesh4))
    _opens(pair, pair.mesh, stock4, 80)
    _closes(pair, pair.stock, mesh4, 80)


def test_open_again_without_a_policy_of_ours(pair: Pair) -> None:
    pair.bed.headscale.set_policy(allow("*:*"))
    for port in (80, 81):
        _opens(pair, pair.stock, "mesh", port)
        _opens(pair, pair.mesh, "stock", port)
