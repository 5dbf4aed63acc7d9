"""`meshnode derp` as the relay of a tailnet: stock nodes old and new, Headscale's say, neighbours of both kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import MIB, Bed, RelayKind, make_bed, random_file
from interop.certs import Authority
from interop.lab import Lab, until
from interop.peers.derp_pair import DerpPair
from interop.peers.derper import PORT, REGION, Derper
from interop.peers.headscale import Headscale
from interop.peers.meshnode import Meshnode, command
from interop.peers.relay import OurRelay
from interop.peers.tailscaled import Tailscaled

MESH_KEY = "5c" * 32


@dataclass
class Town:
    bed: Bed
    stock: Tailscaled
    other: Tailscaled
    mesh: Meshnode

    @property
    def relay(self) -> OurRelay:
        assert self.bed.relay is not None
        return self.bed.relay


@pytest.fixture(scope="module", params=["ours", "ours-pinned"])
def region(request: pytest.FixtureRequest, peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    kind: RelayKind = request.param
    with Lab(tmp_path_factory.mktemp(f"derp-{kind}")) as lab:
        bed = make_bed(lab, kind, options=("--open", "--http", f"{lab.hub.v4}:80"))
        stock = bed.stock("stock")
        other = bed.stock("other", release="tailscale_oldest" if kind == "ours" else "tailscale")
        mesh = bed.mesh("mesh")
        for node in (stock, other):
            node.wait_for_peer("mesh")
        mesh.wait_for_peer("stock")
        yield Town(bed, stock, other, mesh)


def test_stock_clients_are_relayed_and_heal(region: Town) -> None:
    bed, stock, other, mesh = region.bed, region.stock, region.other, region.mesh
    before = region.relay.metric("derp_packets_received")
    stock.host.cut_udp()
    try:
        assert "DERP(lab)" in stock.wait_until_relayed("other")
        for getter, giver in ((stock, other), (other, stock), (stock, mesh), (mesh, stock)):
            bed.expect_hello(getter, giver.name, giver.name)
            digest = random_file(giver.host.folder / "www" / "blob", MIB)
            assert bed.curl(getter, f"http://{giver.name}/blob").sha256 == digest, f"{giver.name} to {getter.name}"
    finally:
        stock.host.heal_udp()
    stock.wait_until_direct("mesh", 30.0)
    assert region.relay.metric("derp_packets_received") > before
    assert region.relay.metric("derp_current_home_connections") == 3


def test_netcheck_and_debug_derp_find_nothing_wrong(region: Town) -> None:
    """By the newest client, and by the oldest where it is there: latency, home, both handshakes, STUN, no complaint."""
    for node in {each.release: each for each in (region.stock, region.other)}.values():
        said = node.cli("netcheck")
        assert "* UDP: true" in said.stdout and "* Nearest DERP: lab" in said.stdout, said.stdout
        assert re.search(r"- lab: +[0-9.]+(µs|ms) +\(lab\)", said.stdout), said.stdout
        assert not re.search("error|fail|warn|timeout", said.stdout + said.stderr, re.IGNORECASE), said
        report = json.loads(node.cli("netcheck", "--format", "json").stdout)
        assert report["UDP"] and report["IPv4"] and report["PreferredDERP"] == REGION, report
        assert 0 < report["RegionLatency"][str(REGION)] < 1e9, report
        found = json.loads(node.cli("debug", "derp", "lab").stdout)
        told = "\n".join(found["Info"])
        assert told.count("Successfully established a DERP connection") == 1, found
        assert "returned IPv4 STUN response" in told, found
        assert all("only a single DERP region" in line for line in found["Warnings"]), found  # so is the map
        # It tries the IPv4 address over IPv6 as well, whatever relay it is.
        assert all("over IPv6" in line for line in found["Errors"] or []), found


def test_the_printed_region_is_pasted_as_it_is(peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """--self-signed by bare address: a stock client takes the printed map, pin included, and `--check` agrees."""
    with Lab(tmp_path_factory.mktemp("pasted")) as lab:
        ours = OurRelay(lab.hub).start()
        bed = Bed(lab, Headscale(lab.hub, relay_map=ours.printed_yaml).start(), "ours-pinned", None, relay=ours)
        stock, mesh = bed.stock("stock"), bed.mesh("mesh")
        stock.wait_for_peer("mesh")
        stock.host.cut_udp()
        assert "DERP(own)" in stock.wait_until_relayed("mesh")
        pin = ours.printed_yaml.partition('certname: "')[2].partition('"')[0]
        where = f"{lab.hub.v4}:{ours.port}"
        done = mesh.host.run(*command(), "derp", "--check", where, "--pin", pin, check=False)
        assert done.returncode == 0 and "ok   pin " in done.stdout, done.stdout
        done = mesh.host.run(*command(), "derp", "--check", where, "--pin", pin[:-4] + "0000", check=False)
        assert done.returncode == 1 and "FAIL pin " in done.stdout, done.stdout


def test_what_headscale_does_not_know_stays_out(peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """--verify-url: members come in and stay while Headscale is down, a removed node goes within the minute, strangers
    never come in, and one line says that nobody can be asked."""
    with Lab(tmp_path_factory.mktemp("verify")) as lab:
        bed = make_bed(lab, "ours", options=("--verify-url", f"http://{lab.hub.v4}:8080/verify"))
        assert bed.relay is not None
        relay = bed.relay
        assert bed.headscale.url.endswith(":8080"), bed.headscale.url
        stock, mesh = bed.stock("stock"), bed.mesh("mesh")
        guest, address = lab.host("guest"), f"{lab.hub.v4}:{relay.port}"

        def expect_refusal(number: int) -> None:
            assert DerpPair(guest, address, label=f"stranger{number}").start().failure()["what"] in ("connect", "login")

        expect_refusal(0)
        assert relay.metric("meshnode_derp_refused") >= 1
        mesh.wait_for_peer("stock")
        stock.host.cut_udp()
        stock.wait_until_relayed("mesh")
        assert relay.metric("derp_current_connections") == 2
        bed.headscale.stop()
        for number in range(1, 4):
            expect_refusal(number)
        bed.expect_hello(mesh, "stock", "stock")
        assert relay.metric("meshnode_derp_admission_unanswered") >= 3
        assert relay.metric("derp_current_connections") == 2, "members stay"
        assert relay.process is not None
        assert relay.process.err().count("nobody can be asked") == 1, relay.process.err()
        bed.headscale.start()
        bed.headscale.delete_node("stock")
        until(lambda: relay.metric("derp_current_connections") == 1, 60.0, "the removed node is cut off")
        assert relay.metric("meshnode_derp_revoked") == 1


def test_beside_a_node_its_tailnet_is_let_in_and_nobody_else(
    peers: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`up --derp`: one process is a member and the relay of all; who is deleted in Headscale is cut off."""
    with Lab(tmp_path_factory.mktemp("beside")) as lab:
        authority = Authority.create(lab.folder / "ca")
        lab.environment["SSL_CERT_FILE"] = str(authority.ca)
        ours = OurRelay(lab.hub, authority=authority)
        bed = Bed(lab, Headscale(lab.hub, relay_map=ours.relay_map).start(), "ours", authority, relay=ours)
        certificate, key = authority.issue("beside", lab.hub.v4)
        settings = {
            "LISTEN": f"{lab.hub.v4}:{PORT}", "STUN": f"{lab.hub.v4}:{ours.stun_port}", "HOST": lab.hub.v4,
            "CERT": str(certificate), "KEY": str(key), "DIR": str(lab.hub.folder / "relay"),
            "METRICS": f"{lab.hub.v4}:{ours.metrics_port}",
        }  # fmt: skip
        variables = {f"MESHNODE_DERP_{name}": value for name, value in settings.items()}
        office = Meshnode(
            lab.hub, "office", bed.headscale.url, key=bed.headscale.key(), extra=["--derp"], variables=variables
        )
        process = office.launch()
        process.wait_until(lambda: "\nready office." in process.out(), 30.0, "node and relay are ready")
        stock = bed.stock("stock")
        bed.mesh("mesh")
        stock.wait_for_peer("mesh")
        stock.host.cut_udp()
        stock.wait_until_relayed("mesh")
        bed.expect_hello(stock, "mesh", "mesh")
        assert ours.metric("derp_current_connections") == 3, "the node beside it is a client like any other"
        bed.headscale.delete_node("stock")
        until(lambda: ours.metric("derp_current_connections") == 2, 60.0, "the removed node is cut off")
        assert ours.metric("meshnode_derp_revoked") >= 1


def test_a_region_of_ours_and_derper(peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both relays watch each other: a client that holds only one of them reaches a client of the other."""
    with Lab(tmp_path_factory.mktemp("mesh")) as lab:
        authority = Authority.create(lab.folder / "ca")
        lab.environment["SSL_CERT_FILE"] = str(authority.ca)
        key = lab.hub.folder / "mesh.key"
        key.write_text(MESH_KEY)
        key.chmod(0o600)
        far, alone = lab.host("far"), lab.host("alone")
        with_derper = ("--mesh-key", f"file:{key}", "--mesh", f"{lab.hub.v4}:{PORT}", "--ca-file", str(authority.ca))
        ours = OurRelay(far, authority=authority, options=("--open", *with_derper)).start()
        derper = Derper(lab.hub, authority, mesh_key=key, mesh_with=f"{far.v4}:{ours.port}").start()
        until(lambda: ours.metric("derp_watchers") >= 1, 30.0, "derper watches us")
        relays = derper.relay_map
        (node,) = ours.relay_map["regions"][REGION]["nodes"]
        relays["regions"][REGION]["nodes"].append({**node, "name": f"{REGION}b"})
        bed = Bed(lab, Headscale(lab.hub, relay_map=relays).start(), "derper", authority, derper)
        stock = bed.stock("stock")
        until(lambda: ours.metric("derp_clients_remote") >= 1, 30.0, "ours learns of derper's client")
        alone.cut_tcp(lab.hub.v4, PORT)
        alone.cut_udp()
        directory = bed.files(alone, "hello from alone\n")
        mesh = Meshnode(
            alone, "alone", bed.headscale.url, key=bed.headscale.key(), serve=[f"http:80={directory}"]
        ).start()  # fmt: skip
        mesh.wait_for_peer("stock")
        stock.wait_for_peer("alone")
        bed.expect_hello(mesh, "stock", "stock")
        bed.expect_hello(stock, "alone", "alone")
        assert ours.metric("derp_packets_forwarded_in") > 0 and ours.metric("derp_packets_forwarded_out") > 0
