"""Two of ours over a real Headscale and a stock derper: direct, UDP cut, healed, and seen by each other."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from interop.bed import MIB, Bed, random_file, sha256_of
from interop.peers.meshnode import Meshnode


@dataclass
class Pair:
    bed: Bed
    a: Meshnode
    b: Meshnode


@pytest.fixture(scope="module")
def pair(bed: Bed) -> Pair:
    a, b = bed.mesh("anna"), bed.mesh("bert")
    a.wait_for_peer("bert")
    b.wait_for_peer("anna")
    return Pair(bed, a, b)


def _both_ways(pair: Pair) -> None:
    for target in ("bert", "bert.mesh.test", *pair.b.addresses):
        pair.bed.expect_hello(pair.a, target, "bert")
    for target in ("anna", *pair.a.addresses):
        pair.bed.expect_hello(pair.b, target, "anna")


def test_first_contact_needs_no_second_try(pair: Pair) -> None:
    _both_ways(pair)
    pair.a.wait_until_direct("bert")
    pair.b.wait_until_direct("anna")


def test_a_download_survives_udp_cut_and_healed_under_it(pair: Pair) -> None:
    """The flow moves to the relay and back without losing a byte or the connection."""
    pair.a.wait_until_direct("bert")
    big = pair.bed.files(pair.b.host, "hello from bert\n") / "big"
    digest = random_file(big, 24 * MIB)
    host = pair.a.host
    out = host.folder / "big"
    words = ["curl", "-sS", "--limit-rate", "2M", "--max-time", "90", *pair.a.curl_words()]
    fetch = host.start("paced", [*words, "-o", str(out), "http://bert/big"])

    def received(size: int) -> None:
        fetch.wait_until(lambda: out.exists() and out.stat().st_size >= size, 60.0, f"{size // MIB} MiB arrive")

    received(2 * MIB)
    host.cut_udp()
    try:
        received(12 * MIB)
        assert "DERP" in pair.a.wait_until_relayed("bert")
    finally:
        host.heal_udp()
    pair.a.wait_until_direct("bert", 30.0)
    assert fetch.wait(90.0) == 0, fetch.log_tail()
    assert sha256_of(out) == digest


def test_status_of_each_names_the_other(pair: Pair) -> None:
    for node, other, peer in ((pair.a, pair.b, "bert"), (pair.b, pair.a, "anna")):
        seen = node.peer(peer)
        assert seen is not None
        assert seen["TailscaleIPs"] == list(other.addresses)
        assert seen["Online"] is True
