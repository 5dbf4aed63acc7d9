"""A node behind a symmetric NAT and one behind a port-restricted NAT meet directly, both with port prediction on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from interop.bed import FULL, MIB, Bed, random_file
from interop.certs import Authority
from interop.lab import Lab, until
from interop.peers.derper import Derper
from interop.peers.headscale import Headscale
from interop.peers.meshnode import Meshnode
from tests.lab.rules import Nat
from tests.lab.site import Site

ATTEMPTS = 20 if FULL else 2
SIZE = 4 * MIB


@dataclass
class Street:
    """Control and two relays: one STUN server alone does not show that a NAT is hard."""

    lab: Lab
    bed: Bed
    number: int = 0
    times: list[float] = field(default_factory=list)

    def node(self, site: Site, *, prediction: bool = True) -> Meshnode:
        """A node behind that router, serving a file."""
        host = site.host(f"{site.name}-n")
        folder = self.bed.files(host, f"hello from {host.name}\n")
        random_file(folder / "blob", SIZE)
        config = self.lab.folder / f"{host.name}.toml"
        config.write_text(f'[disco]\nportmap = "off"\nport_prediction = {str(prediction).lower()}\n')
        url, key = self.bed.headscale.url, self.bed.headscale.key()
        extra = ["-c", str(config)]
        return Meshnode(host, host.name, url, key=key, serve=[f"http:80={folder}"], extra=extra).start()

    def pair(
        self, kind: Nat = Nat.SYMMETRIC, *, random: bool = False, prediction: bool = True
    ) -> tuple[Meshnode, Meshnode, list[Site]]:
        """(port-restricted, `kind`, their routers), which know of each other. random: another form of masquerading."""
        self.number += 1
        easy = Site(self.lab, f"e{self.number}", Nat.PORT_RESTRICTED).build()
        hard = Site(self.lab, f"h{self.number}", kind).build()
        if random:
            hard.router.nft('flush chain ip nat post\nadd rule ip nat post oifname "wan" masquerade random')
        nodes = self.node(easy, prediction=prediction), self.node(hard, prediction=prediction)
        nodes[0].wait_for_peer(nodes[1].name)
        nodes[1].wait_for_peer(nodes[0].name)
        return *nodes, [easy, hard]


@pytest.fixture(scope="module")
def street(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    with Lab(tmp_path_factory.mktemp("prediction")) as lab:
        authority = Authority.create(lab.folder / "ca")
        lab.environment["SSL_CERT_FILE"] = str(authority.ca)
        relays = [Derper(lab.hub, authority, region=900), Derper(lab.host("far"), authority, region=901)]
        maps = [relay.start().relay_map["regions"] for relay in relays]
        headscale = Headscale(lab.hub, relay_map={"regions": maps[0] | maps[1]}).start()
        yield Street(lab, Bed(lab, headscale, "derper", authority, relays[0]))


def udp_sockets(node: Meshnode) -> int:
    """How many of them are open for IPv4 where the node lives."""
    return len(node.host.run("cat", "/proc/net/udp").stdout.splitlines()) - 1


def fetch(street: Street, node: Meshnode, peer: Meshnode) -> None:
    """A file through the tunnel, whole."""
    got = street.bed.curl(node, f"http://{peer.name}/blob")
    wanted = hashlib.sha256((peer.host.folder / "www" / "blob").read_bytes()).hexdigest()
    assert (got.status, got.sha256) == (200, wanted)


@pytest.mark.parametrize("attempt", range(ATTEMPTS))
def test_port_restricted_meets_symmetric(street: Street, attempt: int) -> None:
    """Either side may begin; the socket that was hit carries everything, and no other stays open."""
    easy, hard, sites = street.pair(random=attempt % 2 == 1)
    first, second = (easy, hard) if attempt % 4 < 2 else (hard, easy)
    began = time.monotonic()
    first.wait_until_direct(second.name, 20.0)
    street.times.append(time.monotonic() - began)
    print(f"direct after {street.times[-1]:.2f} s")
    second.wait_until_direct(first.name, 5.0)
    fetch(street, easy, hard)
    fetch(street, hard, easy)
    peer = hard.peer(easy.name)
    assert peer is not None and peer["CurAddr"].startswith(f"{sites[0].wan}:")
    until(lambda: udp_sockets(hard) <= 2, 5.0, "the tunnel's own socket and the one that was hit are all")
    for node, site in zip((easy, hard), sites, strict=True):
        node.stop()
        site.remove()


def test_a_mapping_that_an_early_ping_spoiled_is_got_around(street: Street) -> None:
    """The router of one takes unasked pings for its own, and then maps us elsewhere; a fresh socket is not hit."""
    easy, open_router, sites = street.pair(Nat.PORT_RESTRICTED_OPEN)
    until(
        lambda: len((easy.peer(open_router.name) or {"Addrs": ()})["Addrs"]) > 1, 10.0, "where it is outside is known"
    )
    easy.wait_until_direct(open_router.name, 20.0)
    open_router.wait_until_direct(easy.name, 5.0)
    fetch(street, easy, open_router)
    for node, site in zip((easy, open_router), sites, strict=True):
        node.stop()
        site.remove()


def test_without_it_they_stay_relayed_and_no_socket_is_opened(street: Street) -> None:
    easy, hard, sites = street.pair(prediction=False)
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 4.0 and "DERP" in easy.ping(hard.name), 20.0, "still by relay")
    assert udp_sockets(hard) == 1
    for node, site in zip((easy, hard), sites, strict=True):
        node.stop()
        site.remove()
