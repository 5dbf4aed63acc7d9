"""The oldest client that this Headscale lets in: joins, HTTP both ways, direct and by relay."""

from __future__ import annotations

from interop.bed import Bed


def test_oldest_stock_client_both_ways(bed: Bed) -> None:
    oldest = bed.stock("oldest", release="tailscale_oldest")
    mesh = bed.mesh("mesh")
    oldest.wait_for_peer("mesh")
    mesh.wait_for_peer("oldest")
    for target in ("mesh", *mesh.addresses):
        bed.expect_hello(oldest, target, "mesh")
    for target in ("oldest", *oldest.addresses):
        bed.expect_hello(mesh, target, "oldest")
    oldest.wait_until_direct("mesh")
    mesh.wait_until_direct("oldest")
    mesh.host.cut_udp()
    oldest.wait_until_relayed("mesh")
    bed.expect_hello(oldest, "mesh", "mesh")
    bed.expect_hello(mesh, "oldest", "oldest")
