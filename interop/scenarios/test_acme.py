"""A relay of ours gets its certificate from an ACME server: by HTTP and by TLS, for names and for a bare address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from interop.certs import Authority
from interop.lab import Host, Lab, Process, until
from interop.peers.meshnode import command
from interop.peers.pebble import Pebble

NAME = "relay.lab.example"
OTHER = "relay2.lab.example"
READY_S = 40.0
NEW_ORDER, NEW_ACCOUNT = "POST /order-plz", "POST /sign-me-up"
"""As pebble's log has them."""


@dataclass
class Town:
    pebble: Pebble
    relay: Host
    client: Host
    root: Path

    def start(self, label: str, by: str, *hosts: str, folder: str = "", http: bool = True) -> Process:
        """`meshnode derp --acme` on the standard ports; not yet ready."""
        argv = [*command(), "derp", "--listen", f"{self.relay.v4}:443", "--stun", "off", "--open"]
        argv += ["--http", f"{self.relay.v4}:80"] if http else []
        argv += ["--acme", self.pebble.directory, "--acme-by", by, "--ca-file", str(self.pebble.authority.ca)]
        argv += ["--dir", str(self.relay.folder / (folder or label))]
        for host in hosts:
            argv += ["--host", host]
        return self.relay.start(label, argv)

    def ready(self, label: str, by: str, *hosts: str, folder: str = "", http: bool = True) -> Process:
        process = self.start(label, by, *hosts, folder=folder, http=http)
        process.wait_until(lambda: "ready " in process.out(), READY_S, "the relay is ready")
        return process

    def page(self, host: str) -> str:
        """A page over TLS that is verified against pebble's root, from another machine."""
        words = ["curl", "-sS", "--cacert", str(self.root), "--resolve", f"{host}:443:{self.relay.v4}"]
        return self.client.run(*words, f"https://{host}/").stdout

    def certificate(self, name: str) -> str:
        """What a client that asks for this name meets, as openssl says it."""
        words = f"openssl s_client -connect {self.relay.v4}:443 -servername {name} </dev/null 2>/dev/null"
        shown = f"{words} | openssl x509 -noout -serial -dates -ext subjectAltName"
        return self.client.run("sh", "-c", shown).stdout


@pytest.fixture(scope="module")
def town(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Lab(tmp_path_factory.mktemp("acme")) as lab:
        relay, client = lab.host("relay"), lab.host("client")
        authority = Authority.create(lab.folder / "ca")
        pebble = Pebble(lab.hub, authority, relay.v4).start()
        yield Town(pebble, relay, client, pebble.root(lab.folder / "root.pem"))


@pytest.mark.parametrize("by", ["http-01", "tls-alpn-01"])
def test_names(town: Town, by: str) -> None:
    relay = town.ready(f"names-{by}", by, NAME, OTHER, http=by == "http-01")
    try:
        assert "relay" in town.page(NAME) and "relay" in town.page(OTHER)
        assert f"DNS:{NAME}, DNS:{OTHER}" in town.certificate(NAME)
    finally:
        relay.stop()


@pytest.mark.parametrize("by", ["http-01", "tls-alpn-01"])
def test_a_bare_address(town: Town, by: str) -> None:
    relay = town.ready(f"address-{by}", by, town.relay.v4, http=by == "http-01")
    try:
        assert "relay" in town.page(town.relay.v4)
        first = town.certificate(town.relay.v4)
        assert f"IP Address:{town.relay.v4}" in first
        # It lasts 12 s here, as the profile for addresses asks: another takes its place while the relay serves.
        until(lambda: town.certificate(town.relay.v4) not in ("", first), 20.0, "the certificate is renewed")
        assert relay.running and "relay" in town.page(town.relay.v4)
    finally:
        relay.stop()


def test_a_kept_certificate_is_used_again(town: Town) -> None:
    first = town.ready("kept", "tls-alpn-01", NAME, folder="kept", http=False)
    serial = town.certificate(NAME)
    first.stop()
    orders = town.pebble.log().count(NEW_ORDER)
    accounts = town.pebble.log().count(NEW_ACCOUNT)
    assert orders and accounts
    second = town.ready("kept", "tls-alpn-01", NAME, folder="kept", http=False)
    assert town.certificate(NAME) == serial
    second.stop()
    assert town.pebble.log().count(NEW_ORDER) == orders
    third = town.ready("kept", "tls-alpn-01", NAME, OTHER, folder="kept", http=False)
    assert town.certificate(NAME) != serial, "other names need another certificate"
    third.stop()
    assert town.pebble.log().count(NEW_ACCOUNT) == accounts, "the account is kept as well"


def test_what_cannot_be_proved_is_said(town: Town) -> None:
    """A name that leads elsewhere, a name the server will not have, and a server that is none."""
    lost = town.start("lost", "http-01", town.client.v4)
    assert lost.wait(READY_S) == 25
    assert re.search(r"could not verify .*; port 80 \(--http :80\) of these names must lead to this relay", lost.err())
    blocked = town.start("blocked", "tls-alpn-01", "blocked.example", http=False)
    assert blocked.wait(READY_S) == 25
    assert "refused" in blocked.err() and "blocked.example" in blocked.err()
    town.relay.start("web", ["python3", "-m", "http.server", "14000", "--bind", town.relay.v4])
    argv = [*command(), "derp", "--listen", f"{town.relay.v4}:443", "--stun", "off", "--open", "--host", NAME]
    argv += ["--acme", f"https://{town.relay.v4}:14000/dir", "--dir", str(town.relay.folder / "none")]
    none = town.relay.start("none", argv)
    assert none.wait(READY_S) == 25
    assert f"no certificate from {town.relay.v4}:14000" in none.err()
