"""Figures beside a stock pair, in one lab and one run: `python -m interop.bench [--rounds N] [FIGURE…]`.

Figures: `ready` (start to ready, empty state and with state, tuned and default Headscale), `idle` (RSS of
a node that serves nothing), `latency` (small requests on one connection), `rate` (one download, direct)
and `relayed` (one download, UDP cut). Every figure is taken for a pair of ours and for a pair of
tailscaled, in turns, so that what else the machine does falls on both. Prints a Markdown table.

A pair is two hosts on one bridge; the client is curl or `interop.probe` through the node's SOCKS5 door.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from interop.bed import MIB, Bed, make_bed, random_file
from interop.lab import Lab, until
from interop.peers.meshnode import Meshnode
from interop.peers.origin import ROOT, start_origin
from interop.peers.tailscaled import SOCKS5 as STOCK_SOCKS5
from interop.peers.tailscaled import Tailscaled

OURS, STOCK = "meshnode", "tailscaled"
RATE_BYTES = 512 * MIB
RELAYED_BYTES = 64 * MIB
REQUESTS = 3000
IDLE_SETTLES_S = 30.0


@dataclass
class Table:
    """Figure → whose → values; printed as medians."""

    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, figure: str, whose: str, value: float) -> None:
        self.rows.setdefault(figure, {}).setdefault(whose, []).append(value)
        print(f"  {figure}, {whose}: {value:.3g}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        lines = [f"| figure (median of n) | {OURS} | {STOCK} |", "|---|---|---|"]
        for figure, row in self.rows.items():
            cells = [_median(row.get(whose, [])) for whose in (OURS, STOCK)]
            lines.append(f"| {figure} | {cells[0]} | {cells[1]} |")
        return "\n".join(lines)


def _median(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f"{min(values):.3g}–{max(values):.3g}"
    return f"{statistics.median(values):.3g} ({spread}, n={len(values)})"


def rss_mib(pid: int) -> float:
    """Resident memory of one process, from /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS:")) / 1024


def measure_ready(table: Table, folder: Path, rounds: int) -> None:
    """Spawn to ready: our `ready` line; theirs, daemon spawn to the end of `tailscale up`."""
    for tuned in (True, False):
        label = "tuned" if tuned else "default"
        with Lab(folder / f"ready-{label}") as lab:
            bed = make_bed(lab, tuned=tuned)
            ours, theirs = lab.host("ours"), lab.host("theirs")
            for number in range(rounds):
                node = Meshnode(ours, f"ours{number}", bed.headscale.url, key=bed.headscale.key(), socks5=False)
                for state in ("empty state", "with state"):
                    started = time.monotonic()
                    node.start()
                    table.add(f"start to ready, {state}, {label} Headscale, s", OURS, time.monotonic() - started)
                    node.stop()
                    node.key = None
                stock = Tailscaled(theirs, f"theirs{number}")
                key = bed.headscale.key()
                started = time.monotonic()
                stock.start().up(bed.headscale.url, key)
                table.add(f"start to ready, empty state, {label} Headscale, s", STOCK, time.monotonic() - started)
                stock.stop()
                started = time.monotonic()
                stock.start()
                until(lambda node=stock: node.status()["BackendState"] == "Running", 20.0, "Running again")  # type: ignore[misc]
                table.add(f"start to ready, with state, {label} Headscale, s", STOCK, time.monotonic() - started)
                stock.stop()


def measure_idle(table: Table, folder: Path, rounds: int) -> None:
    """RSS once it has stopped changing by more than 64 KiB over a second (or after 30 s)."""
    with Lab(folder / "idle") as lab:
        bed = make_bed(lab)
        ours, theirs = lab.host("ours"), lab.host("theirs")
        for number in range(rounds):
            name = f"ours{number}"
            node = Meshnode(ours, name, bed.headscale.url, key=bed.headscale.key(), socks5=False).start()
            table.add("idle RSS, serving nothing, MiB", OURS, _settled(node.running.pid))
            node.stop()
            stock = Tailscaled(theirs, f"theirs{number}").start().up(bed.headscale.url, bed.headscale.key())
            assert stock.process is not None
            table.add("idle RSS, serving nothing, MiB", STOCK, _settled(stock.process.pid))
            stock.stop()


def _settled(pid: int) -> float:
    seen = [rss_mib(pid)]

    def still() -> bool:
        seen.append(rss_mib(pid))
        return len(seen) > 4 and max(seen[-4:]) - min(seen[-4:]) < 1 / 16

    until(still, IDLE_SETTLES_S, f"the RSS of {pid} settles", interval_s=1.0)
    return seen[-1]


@dataclass
class Pairs:
    """A pair of each kind in one lab: (server name, client) by whose."""

    bed: Bed
    client: dict[str, Meshnode | Tailscaled]
    server: dict[str, Meshnode | Tailscaled]
    directory: Path


def make_pairs(lab: Lab, size: int) -> Pairs:
    bed = make_bed(lab)
    directory = lab.folder / "www"
    directory.mkdir()
    (directory / "small").write_bytes(b"x" * 128)
    random_file(directory / "big", size)
    url, key = bed.headscale.url, bed.headscale.key()
    ours = Meshnode(lab.host("oursrv"), "oursrv", url, key=key, serve=[f"http:80={directory}"]).start()
    stock = Tailscaled(lab.host("stocksrv"), "stocksrv").start().up(url, key)
    start_origin(stock.host, directory, 80)
    our_client = Meshnode(lab.host("ourcli"), "ourcli", url, key=key).start()
    stock_client = Tailscaled(lab.host("stockcli"), "stockcli").start().up(url, key)
    our_client.wait_for_peer("oursrv")
    stock_client.wait_for_peer("stocksrv")
    our_client.wait_until_direct("oursrv")
    stock_client.wait_until_direct("stocksrv")
    return Pairs(bed, {OURS: our_client, STOCK: stock_client}, {OURS: ours, STOCK: stock}, directory)


def measure_latency(table: Table, folder: Path, rounds: int) -> None:
    """GET of 128 bytes, one after another on one connection."""
    with Lab(folder / "latency") as lab:
        pairs = make_pairs(lab, MIB)
        for _ in range(rounds):
            for whose, client in pairs.client.items():
                proxy = STOCK_SOCKS5 if whose == STOCK else client.curl_words()[1]
                url = f"http://{pairs.server[whose].name}.mesh.test/small"
                argv = [sys.executable, "-m", "interop.probe", url, str(REQUESTS), proxy]
                said = json.loads(client.host.run(*argv, PYTHONPATH=str(ROOT), timeout_s=120).stdout)
                table.add("request p50, ms", whose, said["p50_ms"])
                table.add("request p99, ms", whose, said["p99_ms"])


def measure_rate(table: Table, folder: Path, rounds: int) -> None:
    """One download over a direct path; processor time of both nodes with it."""
    with Lab(folder / "rate") as lab:
        pairs = make_pairs(lab, RATE_BYTES)
        _downloads(table, pairs, rounds, RATE_BYTES, "direct")


def measure_relayed(table: Table, folder: Path, rounds: int) -> None:
    """One download through derper, UDP cut at the clients."""
    with Lab(folder / "relayed") as lab:
        pairs = make_pairs(lab, RELAYED_BYTES)
        for whose, client in pairs.client.items():
            client.host.cut_udp()
            client.wait_until_relayed(pairs.server[whose].name)
        _downloads(table, pairs, rounds, RELAYED_BYTES, "relayed")


def _downloads(table: Table, pairs: Pairs, rounds: int, size: int, path: str) -> None:
    for _ in range(rounds):
        for whose, client in pairs.client.items():
            nodes = [x.process.pid for x in (client, pairs.server[whose]) if x.process]
            before = sum(map(cpu_seconds, nodes))
            got = pairs.bed.curl(client, f"http://{pairs.server[whose].name}.mesh.test/big", timeout_s=300)
            got.path.unlink()
            assert (got.status, got.size) == (200, size), got.note
            gigabits = size * 8 / 1e9
            table.add(f"one download, {path}, Gb/s", whose, gigabits / got.seconds)
            spent = sum(map(cpu_seconds, nodes)) - before
            table.add(f"one download, {path}, core-s per Gbit, both nodes", whose, spent / gigabits)
            table.add(f"one download, {path}, RSS of both nodes after, MiB", whose, sum(map(rss_mib, nodes)))


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


FIGURES: dict[str, Callable[[Table, Path, int], None]] = {
    "ready": measure_ready,
    "idle": measure_idle,
    "latency": measure_latency,
    "rate": measure_rate,
    "relayed": measure_relayed,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m interop.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("figures", nargs="*", default=[], metavar="FIGURE")
    wanted = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted.figures or FIGURES:
            FIGURES[name](table, Path(folder), wanted.rounds)
    print(table.markdown())


if __name__ == "__main__":
    main()
