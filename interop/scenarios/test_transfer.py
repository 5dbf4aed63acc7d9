"""Long transfers, both ways, direct and relayed: every byte arrives, in order, once.

Sizes: 64 MiB direct and 16 MiB relayed; with MESHNODE_INTEROP_FULL=1 1 GiB each.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from interop.bed import FULL, MIB, random_file
from interop.conftest import Town
from interop.lab import Host

DIRECT = 1024 * MIB if FULL else 64 * MIB
RELAYED = 1024 * MIB if FULL else 16 * MIB
LIMIT_S = 900.0 if FULL else 120.0


@pytest.fixture(params=["direct", "relayed"])
def size(request: pytest.FixtureRequest, town: Town) -> Iterator[int]:
    if request.param == "direct":
        town.stock.wait_until_direct("mesh")
        town.mesh.wait_until_direct("stock")
        yield DIRECT
        return
    with _udp_cut(town.mesh.host):
        town.stock.wait_until_relayed("mesh")
        town.mesh.wait_until_relayed("stock")
        yield RELAYED


class _udp_cut:
    def __init__(self, host: Host) -> None:
        self.host = host

    def __enter__(self) -> None:
        self.host.cut_udp()

    def __exit__(self, *_: object) -> None:
        self.host.heal_udp()


@pytest.mark.parametrize("direction", ["from us", "from stock"])
def test_large_file_arrives_whole(town: Town, size: int, direction: str) -> None:
    server, client, host = (
        (town.mesh, town.stock, "mesh") if direction == "from us" else (town.stock, town.mesh, "stock")
    )
    directory = town.bed.files(server.host, f"hello from {host}\n")
    big = directory / "big.bin"
    digest = random_file(big, size)
    got = town.bed.curl(client, f"http://{host}/big.bin", timeout_s=LIMIT_S)
    big.unlink()
    assert (got.status, got.size) == (200, size), got.note
    assert got.sha256 == digest
    got.path.unlink()
    print(f"\n{size // MIB} MiB {direction}: {size * 8 / got.seconds / 1e9:.2f} Gb/s")
