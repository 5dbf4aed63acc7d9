"""Relays that die without a word: stopped, or cut off by TCP while their STUN answers. Traffic finds another region.

Nodes reach each other by relay alone, and two relays are at hand; STUN answers at one only, which so is everybody's
home at first. Flows come from a stock node and from one of ours.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import Bed
from interop.flow import Download, record
from interop.lab import Host, Lab, until
from interop.peers.derper import PORT as RELAY_PORT
from interop.peers.derper import STUN_PORT, Derper
from interop.peers.drip import PORT, start_drip
from interop.peers.headscale import Headscale
from interop.peers.meshnode import SOCKS5, Meshnode
from interop.peers.tailscaled import SOCKS5 as STOCK_SOCKS5
from interop.peers.tailscaled import Tailscaled

PEERS = ("stock", "ours")
FLOW_S = 3.0
NEAR, FAR = 900, 901
BACK_S = 20.0


@dataclass
class Relayed:
    mover: Meshnode
    stock: Tailscaled
    near: Derper
    far: Derper

    def home(self) -> str:
        """The code of our home region, as status shows it."""
        return str(self.mover.status()["Self"]["Relay"])

    def download(self, name: str, seconds: float = FLOW_S) -> Download:
        """From one of the peers."""
        return Download(self.mover.host, SOCKS5, name, seconds)

    def expect_traffic(self, what: str, flow: Download, since: float) -> None:
        """What flowed from our other node goes on, and a stock node reaches us anew; each in time.

        It is the stock node that asks: only it can be sure to reach the other's home, its own may be dead to the other.
        """
        back_at = flow.goes_on_after(since + 0.5, 30.0) - since
        record(what, "ours", seconds=back_at)
        with Download(self.stock.host, STOCK_SOCKS5, "mover", 0.2) as fresh:
            fresh.finish()
        stock_at = time.monotonic() - since
        record(what, "stock asks anew", seconds=stock_at)
        flow.finish()
        assert back_at <= BACK_S and stock_at <= BACK_S + 5.0


def apart(host: Host, others: list[Host]) -> None:
    """No UDP between these hosts; STUN to relays passes. IPv4 alone."""
    host.ip("-6", "address", "flush", "dev", "eth0")
    peers = ", ".join(other.v4 for other in others if other is not host)
    host.nft(
        "table ip mnapart {\n"
        f"chain in {{ type filter hook input priority -200 ; ip saddr {{ {peers} }} meta l4proto udp drop ; }}\n"
        f"chain out {{ type filter hook output priority -200 ; ip daddr {{ {peers} }} meta l4proto udp drop ; }}\n"
        "}"
    )


def relay_map(*relays: Derper) -> dict[str, dict[int, object]]:
    return {"regions": {number: region for relay in relays for number, region in relay.relay_map["regions"].items()}}


@pytest.fixture(scope="module")
def relayed(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    with Lab(tmp_path_factory.mktemp("dead-relays")) as lab:
        near = Derper(lab.host("near"), region=NEAR).start()
        far = Derper(lab.host("far"), region=FAR).start()
        far.host.nft(
            "table ip mnquiet {\nchain in { type filter hook input priority -200 ; "
            f"udp dport {STUN_PORT} drop ; }}\n}}"
        )
        headscale = Headscale(lab.hub, relay_map=relay_map(near, far)).start()
        bed = Bed(lab, headscale, "pinned", None, near)
        hosts = {name: lab.host(name) for name in ("stock", "ours", "mover")}
        nodes: dict[str, Meshnode] = {}
        for host in hosts.values():
            apart(host, list(hosts.values()))
            start_drip(host)
        stock = Tailscaled(hosts["stock"], "stock").start().up(headscale.url, headscale.key())
        for name in ("ours", "mover"):
            serve = [f"tcp:{PORT}=127.0.0.1:{PORT}"]
            nodes[name] = Meshnode(hosts[name], name, headscale.url, key=headscale.key(), serve=serve).start()
        for name in PEERS:
            nodes["mover"].wait_for_peer(name)
        stock.wait_for_peer("mover")
        assert bed.relay_kind == "pinned"
        yield Relayed(nodes["mover"], stock, near, far)


def test_a_home_relay_whose_tcp_is_dead_though_its_stun_answers(relayed: Relayed) -> None:
    until(lambda: relayed.home() == "lab", 10.0, "the relay that answers STUN is home")
    relay, other, host = relayed.near, f"lab{FAR}", relayed.mover.host
    with relayed.download("ours") as flow:
        host.nft(
            "table ip mnhole {\n"
            "chain out { type filter hook output priority -200 ; "
            f"ip daddr {relay.host.v4} tcp dport {RELAY_PORT} drop ; }}\n"
            "chain in { type filter hook input priority -200 ; "
            f"ip saddr {relay.host.v4} tcp sport {RELAY_PORT} drop ; }}\n}}"
        )
        cut_at = time.monotonic()
        try:
            relayed.expect_traffic("home relay without TCP", flow, cut_at)
            assert relayed.home() == other
        finally:
            host.nft("delete table ip mnhole")


def test_a_home_relay_that_is_stopped(relayed: Relayed) -> None:
    relay, other = (relayed.near, f"lab{FAR}") if relayed.home() == "lab" else (relayed.far, "lab")
    assert relay.process is not None
    with relayed.download("ours") as flow:
        relay.process.signal(signal.SIGSTOP)
        try:
            relayed.expect_traffic("home relay stopped", flow, time.monotonic())
            assert relayed.home() == other
        finally:
            relay.process.signal(signal.SIGCONT)
