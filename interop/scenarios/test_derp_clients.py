"""Stock derphttp clients at our relay, to the byte: each version of TLS, WebSocket, a pin, a region with derper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.certs import Authority
from interop.lab import Host, Lab, until
from interop.peers.derp_pair import DerpPair
from interop.peers.derper import PORT, Derper
from interop.peers.relay import OurRelay

MESH_KEY = "5c" * 32
GONE_DISCONNECTED = 0
WEBSOCKET = {"TS_DEBUG_DERP_WS_CLIENT": "1"}


@dataclass
class Region:
    """derper on the hub and our relay on a host of its own, which watch each other; clients on another."""

    lab: Lab
    authority: Authority
    derper: Derper
    ours: OurRelay
    guest: Host

    @property
    def stock_address(self) -> str:
        return f"{self.lab.hub.v4}:{PORT}"

    @property
    def our_address(self) -> str:
        return f"{self.ours.host.v4}:{self.ours.port}"

    def pair(self, a: str, b: str, *options: str, **variables: str) -> DerpPair:
        label = f"pair{len(self.lab.processes)}"
        return DerpPair(self.guest, a, b, options, variables, label).start()


@pytest.fixture(scope="module")
def region(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    with Lab(tmp_path_factory.mktemp("derp-clients")) as lab:
        authority = Authority.create(lab.folder / "ca")
        lab.environment["SSL_CERT_FILE"] = str(authority.ca)
        key = lab.hub.folder / "mesh.key"
        key.write_text(MESH_KEY)
        key.chmod(0o600)
        far, guest = lab.host("far"), lab.host("guest")
        options = ("--open", "--mesh-key", f"file:{key}", "--mesh", f"{lab.hub.v4}:{PORT}")
        ours = OurRelay(far, authority=authority, options=(*options, "--ca-file", str(authority.ca))).start()
        derper = Derper(lab.hub, authority, mesh_key=key, mesh_with=f"{far.v4}:{ours.port}").start()
        yield Region(lab, authority, derper, ours, guest)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_each_version_of_tls(region: Region, version: str) -> None:
    name = f'derper_tls_request_version{{version="{version}"}}'
    before = region.ours.metric(name)
    pair = region.pair(region.our_address, "", "-tls", version, "-size", "60000", "-packets", "20")
    said = pair.wait_for("exchanged")
    assert said["tls"] == [f"TLS {version}"] * 2 and said["packets"] == 40
    assert len(set(said["relays"])) == 1 and said["relays"][0].startswith("nodekey:")
    gone = pair.wait_for("gone")
    assert gone["reason"] == GONE_DISCONNECTED and gone["after_s"] < 5
    assert region.ours.metric(name) - before == 2


@pytest.mark.parametrize("options", [(), ("-size", "60000", "-packets", "20")], ids=["small", "large"])
def test_stock_clients_by_websocket(region: Region, options: tuple[str, ...]) -> None:
    """What the stock client does in a browser, built for Linux."""
    before = region.ours.metric("derp_websocket_accepts")
    pair = region.pair(region.our_address, "", *options, **WEBSOCKET)
    pair.wait_for("exchanged")
    assert pair.wait_for("gone")["reason"] == GONE_DISCONNECTED
    assert region.ours.metric("derp_websocket_accepts") - before == 2
    assert pair.process is not None and "websocket: connected to " in pair.process.err()


def test_a_pinned_certificate(region: Region) -> None:
    ours = OurRelay(region.guest, label="pinned").start()
    (node,) = ours.relay_map["regions"][900]["nodes"]
    address = f"{region.guest.v4}:{ours.port}"
    region.pair(address, "", "-pin", node["certname"]).wait_for("gone")
    wrong = "sha256-raw:" + "00" * 32
    assert "cert" in region.pair(address, "", "-pin", wrong).failure()["error"].lower()
    ours.stop()


@pytest.mark.parametrize("ours_first", [True, False], ids=["told-by-ours", "told-by-derper"])
def test_over_the_mesh_with_derper(region: Region, ours_first: bool) -> None:
    """Packets both ways between clients of the two, and the one that stays hears that the other left."""
    until(lambda: region.ours.metric("derp_watchers") >= 1, 30.0, "derper watches us")
    names = ("derp_packets_forwarded_in", "derp_packets_forwarded_out")
    before = [region.ours.metric(name) for name in names]
    addresses = (region.our_address, region.stock_address)
    pair = region.pair(*(addresses if ours_first else addresses[::-1]))
    said = pair.wait_for("exchanged")
    assert len(set(said["relays"])) == 2
    gone = pair.wait_for("gone")
    assert gone["reason"] == GONE_DISCONNECTED and gone["after_s"] < 5
    for name, old in zip(names, before, strict=True):
        assert region.ours.metric(name) - old >= said["packets"] / 2, name


def test_the_mesh_heals_when_derper_comes_back(region: Region) -> None:
    """Its end is the end of all that it had: whoever heard from there is told, and both directions come back."""
    pair = region.pair(region.our_address, region.stock_address, "-stay")
    pair.wait_for("exchanged")
    assert region.derper.process is not None
    region.derper.process.kill()
    gone = pair.wait_for("gone")
    assert gone["reason"] == GONE_DISCONNECTED and gone["after_s"] < 5
    assert region.ours.metric("derp_clients_remote") == 0
    region.derper.start()
    pair.wait_for("again")
    until(lambda: region.ours.metric("derp_watchers") >= 1, 30.0, "derper watches us again")
