"""Position-tagged bytes between two engines in two processes, through the impairment grid: no mismatch, no false end.

    python -m tests.soak.integrity --gib 4 [--seconds 3600] [--links 2] [--parallel 12] [--seed 1]

Needs root and the built extension. Each link (tests/bench/link.py) keeps one pair of engines and changes
its loss, delay, reordering, duplication, corruption and rate every few seconds, all cells of the grid in
a seeded order, so paths change under open connections and sessions are rekeyed under way. Connections of
a few bytes to 64 MiB run in parallel, in both directions at once; most half-close when all is said, some
are cut in the middle by either side. Every byte is checked where it arrives, and a clean end must come
exactly behind the last byte promised. At the end links are made clean and all that is open must end
within --patience; what does not is told, end by end. Prints progress on stderr and JSON at the end; exit code 1 if
anything was wrong or stayed open. `native/tests/soak_world` does the same in virtual time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.bench.link import ROOT, A, B, Link
from tests.bench.loss import ALL, Cell

CLEAN = Cell(0, 0, 0)
GIB = 1 << 30


class Pair:
    """Two engines on one link."""

    def __init__(self, link: Link, seed: int, parallel: int) -> None:
        self.link = link
        self.chance = random.Random(seed)
        self.cells = list(ALL)
        self.bytes_by_cell: Counter[str] = Counter()
        self.cell = CLEAN
        self.seen = 0
        self.last: dict[str, Any] = {}
        self.ends = {
            side: subprocess.Popen(
                link.enter(side, [sys.executable, "-m", "tests.soak.integrity_end", role, own, peer, str(seed),
                                  str(parallel)]),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for side, role, own, peer in (("a", "open", A, B), ("b", "serve", B, A))
        }  # fmt: skip
        greetings = {side: self.hear(side) for side in "ab"}
        self.tell("b", greetings["a"])
        assert self.hear("b") == "ready"
        self.tell("a", greetings["b"])
        assert self.hear("a") == "ready"

    def tell(self, side: str, value: Any) -> None:
        pipe = self.ends[side].stdin
        assert pipe is not None
        pipe.write(json.dumps(value) + "\n")
        pipe.flush()

    def hear(self, side: str) -> Any:
        pipe = self.ends[side].stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            raise OSError(f"an engine's process died with {self.ends[side].wait(5)}; its error is above")
        return json.loads(line)

    def next_cell(self) -> float:
        """Change the link; returns for how many seconds."""
        if not self.cells:
            self.cells = list(ALL)
        self.cell = self.cells.pop(self.chance.randrange(len(self.cells)))
        keys = self.cell.keys(self.chance.choice((20.0, 200.0, 1000.0)))
        self.link.set(
            **keys,
            dup=self.chance.choice((0, 0, 0.05)),
            corrupt=self.chance.choice((0, 0, 0.01)),
            seed=self.chance.randrange(1 << 30),
        )
        return self.chance.uniform(2, 5) if self.cell.loss >= 5 else self.chance.uniform(5, 15)

    def count(self, word: str = "tell") -> None:
        """Ask both ends for their counts."""
        told = {}
        for side in "ab":
            self.tell(side, word)
            told[side] = self.hear(side)
        total = sum(told[side]["counts"].get("bytes checked", 0) for side in "ab")
        self.bytes_by_cell[str(self.cell)] += total - self.seen
        self.seen = total
        self.last = told

    def close(self) -> None:
        for end in self.ends.values():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                end.communicate(timeout=5)
            end.kill()


def interesting(stats: dict[str, int]) -> dict[str, int]:
    words = ("retransmits", "timeouts", "ooo", "replay", "initiation", "response", "auth", "drop", "paws", "rst")
    return {name: value for name, value in stats.items() if any(word in name for word in words)}


@contextlib.contextmanager
def pairs(options: argparse.Namespace) -> Iterator[list[Pair]]:
    with contextlib.ExitStack() as stack:
        made = []
        for i in range(options.links):
            link = stack.enter_context(Link())
            pair = Pair(link, options.seed * 1000 + i, options.parallel)
            stack.callback(pair.close)
            made.append(pair)
        yield made


def soak(options: argparse.Namespace, made: list[Pair]) -> None:
    """Change links and count until there is enough, or time is up, or something is wrong."""
    started = told = time.monotonic()
    until = [0.0] * len(made)
    while True:
        now = time.monotonic()
        for i, pair in enumerate(made):
            if now >= until[i]:
                pair.count()
                until[i] = now + pair.next_cell()
        total = sum(pair.seen for pair in made)
        wrong = any(pair.last[side]["violations"] for pair in made for side in "ab")
        if now - told > 20:
            told = now
            print(f"{now - started:6.0f} s: {total / GIB:.2f} GiB checked", file=sys.stderr, flush=True)
        if wrong or total >= options.gib * GIB or now - started > options.seconds:
            return
        time.sleep(0.2)


def build() -> str:
    """The commit, as far as the directory says it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def wind_down(made: list[Pair], patience_s: float) -> list[str]:
    """Clean links, nothing new: what is still open when patience is over."""
    started = told = time.monotonic()
    for pair in made:
        pair.cell = CLEAN
        pair.link.set(**CLEAN.keys(1000), dup=0, corrupt=0)
        pair.count("stop")
    while True:
        for pair in made:
            pair.count()
        still = [f"{side}, {what}" for pair in made for side in "ab" for what in pair.last[side]["open"]]
        now = time.monotonic()
        if not still or now - started > patience_s:
            return still
        if now - told > 20:
            told = now
            total = sum(pair.seen for pair in made)
            print(f"  ending {now - started:.0f} s: {total / GIB:.2f} GiB, {len(still)} ends open", file=sys.stderr)
        time.sleep(0.5)


def report(made: list[Pair]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    by_cell: Counter[str] = Counter()
    violations: list[str] = []
    stats: Counter[str] = Counter()
    for pair in made:
        by_cell.update(pair.bytes_by_cell)
        for side in "ab":
            counts.update(pair.last[side]["counts"])
            violations += pair.last[side]["violations"]
            stats.update(interesting(pair.last[side]["stats"]))
    return {
        "gib_checked": round(counts["bytes checked"] / GIB, 3),
        "violations": violations,
        "counts": dict(sorted(counts.items())),
        "mib_by_cell": {cell: size >> 20 for cell, size in sorted(by_cell.items())},
        "engines": dict(sorted(stats.items())),
        "box": [pair.link.stats() for pair in made],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--links", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=12, help="connections at once, each link")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for what is open to end on clean links")
    options = parser.parse_args()
    subprocess.run(["make", "-s", "-C", str(ROOT / "native/tests"), "tags"], check=True)
    result: dict[str, Any] = {"build": build()}
    with pairs(options) as made:
        soak(options, made)
        result["still_open"] = wind_down(made, options.patience)
        result |= report(made)
    print(json.dumps(result, indent=1))
    return 1 if result["violations"] or result["still_open"] else 0


if __name__ == "__main__":
    sys.exit(main())
