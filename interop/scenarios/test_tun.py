"""A node of ours with a kernel interface among the others: ours without, ours with, stock in both modes.

The kernel's own programs use it: ping, curl, iperf3 (cubic), the origin server. Sizes: 64 MiB, 1 GiB with
MESHNODE_INTEROP_FULL=1.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import FULL, MIB, Bed, make_bed, random_file
from interop.lab import Lab, until
from interop.peers.meshnode import Meshnode
from interop.peers.origin import start_origin
from interop.peers.tailscaled import Tailscaled

TUN = "mesh0"
SIZE = 1024 * MIB if FULL else 64 * MIB
OTHERS = ["twin", "mesh", "stock", "stocktun"]


@dataclass
class Five:
    bed: Bed
    mine: Meshnode
    others: dict[str, Meshnode | Tailscaled]

    def all_addresses(self, name: str) -> tuple[str, str]:
        return self.others[name].addresses


def with_interface(bed: Bed, name: str) -> Meshnode:
    """Ours with an interface; the kernel serves ports 80 and 81, the process port 90."""
    host = bed.lab.host(name)
    directory = bed.files(host, f"hello from {name}\n")
    extra = ["--tun", TUN]
    key = bed.headscale.key()
    node = Meshnode(host, name, bed.headscale.url, key, serve=[f"http:90={directory}"], socks5=False, extra=extra)
    node.start()
    start_origin(host, directory, 80, 81)
    return node


@pytest.fixture(scope="module")
def five(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Five]:
    with Lab(tmp_path_factory.mktemp("tun")) as lab:
        bed = make_bed(lab)
        mine = with_interface(bed, "mine")
        others: dict[str, Meshnode | Tailscaled] = {
            "twin": with_interface(bed, "twin"),
            "mesh": bed.mesh("mesh"),
            "stock": bed.stock("stock"),
            "stocktun": bed.stock("stocktun", tun=True),
        }
        for name, node in others.items():
            mine.wait_for_peer(name)
            node.wait_for_peer("mine")
        yield Five(bed, mine, others)


def is_pinged(node: Meshnode | Tailscaled, address: str) -> bool:
    return bool(node.host.run("ping", "-c", "1", "-W", "2", address, check=False).returncode == 0)


@pytest.mark.parametrize("name", OTHERS)
def test_both_families_both_ways(five: Five, name: str) -> None:
    other = five.others[name]
    for mine, theirs in zip(five.mine.addresses, other.addresses, strict=True):
        until(lambda to=theirs: is_pinged(five.mine, to), 10.0, f"{name} answers ping")  # type: ignore[misc]
        five.bed.expect_hello(five.mine, theirs, name)
        five.bed.expect_hello(other, mine, "mine")
        five.bed.expect_hello(other, mine, "mine", port=90)
        if name in ("twin", "stocktun"):
            assert is_pinged(other, mine)


@pytest.mark.parametrize("name", OTHERS)
def test_a_closed_port_is_refused_at_once(five: Five, name: str) -> None:
    for client, address in ((five.mine, five.others[name].addresses[0]), (five.others[name], five.mine.addresses[0])):
        got = five.bed.expect_refused(client, address, 4444)
        assert got.seconds < 4.0


@pytest.mark.parametrize("name", ["mesh", "stocktun"])
@pytest.mark.parametrize("direction", ["from us", "to us"])
def test_a_large_file_arrives_whole(five: Five, name: str, direction: str) -> None:
    other = five.others[name]
    server, client = (five.mine, other) if direction == "from us" else (other, five.mine)
    big = server.host.folder / "www" / "big.bin"
    digest = random_file(big, SIZE)
    got = five.bed.curl(client, f"http://{server.addresses[0]}/big.bin", timeout_s=120)
    big.unlink()
    assert (got.status, got.size, got.sha256) == (200, SIZE, digest), got.note
    got.path.unlink()
    print(f"\n{SIZE // MIB} MiB {direction}, {name}: {SIZE * 8 / got.seconds / 1e9:.2f} Gb/s")


@pytest.mark.parametrize("way", ["", "-R"])
@pytest.mark.parametrize("name", ["twin", "stocktun"])
def test_iperf3_with_cubic(five: Five, name: str, way: str) -> None:
    other = five.others[name]
    server = other.host.start("iperf3", ["iperf3", "--server", "--one-off", "--forceflush"])
    server.wait_until(lambda: "listening" in server.out(), 5.0, "iperf3 listens")
    words = ["iperf3", "--client", other.addresses[0], "--time", "2", "--congestion", "cubic", "--json"]
    said = json.loads(five.mine.host.run(*words, *([way] if way else []), timeout_s=30).stdout)
    rate = said["end"]["sum_received"]["bits_per_second"]
    print(f"\n{'from' if way else 'to'} {name}: {rate / 1e9:.2f} Gb/s")
    assert rate > 50e6


def test_by_relay_too(five: Five) -> None:
    stock = five.others["stock"]
    five.mine.host.cut_udp()
    try:
        five.mine.wait_until_relayed("stock")
        stock.wait_until_relayed("mine")
        for mine, theirs in zip(five.mine.addresses, stock.addresses, strict=True):
            five.bed.expect_hello(five.mine, theirs, "stock")
            five.bed.expect_hello(stock, mine, "mine")
    finally:
        five.mine.host.heal_udp()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(five: Five, how: signal.Signals) -> None:
    node = with_interface(five.bed, f"gone{how.value}")
    host = node.host
    five.mine.wait_for_peer(node.name)
    assert TUN in host.run("ip", "link").stdout and TUN in host.run("ip", "route").stdout
    assert TUN in host.run("ip", "-6", "route").stdout
    until(lambda: is_pinged(node, five.mine.addresses[0]), 10.0, "it is of use")
    node.running.signal(how)
    node.running.wait(10.0)
    for words in (["link"], ["address"], ["route"], ["-6", "route"]):
        assert TUN not in host.run("ip", *words).stdout
