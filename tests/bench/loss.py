"""Goodput of one stream under loss, delay and reordering: our engines beside the kernel's TCP on the same link.

    python -m tests.bench.loss [--cells all] [--rounds 3] [--seconds 6] [--kinds kernel,ours] > out.json
    python -m tests.bench.loss --cells 1/40/0,5/0/25       # loss % / RTT ms / reordering %
    python -m tests.bench.loss --cells 1/40/0 --kinds kernel,ours,tsnet   # beside tsnet too (loss_tsnet.py)
    python -m tests.bench.loss --complete 10 --cells 20/0/0,20/40/0   # seconds that 10 MiB take

Needs root; prints a table on stderr and JSON on stdout.

The link is a userspace box between two namespaces (tests/bench/link.py): loss, reordering and delay
(half the RTT) each way, data and ACKs alike, drawn per packet from a seed that both kinds share in a
round. A reordered packet comes up to RTT/8 + 0.5 ms later than it should. Every link is capped at
--rate with a drop-tail queue of one bandwidth-delay product, at least 100 packets: without the cap the
cells without loss would measure the box and the two cores. The kernel runs CUBIC with SACK and RACK
(net.ipv4.tcp_recovery=1), an MTU of 1280 and no segmentation offload, so its packets carry the
same 1228 bytes as those inside our tunnel; the cap counts our datagrams without their 60 bytes of
IP, UDP and WireGuard, for it is TCP that is compared. A connection is opened before loss begins, so that no
handshake is measured, then bytes that the receiving application took within the time are counted,
slow start included. Rounds alternate, the kernel first; `ratio` is that of a cell's medians, `paired`
the median of the rounds' own ratios: both kinds meet the same losses in a round, so it is the steadier
one. The box and both ends run at nice -10. Cells
whose flows are mostly idle (by the rule of Mathis et al. below 200 Mbit/s) run on several links at
once, which buys them more rounds (--many); the others run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.bench.link import KERNEL_MTU, OUTER_MTU, ROOT, WIREGUARD_OVERHEAD, A, B, Link

LOSSES = (0.0, 0.1, 1.0, 5.0, 20.0)
RTTS = (0.0, 40.0, 150.0)
REORDERINGS = (0.0, 25.0)
PAYLOAD = 1228
LINKS = 6
IDLE_MBIT = 200.0
START_S = 0.05
MIB = 1 << 20


@dataclass(frozen=True)
class Cell:
    """A link: loss in percent each way, round-trip time in ms, reordering in percent."""

    loss: float
    rtt_ms: float
    reorder: float

    @classmethod
    def parse(cls, text: str) -> Cell:
        loss, rtt, reorder = (float(x) for x in text.split("/"))
        return cls(loss, rtt, reorder)

    def __str__(self) -> str:
        return f"{self.loss:g}/{self.rtt_ms:g}/{self.reorder:g}"

    @property
    def is_idle(self) -> bool:
        """Whether loss keeps a flow far below what the machine can do (Mathis et al., 1997)."""
        if self.loss == 0:
            return False
        rtt_s = (self.rtt_ms + 0.5) / 1000
        return 1.22 * PAYLOAD * 8 / (rtt_s * math.sqrt(self.loss / 100)) / 1e6 < IDLE_MBIT

    def keys(self, rate_mbit: float) -> dict[str, float]:
        """The box's settings for this cell."""
        bdp_kb = rate_mbit * self.rtt_ms / 8
        return {
            "loss": self.loss / 100,
            "reorder": self.reorder / 100,
            "delay_us": self.rtt_ms * 500,
            "late_us": self.rtt_ms * 125 + 500,
            "rate_mbit": rate_mbit,
            "queue_kb": max(bdp_kb, 100 * KERNEL_MTU / 1000),
            "credit": WIREGUARD_OVERHEAD,
        }


ALL = [Cell(loss, rtt, reorder) for loss in LOSSES for rtt in RTTS for reorder in REORDERINGS]
QUICK = [Cell.parse(text) for text in ("0/0/0", "0/40/0", "0.1/40/0", "1/40/0", "1/40/25", "5/0/0", "5/40/0", "20/0/0")]


class End:
    """One loss_end process."""

    def __init__(self, link: Link, side: str, kind: str, role: str) -> None:
        own, peer = (A, B) if side == "a" else (B, A)
        argv = [sys.executable, "-m", "tests.bench.loss_end", kind, role, own, peer]
        self.popen = subprocess.Popen(
            link.enter(side, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def hear(self) -> Any:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise OSError(f"an end of the stream died with {self.popen.wait(5)}; its error is above")
        return json.loads(line)

    def tell(self, value: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(value) + "\n")
        self.popen.stdin.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.popen.communicate(timeout=3)
            return
        self.popen.kill()
        self.popen.wait()


@contextlib.contextmanager
def stream(link: Link, kind: str) -> Iterator[tuple[End, End]]:
    """A connected pair of ends: who takes, who gives."""
    take = End(link, "b", kind, "take")
    give = End(link, "a", kind, "give")
    try:
        if kind == "ours":
            greeting = take.hear()
            take.tell(give.hear())
            assert take.hear() == "listening"
            give.tell(greeting)
        else:
            assert take.hear() == "listening"
            give.tell({})
        assert give.hear() == "connected"
        assert take.hear() == "connected"
        yield take, give
    finally:
        give.close()
        take.close()


class Run(Protocol):
    """Measures one stream of one kind on a link of its own."""

    def __call__(self, link: Link, kind: str, cell: Cell, seed: int, options: argparse.Namespace) -> dict[str, Any]: ...


def run(link: Link, kind: str, cell: Cell, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A run of the kernel's TCP or of ours."""
    keys = cell.keys(options.rate)
    link.set(**{**keys, "loss": 0, "reorder": 0})
    link.clear()
    link.limit_mtu(KERNEL_MTU if kind == "kernel" else OUTER_MTU)
    with stream(link, kind) as (take, give):
        link.clear()
        link.set(**keys, seed=seed)
        order: dict[str, Any] = {"at": time.monotonic() + START_S}
        if options.complete:
            order |= {"bytes": int(options.complete * MIB), "limit_s": options.limit}
        else:
            order |= {"seconds": options.seconds}
        take.tell(order)
        give.tell(order)
        got = take.hear()
        box = link.stats()
        give.tell({})
        sent = give.hear()
    expect_whole(box)
    if options.complete:
        got["mbit_s"] = got["bytes"] * 8 / got["seconds"] / 1e6 if got["seconds"] else 0.0
    else:
        got["mbit_s"] = got["bytes"] * 8 / options.seconds / 1e6
    return {"kind": kind, "seed": seed, **got, "sender": sent["facts"], "box": box}


def expect_whole(box: dict[str, Any]) -> None:
    if any(box[side][what] for side in "ab" for what in ("oversize", "fragments")):
        raise AssertionError(f"what crossed the box were not single whole packets, the figures are void: {box}")


class Lock:
    """flock on a file that other measurements respect too; nothing without one."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        if self.path is None:
            yield
            return
        with open(self.path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def summary(cell: Cell, runs: list[dict[str, Any]], kinds: list[str], key: str) -> dict[str, Any]:
    by_kind = {kind: [run[key] for run in runs if run["kind"] == kind] for kind in kinds}
    row: dict[str, Any] = {"loss_%": cell.loss, "rtt_ms": cell.rtt_ms, "reorder_%": cell.reorder}
    for kind, values in by_kind.items():
        known = [value for value in values if value is not None]
        row[kind] = round(statistics.median(known), 3) if known else None
        row[f"all {kind}"] = [None if value is None else round(value, 3) for value in values]
    if row.get("kernel") and row.get("ours"):
        row["ratio"] = round(row["ours"] / row["kernel"], 3)
        pairs = [(a, b) for a, b in zip(by_kind["ours"], by_kind["kernel"], strict=True) if a and b]
        row["paired"] = round(statistics.median(a / b for a, b in pairs), 3)
    if row.get("tsnet") and row.get("ours"):
        row["ours ÷ tsnet"] = round(row["ours"] / row["tsnet"], 3)
        pairs = [(a, b) for a, b in zip(by_kind["ours"], by_kind["tsnet"], strict=True) if a and b]
        row["ours ÷ tsnet, paired"] = round(statistics.median(a / b for a, b in pairs), 3)
    row["late_p99_below_us"] = max(run["box"]["late_p99_below_us"] for run in runs)
    row["box_missed"] = max(run["box"][side]["missed"] for run in runs for side in "ab")
    return row


def show(row: dict[str, Any], kinds: list[str], unit: str) -> None:
    cell = f"{row['loss_%']:5g} % {row['rtt_ms']:4g} ms {row['reorder_%']:3g} %"
    values = "  ".join(f"{kind} {'-' if row[kind] is None else format(row[kind], '8.3f')}" for kind in kinds)
    print(
        f"{cell}  {values} {unit}  ratio {row.get('ratio', '-')}  paired {row.get('paired', '-')}"
        + (
            f"  over tsnet {row['ours ÷ tsnet']}  paired {row['ours ÷ tsnet, paired']}" if "ours ÷ tsnet" in row else ""
        ),
        file=sys.stderr,
        flush=True,
    )


def measure(
    cells: list[Cell], options: argparse.Namespace, links: list[Link], run: Run
) -> Iterator[tuple[Cell, list[Any]]]:
    kinds = options.kinds.split(",")
    lock = Lock(options.lock)
    alone = [cell for cell in cells if not cell.is_idle]
    idle = [cell for cell in cells if cell.is_idle]
    for cell in alone:
        runs = []
        for i in range(options.rounds):
            with lock.held():
                runs += [run(links[0], kind, cell, options.seed + i, options) for kind in kinds]
        yield cell, runs

    def one_round(work: tuple[int, Cell, int]) -> list[Any]:
        link, cell, i = work
        return [run(links[link], kind, cell, options.seed + i, options) for kind in kinds]

    many = max(options.rounds, options.many)
    with ThreadPoolExecutor(len(links)) as pool:
        for cell in idle:
            runs = []
            for start in range(0, many, len(links)):
                works = [(k, cell, start + k) for k in range(min(len(links), many - start))]
                for part in pool.map(one_round, works):
                    runs += part
            yield cell, runs


@contextlib.contextmanager
def made_links(count: int, kinds: list[str]) -> Iterator[tuple[list[Link], Run]]:
    """So many links, and what runs a kind on one."""
    with contextlib.ExitStack() as stack:
        if "tsnet" not in kinds:
            yield [stack.enter_context(Link()) for _ in range(count)], run
            return
        from interop.lab import Lab
        from tests.bench import loss_tsnet

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-loss-"))
        tsnet = loss_tsnet.TsnetLinks(stack.enter_context(Lab(Path(folder))))

        def run_any(link: Link, kind: str, cell: Cell, seed: int, options: argparse.Namespace) -> dict[str, Any]:
            if kind != "tsnet":
                return run(link, kind, cell, seed, options)
            keys = cell.keys(options.rate)
            link.limit_mtu(OUTER_MTU)
            link.set(**{**keys, "loss": 0, "reorder": 0})
            with tsnet.pair(link) as pair:
                pair.a.ask("open", **pair.words())
                link.clear()
                link.set(**keys, seed=seed)
                got = loss_tsnet.run(pair, options.seconds)
                box = link.stats()
                loss_tsnet.expect_link(pair)
            expect_whole(box)
            got["mbit_s"] = got["bytes"] * 8 / options.seconds / 1e6
            return {"kind": kind, "seed": seed, **got, "sender": {}, "box": box}

        yield [stack.enter_context(tsnet.link()) for _ in range(count)], run_any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="all", help="all, quick, or LOSS%%/RTTms/REORDER%%, comma separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=12, help="rounds of cells that run on several links at once")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=500.0, help="Mbit/s of the link")
    parser.add_argument("--kinds", default="kernel,ours")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--complete", type=float, default=0, metavar="MIB", help="measure how long MIB take instead")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that --complete waits")
    parser.add_argument("--lock", help="a file to flock around runs that need the machine alone")
    options = parser.parse_args()
    cells = {"all": ALL, "quick": QUICK}.get(options.cells) or [Cell.parse(x) for x in options.cells.split(",")]
    kinds = options.kinds.split(",")
    key, unit = ("seconds", "s") if options.complete else ("mbit_s", "Mbit/s")
    results: dict[str, Any] = {"rate_mbit": options.rate, "seconds": options.seconds, "rows": [], "runs": {}}
    if options.complete and "tsnet" in kinds:
        parser.error("--complete knows kernel and ours only; leave tsnet out of --kinds")
    count = LINKS if any(cell.is_idle for cell in cells) else 1
    with made_links(count, kinds) as (links, how):
        for cell, runs in measure(cells, options, links, how):
            row = summary(cell, runs, kinds, key)
            show(row, kinds, unit)
            results["rows"].append(row)
            results["runs"][str(cell)] = runs
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
