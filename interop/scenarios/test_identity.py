"""Identity: kept over restart and SIGKILL, given back by an ephemeral node; nothing in before a netmap.

Fifty kills by default; MESHNODE_INTEROP_KILLS changes the number.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from interop.bed import Bed
from interop.lab import until
from interop.peers.headscale import addresses_of
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled

KILLS = int(os.environ.get("MESHNODE_INTEROP_KILLS", "50"))


@pytest.fixture(scope="module")
def stock(bed: Bed) -> Tailscaled:
    return bed.stock("stock")


def test_restart_keeps_address_and_name_without_the_key(bed: Bed, stock: Tailscaled) -> None:
    node = bed.mesh("keeper", key=bed.headscale.key(reusable=False))
    stock.wait_for_peer("keeper")
    bed.expect_hello(stock, "keeper", "keeper")
    before = node.ready
    assert node.stop() == 0
    node.key = None
    node.start()
    assert before is not None and node.ready is not None
    assert (node.ready.name, node.ready.addresses) == (before.name, before.addresses)
    assert len([x for x in bed.headscale.nodes() if x["given_name"].startswith("keeper")]) == 1
    # The stock node still holds a session with the process that is gone: ours must restart it.
    until(
        lambda: bed.curl(stock, "http://keeper/hello.txt", timeout_s=3.0).status == 200,
        15.0,
        "the stock node reaches the restarted node",
    )
    bed.expect_hello(node, "stock", "stock")
    node.stop()


def test_sigkill_at_random_moments_never_costs_the_identity(bed: Bed) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    host = bed.lab.host("victim")
    node = Meshnode(host, "victim", bed.headscale.url, key=bed.headscale.key(), socks5=False)
    node.start()
    first = node.ready
    assert first is not None
    reached = 0
    node.running.kill()
    for number in range(KILLS):
        process = node.launch()
        # From before the state is read to well after the first netmap.
        assert process.survives(dice.uniform(0.0, 1.0)), (
            f"seed {seed}, kill {number}: ended by itself\n{process.log_tail()}"
        )
        reached += "ready" in process.out()
        process.signal(signal.SIGKILL)
        process.kill()
    node.key = None
    node.start()
    assert node.ready is not None
    assert (node.ready.name, node.ready.addresses) == (first.name, first.addresses), f"seed {seed}"
    victims = [x for x in bed.headscale.nodes() if x["given_name"].startswith("victim")]
    assert len(victims) == 1, f"seed {seed}: {victims}"
    assert addresses_of(victims[0]) == list(node.addresses)
    print(f"\n{KILLS} kills, {reached} after ready")
    node.stop()


def test_sigkill_while_joining_never_corrupts_the_state(bed: Bed) -> None:
    """Killed during the very first join: the next start still joins, with one node per machine key."""
    dice = random.Random(7)
    host = bed.lab.host("newborn")
    for number in range(5):
        node = Meshnode(host, f"newborn{number}", bed.headscale.url, key=bed.headscale.key(), socks5=False)
        process = node.launch()
        assert process.survives(dice.uniform(0.05, 0.7)), process.log_tail()
        process.kill()
        node.start()
        listed = [x for x in bed.headscale.nodes() if x["given_name"].startswith(f"newborn{number}")]
        assert len(listed) == 1, listed
        node.stop()


@pytest.mark.parametrize("state", ["directory", "mem:"])
def test_ephemeral_is_gone_at_once(bed: Bed, stock: Tailscaled, state: str) -> None:
    name = "brief" if state == "directory" else "memory"
    host = bed.lab.host(name)
    node = Meshnode(
        host,
        name,
        bed.headscale.url,
        key=bed.headscale.key(ephemeral=True),
        ephemeral=state == "directory",
        state=None if state == "directory" else "mem:",
    ).start()
    stock.wait_for_peer(name)
    assert bed.headscale.node(name) is not None
    assert node.stop(5.0) == 0
    assert bed.headscale.node(name) is None, "still listed after SIGTERM"
    until(lambda: stock.peer(name) is None, 5.0, "the stock node forgets it")


def test_nothing_enters_before_the_first_netmap(bed: Bed, stock: Tailscaled) -> None:
    """With control down a node has keys and peers that know it, but no rules: it must stay shut."""
    node = bed.mesh("early")
    stock.wait_for_peer("early")
    bed.expect_hello(stock, "early", "early")
    v4 = node.addresses[0]
    node.running.kill()
    bed.headscale.stop()
    node.launch()
    bed.expect_refused(stock, v4, 80, timeout_s=4.0)
    assert node.running.running, node.running.log_tail()
    assert not any(x.startswith("ready") for x in node.running.out().splitlines())
    bed.headscale.start()
    node.wait_ready(40.0)
    until(
        lambda: bed.curl(stock, f"http://{v4}/hello.txt", timeout_s=3.0).status == 200,
        30.0,
        "the stock node gets in once the rules are there",
    )
    node.stop()
