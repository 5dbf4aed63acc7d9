"""No UDP, and TCP only where a firewall lets it: through tinyproxy and squid, on port 443 alone, behind nginx.

Control speaks TLS on 443, as does the relay. The nodes inside can send nothing but what the scenario names: what they
do not get through the proxy they do not get.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import MIB, Bed, random_file
from interop.certs import Authority
from interop.lab import Host, Lab, until
from interop.peers.derper import Derper
from interop.peers.forward import PORT, ForwardProxy, Kind
from interop.peers.front import Front
from interop.peers.headscale import Headscale
from interop.peers.meshnode import Meshnode
from interop.peers.portal import CaptivePortal
from interop.peers.relay import OurRelay
from interop.peers.tailscaled import Tailscaled


@dataclass
class Office:
    """A tailnet outside, and a place inside that reaches it only as a scenario allows."""

    bed: Bed
    stock: Tailscaled

    def inside(self, name: str, proxy: ForwardProxy | None = None) -> Host:
        """A host that can send nothing but TCP to the proxy, or without one TCP to port 443."""
        host = self.bed.lab.host(name)
        if proxy is None:
            host.only_tcp(443)
        else:
            host.only_tcp(PORT, address=proxy.host.v4)
        return host

    def expect_both_ways(self, node: Meshnode) -> None:
        """Relayed, and traffic passes from and to a stock node."""
        node.wait_for_peer("stock")
        self.stock.wait_for_peer(node.name)
        assert "DERP(lab)" in node.wait_until_relayed("stock")
        self.bed.expect_hello(node, "stock", "stock")
        self.bed.expect_hello(self.stock, node.name, node.name)

    def expect_files(self, node: Meshnode) -> None:
        """A larger file each way, whole."""
        for teller, hearer in ((self.stock, node), (node, self.stock)):
            wanted = random_file(teller.host.folder / "www" / "file", 4 * MIB)
            assert self.bed.curl(hearer, f"http://{teller.name}/file").sha256 == wanted

    def expect_websocket(self, name: str) -> None:
        """Behind nginxes that stand where control and the relay are, and strip what is not WebSocket."""
        assert self.bed.authority is not None
        lab, host, fronts = self.bed.lab, self.inside(name), []
        for what, server in (("control", lab.hub), ("relay", lab.hosts["relay"])):
            fronts.append(Front(lab.host(f"front-{what}"), server.v4, self.bed.authority).start())
            host.divert(443, fronts[-1].host.v4, server.v4)
        node = self.bed.mesh(name, host=host)
        self.expect_both_ways(node)
        self.expect_files(node)
        node.stop()
        control, relay = fronts
        until(lambda: '"GET /derp HTTP/1.1" 101' in relay.requests(), 10.0, "nginx passed a WebSocket to the relay")
        for status in ("426", "101"):  # refused once, and never cut off afterwards
            assert relay.requests().count(f'"GET /derp HTTP/1.1" {status}') == 1, relay.requests()
        wanted = re.compile(r'"GET /ts2021\?\S+ HTTP/1.1" 101 ')
        until(lambda: wanted.search(control.requests()), 10.0, "nginx passed a WebSocket to control")


def make_office(lab: Lab, relay: str) -> Office:
    """Headscale with TLS on port 443, and on a host of its own a relay with TLS on port 443."""
    authority = Authority.create(lab.folder / "ca")
    lab.environment["SSL_CERT_FILE"] = str(authority.ca)
    host = lab.host("relay")
    derper = Derper(host, authority if relay == "derper" else None, port=443) if relay != "ours" else None
    options = ("--open", "--http", f"{host.v4}:80")
    ours = None if derper else OurRelay(host, options, authority=authority, port=443)
    relays = derper.start().relay_map if derper else ours.start().relay_map if ours else {}
    headscale = Headscale(lab.hub, relay_map=relays, authority=authority, port=443)
    bed = Bed(lab, headscale.start(), "derper", authority, derper, relay=ours)
    return Office(bed, bed.stock("stock"))


@pytest.fixture(scope="module")
def office(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with Lab(tmp_path_factory.mktemp("office")) as lab:
        yield make_office(lab, "derper")


def expect_in_the_log(office: Office, proxy: ForwardProxy) -> None:
    """squid writes a line when a connection has ended."""
    proxy.wait_for_request(f"CONNECT {office.bed.headscale.host.v4}:443")
    proxy.wait_for_request(f"CONNECT {office.bed.lab.hosts['relay'].v4}:443")


@pytest.mark.parametrize(
    ("kind", "guarded"), [("tinyproxy", False), ("tinyproxy", True), ("squid", False), ("squid", True)]
)
def test_through_a_proxy_and_no_other_way(office: Office, kind: Kind, guarded: bool) -> None:
    name = f"{kind[:5]}{'-pw' if guarded else ''}"
    proxy = ForwardProxy(office.bed.lab.host(f"gate-{name}"), kind, guarded).start()
    node = office.bed.mesh(name, host=office.inside(name, proxy), variables={"HTTPS_PROXY": proxy.url})
    office.expect_both_ways(node)
    said = node.running.out() + node.running.err()
    assert not any(secret in said for secret in ("pass.word", "p@ss", "p%40ss"))
    node.stop()
    expect_in_the_log(office, proxy)


def test_only_port_443(office: Office) -> None:
    office.expect_both_ways(office.bed.mesh("only443", host=office.inside("only443")))


def test_websocket_to_derper(office: Office) -> None:
    office.expect_websocket("nginx")


@pytest.mark.parametrize("relay", ["ours", "pinned"])
def test_the_setting_and_a_private_authority(relay: str, peers: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The proxy is named by a file, the authority by --ca-file; a relay's own certificate is known by its pin alone."""
    with Lab(tmp_path_factory.mktemp(relay)) as lab:
        office = make_office(lab, relay)
        assert office.bed.authority is not None
        proxy = ForwardProxy(lab.host("gate"), "squid", guarded=True).start()
        secret = proxy.host.folder / "proxy"
        secret.write_text(f"{proxy.url}\n")
        node = office.bed.mesh(
            "inside",
            host=office.inside("inside", proxy),
            extra=["--proxy", f"file:{secret}", "--ca-file", str(office.bed.authority.ca)],
            variables={"SSL_CERT_FILE": "/nowhere", "HTTPS_PROXY": "http://127.0.0.1:1"},
        )
        office.expect_both_ways(node)
        node.stop()
        expect_in_the_log(office, proxy)
        if relay == "ours":
            office.expect_websocket("nginx")
            expect_a_portal_to_be_named(office)


def expect_a_portal_to_be_named(office: Office) -> None:
    """It answers for everybody on port 80: a node that runs says so by itself, and one that cannot join."""
    lab, on = office.bed.lab, {"MESHNODE_CAPTIVE_PORTAL": "on"}
    said = "a captive portal at this network answers for the control server: open a browser and log in"
    portal = CaptivePortal(lab.host("portal")).start()
    host = lab.host("guest")
    host.only_tcp(443, 80)
    host.divert(80, portal.host.v4)
    node = office.bed.mesh("guest", host=host, variables=on)
    newcomer = lab.host("newcomer")
    newcomer.cut_tcp(office.bed.headscale.host.v4, 443)
    newcomer.divert(80, portal.host.v4)
    late = Meshnode(
        newcomer, "newcomer", office.bed.headscale.url, key=office.bed.headscale.key(), extra=["--timeout", "4"],
        variables=on,
    )  # fmt: skip
    process = late.launch()
    assert process.wait(30.0) != 0
    assert said in process.err().splitlines()[-1]
    until(lambda: said in node.status()["Health"], 10.0, "the running node names the portal")
