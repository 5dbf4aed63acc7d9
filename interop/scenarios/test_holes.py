"""Downloads through a router that begins to swallow: long packets, or WireGuard alone. Probes pass all the while.

A node of ours behind the router, beside it a stock node and one of ours on the outside; flows in both directions at
once, each survives with every byte. Stalls are printed as JSON.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from interop.bed import FULL, Bed
from interop.flow import Download, record
from interop.lab import Host, Lab, until
from interop.peers.derper import Derper
from interop.peers.drip import PORT, start_drip
from interop.peers.headscale import Headscale
from interop.peers.meshnode import SOCKS5, Meshnode
from interop.peers.tailscaled import SOCKS5 as STOCK_SOCKS5
from interop.peers.tailscaled import Tailscaled
from tests.lab import rules
from tests.lab.rules import Nat
from tests.lab.site import Site

PEERS = ("stock", "ours")
SET_ASIDE_S = 26.0


def mesh(bed: Bed, host: Host) -> Meshnode:
    start_drip(host)
    serve = [f"tcp:{PORT}=127.0.0.1:{PORT}"]
    return Meshnode(host, host.name, bed.headscale.url, key=bed.headscale.key(), serve=serve).start()


@dataclass
class Street:
    """`inner` behind the router, the others outside."""

    site: Site
    inner: Meshnode
    ours: Meshnode
    stock: Tailscaled

    def path(self, name: str) -> dict[str, Any]:
        """What `inner` says of its path to that peer."""
        peer = self.inner.peer(name)
        assert peer is not None
        return peer

    def wait_direct(self) -> None:
        """Direct both ways, and proved."""
        for name in PEERS:
            self.inner.wait_until_direct(name, 30.0)
        self.ours.wait_until_direct("inner", 30.0)
        self.stock.wait_until_direct("inner", 30.0)


@pytest.fixture(scope="module")
def outside(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with Lab(tmp_path_factory.mktemp("holes")) as lab:
        derper = Derper(lab.hub).start()
        headscale = Headscale(lab.hub, relay_map=derper.relay_map).start()
        yield Bed(lab, headscale, "pinned", None, derper)


@pytest.fixture
def street(outside: Bed) -> Iterator[Street]:
    """Three fresh nodes: what one test taught them of the path is not for the next."""
    hosts = {name: outside.lab.host(name) for name in PEERS}
    for host in hosts.values():
        host.ip("-6", "address", "flush", "dev", "eth0")
    site = Site(outside.lab, "home", Nat.PORT_RESTRICTED).build()
    start_drip(hosts["stock"])
    stock = Tailscaled(hosts["stock"], "stock").start().up(outside.headscale.url, outside.headscale.key())
    ours, inner = mesh(outside, hosts["ours"]), mesh(outside, site.host("inner"))
    for name in PEERS:
        inner.wait_for_peer(name)
    street = Street(site, inner, ours, stock)
    try:
        street.wait_direct()
        yield street
    finally:
        for node in (inner, ours):
            node.stop()
        stock.logout()
        stock.stop()
        site.remove()
        outside.lab.remove(*hosts.values())


@contextlib.contextmanager
def flows(street: Street, seconds: float, *wanted: str) -> Iterator[dict[str, Download]]:
    """Downloads that run, named by sender and receiver."""
    doors = {"inner": SOCKS5, "ours": SOCKS5, "stock": STOCK_SOCKS5}
    hosts = {"inner": street.inner.host, "ours": street.ours.host, "stock": street.stock.host}
    with contextlib.ExitStack() as stack:
        found = {}
        for name in wanted:
            sender, _, receiver = name.partition(" to ")
            found[name] = stack.enter_context(Download(hosts[receiver], doors[receiver], sender, seconds))
        yield found


def finish(running: dict[str, Download], what: str, since: float, limits_s: dict[str, float]) -> None:
    """Every flow goes on within its limit, by the end of its name, and arrives whole."""
    for name, flow in running.items():
        flow.goes_on_after(since + 1.0, max(limits_s.values()) + 30.0)
        flow.finish(120.0)
        record(what, name, stall_s=flow.stall(since))
    for name, flow in running.items():
        limit_s = next(limit for end, limit in limits_s.items() if name.endswith(end))
        assert flow.stall(since) <= limit_s, f"{name} stood still for {flow.stall(since):.1f} s"


BOTH_WAYS = ("ours to inner", "inner to ours", "stock to inner", "inner to stock")


@pytest.mark.parametrize("limit", [1280, 1124])
def test_long_packets_begin_to_vanish(street: Street, limit: int) -> None:
    """A stock node never looks. What it sends is made shorter by an error of ours; of a path too narrow for that it is
    weaned by leaving its pings unanswered."""
    with flows(street, 6.0, *BOTH_WAYS) as running:
        street.site.hole(limit)
        weaned = {1280: 10.0, 1124: 25.0}[limit]
        since = time.monotonic()
        finish(running, f"hole of {limit}", since, {"stock to inner": weaned, "": 5.0})
        if limit == 1280:
            for name in PEERS:
                until(partial(is_limited, street, name, limit), 20.0, f"the limit towards {name} is known")


def is_limited(street: Street, name: str, limit: int) -> bool:
    """Whether status shows that the path carries no more."""
    return bool(street.path(name)["Limit"] == limit)


SCRUBBED = ("inner to ours", "ours to inner", *(("inner to stock",) if FULL else ()))


def test_wireguard_alone_begins_to_vanish(street: Street) -> None:
    """Copies by the relay after 12 s, the path set aside at about 17 s although it answers every probe."""
    with flows(street, 6.0, *SCRUBBED) as running:
        street.site.scrub(rules.WIREGUARD_ALL)
        since = time.monotonic()
        until(lambda: street.path("ours")["PathState"] != "direct", SET_ASIDE_S + 5.0, "the path is set aside")
        record("WireGuard scrubbed", "path set aside", after_s=time.monotonic() - since)
        assert time.monotonic() - since <= SET_ASIDE_S
        finish(running, "WireGuard scrubbed", since, {"inner to stock": 60.0, "": 16.0})
