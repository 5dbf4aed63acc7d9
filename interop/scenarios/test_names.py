"""Names: a new peer is resolvable within a second of its delta, a gone one stops being."""

from __future__ import annotations

import time

from interop.bed import Bed
from interop.lab import until
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled


def _resolves(node: Meshnode, name: str) -> str:
    done = node.cli("dns", name, check=False)
    return str(done.stdout) if done.returncode == 0 else ""


def test_new_peer_is_resolvable_within_a_second(bed: Bed) -> None:
    mesh = bed.mesh("mesh")
    assert not _resolves(mesh, "late")
    host = bed.lab.host("late")
    late = Tailscaled(host, "late").start()
    process = host.start("up", _up_words(bed, late))
    until(lambda: bed.headscale.node("late"), 20.0, "control lists late")
    listed_at = time.monotonic()
    said = until(lambda: _resolves(mesh, "late"), 10.0, "late resolves")
    seconds = time.monotonic() - listed_at
    assert process.wait(30.0) == 0
    for address in late.addresses:
        assert address in said
    assert _resolves(mesh, "late.mesh.test") == said
    # `headscale nodes list` and `meshnode dns` are processes of their own and inside this time.
    assert seconds < 1.0, f"{seconds:.2f} s"
    bed.headscale.delete_node("late")
    until(lambda: not _resolves(mesh, "late"), 5.0, "the deleted peer's name goes away")


def _up_words(bed: Bed, node: Tailscaled) -> list[str]:
    return node.up_words(bed.headscale.url, bed.headscale.key())
