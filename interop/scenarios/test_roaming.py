"""The network under a node changes while it downloads: cables, addresses, families, sleep. Nothing gets stuck.

Each scenario runs towards a stock node and towards one of ours, side by side; the flow survives with every byte, and
the stalls are printed as JSON. Hosts begin with IPv4 alone, so that there is a family to lose.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import FULL, Bed
from interop.flow import Download, record
from interop.lab import Host, Lab, until
from interop.peers.derper import Derper
from interop.peers.drip import PORT, start_drip
from interop.peers.headscale import Headscale
from interop.peers.meshnode import SOCKS5, Meshnode
from interop.peers.tailscaled import Tailscaled

PEERS = ("stock", "ours")
FLOW_S = 2.0
STOPPED_S = 15.0
TRUST_S = 16.0
"""A stock node trusts a path for 6.5 s, and its TCP repeats by its own clock."""
LIMIT_S = 8.0
"""The longest stall; on a quiet machine a second and a half."""


@dataclass
class Trio:
    bed: Bed
    mover: Meshnode
    stock: Tailscaled
    ours: Meshnode

    @contextlib.contextmanager
    def downloads(self, seconds: float = FLOW_S) -> Iterator[list[Download]]:
        """One from each peer, running."""
        for name in PEERS:
            self.mover.wait_until_direct(name)
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(Download(self.mover.host, SOCKS5, name, seconds)) for name in PEERS]


def mesh(bed: Bed, name: str) -> Meshnode:
    """A node of ours on a host with IPv4 alone."""
    host = bed.lab.host(name)
    host.ip("-6", "address", "flush", "dev", "eth0")
    start_drip(host)
    serve = [f"tcp:{PORT}=127.0.0.1:{PORT}"]
    return Meshnode(host, name, bed.headscale.url, key=bed.headscale.key(), serve=serve).start()


@pytest.fixture(scope="module")
def trio(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    with Lab(tmp_path_factory.mktemp("roaming")) as lab:
        derper = Derper(lab.hub, dual=True).start()
        headscale = Headscale(lab.hub, relay_map=derper.relay_map).start()
        bed = Bed(lab, headscale, "pinned", None, derper)
        stock, ours, mover = bed.stock("stock"), mesh(bed, "ours"), mesh(bed, "mover")
        start_drip(stock.host)
        for name in PEERS:
            mover.wait_for_peer(name)
        yield Trio(bed, mover, stock, ours)


def finish(flows: list[Download], what: str, since: float, limit_s: float) -> None:
    """Every flow goes on within the limit and arrives whole."""
    for flow in flows:
        flow.goes_on_after(since, limit_s + 15.0)
    for flow in flows:
        flow.finish()
        record(what, flow.name, stall_s=flow.stall(since))
    assert max(flow.stall(since) for flow in flows) <= limit_s


def test_a_cable_that_is_pulled_and_plugged_in_again(trio: Trio) -> None:
    hub, port = trio.bed.lab.hub, trio.bed.lab.far_end(trio.mover.host)
    with trio.downloads() as flows:
        hub.ip("link", "set", port, "down")
        until(lambda: "the network changed" in trio.mover.running.err(), 5.0, "the watch sees the cable go")
        hub.ip("link", "set", port, "up")
        finish(flows, "cable pulled and plugged in", time.monotonic(), LIMIT_S)


def readdress(host: Host, hub: Host, v4: str) -> None:
    """As a DHCP client does: the old address goes, with it the routes, then another comes."""
    host.ip("-4", "address", "flush", "dev", "eth0")
    host.ip("address", "add", f"{v4}/24", "dev", "eth0")
    host.ip("route", "replace", "default", "via", hub.v4)


@contextlib.contextmanager
def restored(host: Host, hub: Host) -> Iterator[None]:
    """IPv4 alone again at the end."""
    try:
        yield
    finally:
        host.ip("-6", "address", "flush", "dev", "eth0")
        readdress(host, hub, host.v4)


def test_another_address(trio: Trio) -> None:
    host, hub = trio.mover.host, trio.bed.lab.hub
    with restored(host, hub), trio.downloads() as flows:
        readdress(host, hub, "10.77.0.177")
        finish(flows, "another address", time.monotonic(), LIMIT_S)


def test_from_ipv4_to_ipv6_alone(trio: Trio) -> None:
    """Another network, that has IPv6 only. The stock node is reached directly by it, ours by relay."""
    host, hub = trio.mover.host, trio.bed.lab.hub
    with restored(host, hub), trio.downloads() as flows:
        host.ip("-4", "address", "flush", "dev", "eth0")
        host.ip("address", "add", f"{host.v6}/64", "dev", "eth0", "nodad")
        host.ip("-6", "route", "replace", "default", "via", hub.v6)
        finish(flows, "IPv4 to IPv6 alone", time.monotonic(), LIMIT_S)
        assert "[fd77::" in trio.mover.ping("stock")


def test_an_interface_that_is_deleted_and_comes_back(trio: Trio) -> None:
    host, hub = trio.mover.host, trio.bed.lab.hub
    with trio.downloads() as flows:
        host.ip("link", "delete", "eth0")
        trio.bed.lab.wire(host, "eth0", hub, "br0")
        host.ip("address", "add", f"{host.v4}/24", "dev", "eth0")
        host.ip("route", "replace", "default", "via", hub.v4)
        finish(flows, "interface deleted and added", time.monotonic(), LIMIT_S)


def test_sockets_whose_datagrams_are_all_refused(trio: Trio) -> None:
    """A firewall of this machine refuses all UDP: relays carry on, and new sockets are tried, on the same port."""
    host, process = trio.mover.host, trio.mover.running
    with trio.downloads(4.0) as flows:
        host.cut_udp()
        cut_at = time.monotonic()
        try:
            process.wait_until(lambda: "UDP sockets renewed" in process.err(), 15.0, "sockets are renewed")
            finish(flows, "all UDP refused by a firewall", cut_at, TRUST_S)
            assert flows[1].stall(cut_at) <= LIMIT_S
        finally:
            host.heal_udp()
    for name in PEERS:
        trio.mover.wait_until_direct(name, 30.0)


def test_a_process_that_was_stopped(trio: Trio) -> None:
    """What it asks for anew is there at once; what flowed goes on when its sender tries again."""
    process = trio.mover.running
    with trio.downloads() as flows:
        process.signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        until(lambda: time.monotonic() - stopped_at >= STOPPED_S, STOPPED_S + 5, "the stop is over")
        process.signal(signal.SIGCONT)
        resumed_at = time.monotonic()
        for name in PEERS:
            with Download(trio.mover.host, SOCKS5, name, 0.2) as fresh:
                fresh.finish()
            record(f"stopped for {STOPPED_S:g} s, a new request", name, seconds=time.monotonic() - resumed_at)
            assert time.monotonic() - resumed_at <= 5.0
        finish(flows, f"stopped for {STOPPED_S:g} s", resumed_at, 30.0)
    process.wait_until(lambda: "woke up" in process.err(), 5.0, "it noticed")


if not FULL:  # half a minute, and the rest shows most of it
    del test_sockets_whose_datagrams_are_all_refused
