"""What the network lets us do, measured against derper and Headscale, and beside what a stock node says of it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from interop.bed import Bed
from interop.certs import Authority
from interop.lab import Lab, until
from interop.peers.derper import Derper
from interop.peers.headscale import Headscale
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled
from tests.lab.rules import Nat
from tests.lab.site import Site

HERE, FAR = 900, 901
MOVED_S = 30.0
"""What is promised for a home whose relay is gone."""


@dataclass
class Two:
    """Two regions, a node of ours and a stock one."""

    bed: Bed
    relays: dict[int, Derper]
    mesh: Meshnode
    stock: Tailscaled

    def netcheck(self) -> dict[str, Any]:
        return dict(json.loads(self.mesh.cli("netcheck", "--json").stdout))

    def home(self) -> str:
        """Where control sends those who look for us."""
        node = self.mesh.status()["Self"]
        return str(node["Relay"]) if node["RelayConnected"] else ""

    def messages(self) -> int:
        """What the node told Headscale so far, by its log."""
        process = self.bed.headscale.process
        assert process is not None
        lines = (process.out() + process.err()).splitlines()
        return sum("path=/machine/map" in line and f"remote={self.mesh.host.v4}:" in line for line in lines)

    def home_at_control(self) -> str:
        """As another member is told."""
        return str(next(p["Relay"] for p in self.stock.status()["Peer"].values() if p["HostName"] == "mesh"))


@pytest.fixture(scope="module")
def two(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with Lab(tmp_path_factory.mktemp("netcheck")) as lab:
        authority = Authority.create(lab.folder / "ca")
        lab.environment["SSL_CERT_FILE"] = str(authority.ca)
        relays = {
            HERE: Derper(lab.hub, authority, region=HERE, dual=True).start(),
            FAR: Derper(lab.host("far"), authority, region=FAR).start(),
        }
        regions = {number: region for r in relays.values() for number, region in r.relay_map["regions"].items()}
        headscale = Headscale(lab.hub, relay_map={"regions": regions}).start()
        bed = Bed(lab, headscale, "derper", authority, relays[HERE])
        mesh, stock = bed.mesh("mesh"), bed.stock("stock")
        mesh.host.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        stock.wait_for_peer("mesh")
        yield Two(bed, relays, mesh, stock)


def test_ours_says_what_a_stock_node_says(two: Two) -> None:
    ours = two.netcheck()
    said = two.stock.cli("netcheck", "--format=json").stdout
    theirs = json.loads(said[said.index("{") :])
    assert set(theirs) <= set(ours), set(theirs) - set(ours)
    for name in ("UDP", "IPv4", "IPv6", "MappingVariesByDestIP", "OSHasIPv6", "IPv4CanSend"):
        assert ours[name] == theirs[name], (name, ours[name], theirs[name])
    assert set(ours["RegionLatency"]) == set(theirs["RegionLatency"]) == {str(HERE), str(FAR)}
    assert ours["GlobalV4"].startswith(f"{two.mesh.host.v4}:") and theirs["GlobalV4"].startswith(two.stock.host.v4)
    assert type(ours["RegionLatency"][str(FAR)]) is type(theirs["RegionLatency"][str(FAR)])
    assert set(ours["RegionV6Latency"]) == set(theirs["RegionV6Latency"]) == {str(HERE)} and ours["IPv6"] is True
    assert ours["GlobalV6"].startswith(f"[{two.mesh.host.v6}]:")
    assert ours["NAT"] == "none" and ours["Home"]["Connected"] is True


def test_reports_send_control_nothing(two: Two) -> None:
    """Headscale passes each message on to every peer: there is to be none while nothing changed."""
    before = two.messages()
    for _ in range(5):
        two.netcheck()
    assert two.messages() == before


def test_without_udp_it_is_measured_by_https_and_echo(two: Two) -> None:
    two.mesh.host.cut_udp()
    try:
        found = two.netcheck()
    finally:
        two.mesh.host.heal_udp()
    assert (found["UDP"], found["IPv4"], found["ICMPv4"]) == (False, False, True)
    for region in found["Regions"]:
        assert region["HTTPSMs"] is not None and region["ICMPMs"] is not None and region["V4Ms"] is None, region
    assert found["NATReason"] == "no STUN server answers by UDP" and found["DurationMs"] < 5500
    assert two.netcheck()["UDP"] is True


@pytest.mark.parametrize(("nat", "word"), [(Nat.PORT_RESTRICTED, "easy"), (Nat.SYMMETRIC, "hard")])
def test_behind_a_nat(two: Two, nat: Nat, word: str) -> None:
    site = Site(two.bed.lab, f"nat-{word}", nat).build()
    try:
        node = Meshnode(
            site.host(word), word, two.bed.headscale.url, key=two.bed.headscale.key(), socks5=False
        ).start()  # fmt: skip
        found = json.loads(node.cli("netcheck", "--json").stdout)
        assert (found["NAT"], found["MappingVariesByDestIP"]) == (word, word == "hard")
        outside = found["GlobalV4"]
        assert outside.startswith(f"{site.wan}:") and len(found["GlobalV4Counters"]) == (2 if word == "hard" else 1)
        assert outside in node.status()["Self"]["Addrs"]
        assert node.stop() == 0
    finally:
        site.remove()


def test_the_home_moves_when_its_relay_is_gone_and_control_hears_of_it(two: Two) -> None:
    home = two.home()
    number = next(n for n, r in two.relays.items() if r.relay_map["regions"][n]["regioncode"] == home)
    process = two.relays[number].process
    assert process is not None
    started = time.monotonic()
    process.signal(signal.SIGKILL)
    until(lambda: two.home() not in ("", home), MOVED_S, "the home is elsewhere")
    until(lambda: two.home_at_control() == two.home(), MOVED_S - (time.monotonic() - started), "peers know it")
