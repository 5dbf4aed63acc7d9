"""Fixtures of the scenarios: built peers, and beds that a module or the whole run shares.

Without root, the tools or the binaries the scenarios skip with the reason, except under CI=true,
where nothing may be skipped. As in tests/conftest.py the repository root goes to the end of the path: the
scenarios use tests/lab, and `meshnode` stays the installed package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))

from interop import build  # noqa: E402
from interop.bed import Bed, make_bed  # noqa: E402
from interop.lab import Lab, missing_tools  # noqa: E402
from interop.peers.meshnode import Meshnode  # noqa: E402
from interop.peers.tailscaled import Tailscaled  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interop: needs namespaces and the real peers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def peers() -> None:
    """Every real peer is built; else the run fails (CI) or skips (anywhere else)."""
    missing = missing_tools()
    for peer in build.load_peers().values():
        if not peer.optional and peer.missing():
            missing.append(f"{peer.name} {peer.version} (python -m interop.build)")
    if missing:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"the interop suite needs: {', '.join(missing)}")


@pytest.fixture(scope="module")
def lab(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab for one module."""
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="module")
def bed(lab: Lab) -> Bed:
    """A lab with tuned Headscale (plain http) and a stock derper, for one module."""
    return make_bed(lab)


@pytest.fixture(scope="session")
def town(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """One bed with a node of each kind, shared by the scenarios that change nothing lasting."""
    with Lab(tmp_path_factory.mktemp("town")) as made:
        bed = make_bed(made)
        stock = bed.stock("stock")
        tun = bed.stock("tun", tun=True)
        mesh = bed.mesh("mesh")
        stock.wait_for_peer("mesh")
        tun.wait_for_peer("mesh")
        yield Town(bed, stock, tun, mesh)


class Town:
    """A bed, a userspace stock node, a stock node with a TUN, and one of ours."""

    def __init__(self, bed: Bed, stock: Tailscaled, tun: Tailscaled, mesh: Meshnode) -> None:
        self.bed = bed
        self.stock = stock
        self.tun = tun
        self.mesh = mesh
