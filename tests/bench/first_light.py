"""First light beside a stock tailscaled pair: start to ready, idle memory, one stream, request latency.

    python -m tests.bench.first_light [--rounds 5] [--rows start,rss,rate,api,latency] > out.json

Needs root and the built peers (`python -m interop.build`). Two hosts on one bridge, Headscale and
derper on a third, all on this machine's cores. Rounds alternate between the two peers. Rows:

start    process start until it serves: `meshnode up` until its `ready` line; tailscaled start and
         `tailscale up` until it returns (empty state), or until BackendState is Running (with state);
         against Headscale tuned as in the lab and with its defaults
rss      VmRSS of a node that serves nothing and has one peer, 10 s after it was ready
rate     one download of a file by curl through each client node's SOCKS5 door, direct path; the server
         side is the same little HTTP server behind both (forwarded to by tailscaled, by --serve tcp)
api      one stream through the public API alone: `node.listen` and `node.connect` in two processes
latency  GETs over one kept connection through the SOCKS5 doors to the same HTTP server
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interop.bed import Bed, make_bed, random_file
from interop.lab import Lab, until
from interop.peers.meshnode import SOCKS5 as OUR_DOOR
from interop.peers.meshnode import Meshnode
from interop.peers.origin import start_origin
from interop.peers.tailscaled import SOCKS5 as STOCK_DOOR
from interop.peers.tailscaled import Tailscaled

MIB = 1 << 20
PROBE = Path(__file__).with_name("probe.py")
API = Path(__file__).with_name("api_pair.py")
ROWS = ("start", "rss", "rate", "api", "latency")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def median(values: list[float]) -> float:
    return round(statistics.median(values), 4)


def summary(ours: list[float], stock: list[float]) -> dict[str, Any]:
    """Medians, every value, and ours as a multiple of the stock figure."""
    result: dict[str, Any] = {"meshnode": median(ours), "tailscaled": median(stock)}
    result["ratio"] = round(result["meshnode"] / result["tailscaled"], 3)
    result["all"] = {"meshnode": [round(x, 4) for x in ours], "tailscaled": [round(x, 4) for x in stock]}
    return result


def rss_mib(pid: int) -> float:
    """Resident memory of a process the lab started (`setpriv` execs, so the pid is the program's)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


# --- start to ready ---------------------------------------------------------------------------------


def our_start(node: Meshnode) -> float:
    started = time.monotonic()
    process = node.launch()
    until(
        lambda: b"\nready " in b"\n" + process.out_path.read_bytes()[process._out_from :], 30, "ready", interval_s=0.002
    )
    return time.monotonic() - started


def stock_first_start(node: Tailscaled, url: str, key: str) -> float:
    started = time.monotonic()
    node.start().up(url, key)
    return time.monotonic() - started


def stock_restart(node: Tailscaled) -> float:
    node.stop()
    started = time.monotonic()
    node.start()
    until(lambda: node.status()["BackendState"] == "Running", 30, "Running", interval_s=0.005)
    return time.monotonic() - started


def start_rows(rounds: int, folder: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for tuned in (True, False):
        label = "tuned Headscale" if tuned else "Headscale defaults"
        empty: tuple[list[float], list[float]] = ([], [])
        kept: tuple[list[float], list[float]] = ([], [])
        with Lab(folder / f"start-{tuned}") as lab:
            bed = make_bed(lab, tuned=tuned)
            ours, stock = lab.host("ours"), lab.host("stock")
            for i in range(rounds):
                key = bed.headscale.key()
                mesh = Meshnode(ours, f"m{i}", bed.headscale.url, key=key)
                empty[0].append(our_start(mesh))
                mesh.stop()
                mesh.key = None
                kept[0].append(our_start(mesh))
                mesh.stop()
                peer = Tailscaled(stock, f"t{i}")
                empty[1].append(stock_first_start(peer, bed.headscale.url, key))
                kept[1].append(stock_restart(peer))
                peer.stop()
                last = ", ".join(f"{row[-1]:.3f}" for row in (*empty, *kept))
                say(f"start, {label}, round {i}: ours, stock with empty state; ours, stock with state: {last} s")
        rows[f"start to ready, empty state, {label} (s)"] = summary(*empty)
        rows[f"start to ready, with state, {label} (s)"] = summary(*kept)
    return rows


# --- a pair of each kind ----------------------------------------------------------------------------


class Pairs:
    """Two hosts; on each a node of ours and a stock node, in one tailnet, all paths direct."""

    def __init__(self, lab: Lab, bed: Bed) -> None:
        self.bed = bed
        self.a, self.b = lab.host("a"), lab.host("b")
        self.directory = bed.files(self.b, "x" * 1000)
        start_origin(self.b, self.directory, 8081)
        key = bed.headscale.key()
        self.mesh_a = Meshnode(self.a, "ma", bed.headscale.url, key=key).start()
        serve = ["tcp:8081=127.0.0.1:8081"]
        self.mesh_b = Meshnode(self.b, "mb", bed.headscale.url, key=key, serve=serve, socks5=False).start()
        self.stock_a = Tailscaled(self.a, "ta").start().up(bed.headscale.url, key)
        self.stock_b = Tailscaled(self.b, "tb").start().up(bed.headscale.url, key)
        self.mesh_a.wait_until_direct("mb")
        self.stock_a.wait_until_direct("tb")

    def kinds(self) -> dict[str, tuple[str, str, tuple[int, int]]]:
        """kind → (SOCKS5 door on a, name of the node on b, pids)."""
        ours = (self.mesh_a.running.pid, self.mesh_b.running.pid)
        assert self.stock_a.process and self.stock_b.process
        stock = (self.stock_a.process.pid, self.stock_b.process.pid)
        return {"meshnode": (OUR_DOOR, "mb", ours), "tailscaled": (STOCK_DOOR, "tb", stock)}


def cpu_s(pids: tuple[int, int]) -> float:
    """User and system seconds the two processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def alternate(rounds: int, kinds: list[str], measure: Callable[[str], float]) -> dict[str, list[float]]:
    """`rounds` of every kind, the order turned round each time."""
    got: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(rounds):
        for kind in kinds if i % 2 == 0 else kinds[::-1]:
            got[kind].append(measure(kind))
    return got


def rate_rows(pairs: Pairs, rounds: int, size: int) -> dict[str, Any]:
    random_file(pairs.directory / "big.bin", size)
    kinds = pairs.kinds()
    core_s: dict[str, list[float]] = {kind: [] for kind in kinds}

    def download(kind: str) -> float:
        door, name, pids = kinds[kind]
        before = cpu_s(pids)
        words = ["curl", "-sS", "--max-time", "120", "-o", "/dev/null", "--socks5-hostname", door]
        done = pairs.a.run(
            *words, "-w", "%{size_download} %{speed_download}", f"http://{name}:8081/big.bin", timeout_s=130
        )
        got, speed = done.stdout.split()
        assert int(got) == size, f"{kind}: {got} of {size} bytes"
        gbit = int(got) * 8 / 1e9
        core_s[kind].append((cpu_s(pids) - before) / gbit)
        say(f"rate {kind}: {float(speed) * 8 / 1e9:.2f} Gb/s, {core_s[kind][-1]:.2f} core-s per Gbit")
        return float(speed) * 8 / 1e9

    got = alternate(rounds, list(kinds), download)
    peaks = {kind: [rss_mib(pid) for pid in kinds[kind][2]] for kind in kinds}
    return {
        "one stream, direct, SOCKS5 and curl (Gb/s)": summary(got["meshnode"], got["tailscaled"]),
        "the same, both nodes' core-seconds per Gbit": summary(core_s["meshnode"], core_s["tailscaled"]),
        "RSS of both nodes after it (MiB)": summary(peaks["meshnode"], peaks["tailscaled"]),
    }


def latency_rows(pairs: Pairs, rounds: int, count: int) -> dict[str, Any]:
    kinds = pairs.kinds()
    tails: dict[str, list[float]] = {kind: [] for kind in kinds}
    failures = dict.fromkeys(kinds, 0)

    def probe(what: str, kind: str, n: int) -> list[float]:
        door, name, _ = kinds[kind]
        done = pairs.a.run(sys.executable, "-P", str(PROBE), what, door, name, "8081", str(n), timeout_s=120)
        said = json.loads(done.stdout)
        failures[kind] += said["failures"]
        return list(said["times"])

    def kept(kind: str) -> float:
        times = probe("latency", kind, count)
        tails[kind].append(times[int(len(times) * 0.99)])
        say(f"latency {kind}: p50 {times[len(times) // 2]:.0f} µs, p99 {tails[kind][-1]:.0f} µs")
        return times[len(times) // 2]

    middle = alternate(rounds, list(kinds), kept)
    fresh = alternate(rounds, list(kinds), lambda kind: statistics.median(probe("short", kind, count // 10)))
    return {
        "GET on a kept connection, p50 (µs)": summary(middle["meshnode"], middle["tailscaled"]),
        "GET on a kept connection, p99 (µs)": summary(tails["meshnode"], tails["tailscaled"]),
        "connect + GET + close, p50 (µs)": summary(fresh["meshnode"], fresh["tailscaled"]),
        "failed connections": failures,
    }


def api_rows(pairs: Pairs, rounds: int, size: int) -> dict[str, Any]:
    """The public API in two processes; its neighbour in this file is `rate`, which adds doors and curl."""
    key = pairs.bed.headscale.key(ephemeral=True)
    url = pairs.bed.headscale.url
    rates: list[float] = []
    for i in range(rounds):
        server = pairs.b.start(
            f"api-server-{i}", [sys.executable, "-P", str(API), "serve", url, f"s{i}", str(size)], MESHNODE_KEY=key
        )
        server.wait_until(lambda s=server: "listening" in s.out(), 20, "the API server listens")
        words = [sys.executable, "-P", str(API), "fetch", url, f"c{i}", f"s{i}", str(size)]
        done = pairs.a.run(*words, timeout_s=120, MESHNODE_KEY=key)
        rates.append(float(json.loads(done.stdout)["gbit_per_s"]))
        say(f"api: {rates[-1]:.2f} Gb/s")
        server.stop()
    return {"one stream, direct, node.listen → node.connect (Gb/s)": {"meshnode": median(rates), "all": rates}}


def rss_rows(folder: Path, rounds: int) -> dict[str, Any]:
    ours: list[float] = []
    stock: list[float] = []
    with Lab(folder / "rss") as lab:
        bed = make_bed(lab)
        a, b = lab.host("a"), lab.host("b")
        key = bed.headscale.key()
        for i in range(rounds):
            mesh = Meshnode(a, f"m{i}", bed.headscale.url, key=key, socks5=False).start()
            peer = Tailscaled(b, f"t{i}").start().up(bed.headscale.url, key)
            assert mesh.running.survives(10)
            assert peer.process
            ours.append(rss_mib(mesh.running.pid))
            stock.append(rss_mib(peer.process.pid))
            say(f"rss: ours {ours[-1]:.1f} MiB, stock {stock[-1]:.1f} MiB")
            mesh.stop()
            peer.stop()
    return {"idle RSS, one node that serves nothing (MiB)": summary(ours, stock)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--size", type=int, default=512, help="MiB of one download")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    wanted = options.rows.split(",")
    assert set(wanted) <= set(ROWS), f"rows are {', '.join(ROWS)}"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mn-bench-") as name:
        folder = Path(name)
        if "start" in wanted:
            results |= start_rows(options.rounds, folder)
        if "rss" in wanted:
            results |= rss_rows(folder, min(options.rounds, 3))
        if {"rate", "latency", "api"} & set(wanted):
            with Lab(folder / "pairs") as lab:
                pairs = Pairs(lab, make_bed(lab))
                if "rate" in wanted:
                    results |= rate_rows(pairs, options.rounds, options.size * MIB)
                if "latency" in wanted:
                    results |= latency_rows(pairs, options.rounds, options.requests)
                if "api" in wanted:
                    results |= api_rows(pairs, options.rounds, options.size * MIB)
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
