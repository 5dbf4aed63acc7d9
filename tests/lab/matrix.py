"""The NAT matrix: two nodes behind every pair of routers, ours beside a tailscaled pair in the same lab.

    python -m tests.lab.matrix [--pair ours,stock] [--rows …] [--cols …] [--rounds 3] [--store FILE] [--minutes 30]
    python -m tests.lab.matrix --prediction --rows port-restricted --cols symmetric --rounds 20
    python -m tests.lab.matrix --write                  # only the tables of docs/nat.md, from the stored outcomes

Needs root and the built peers (`python -m interop.build`). A cell is tests/lab/cell.py; without --both-ways the node in
the row opens the stream and each pair of kinds is measured once. What was measured is kept in --store (JSON), one
outcome a round; a later run does what is missing up to --rounds. It stops after --minutes. Rounds go through all cells
once before any cell is measured again, and pairs alternate. JSON goes to stdout at the end, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interop.lab import Lab, LabError
from tests.lab import report
from tests.lab.cell import PATIENCE_S, Cell
from tests.lab.expect import KINDS
from tests.lab.inet import PAIRS, PUBLIC, Inet, start_inet
from tests.lab.rules import Nat

PREDICTION = {"MESHNODE_PORT_PREDICTION": "true"}
"""What switches it on in nodes of ours."""
PREDICTION_S = 30.0
"""How long a pair that predicts ports is watched."""

Rounds = list[dict[str, Any]]


class Store:
    """Outcomes by pair, row and column in one JSON file, written after each round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.outcomes: dict[str, Rounds] = json.loads(path.read_text()) if path.exists() else {}

    @staticmethod
    def key(pair: str, row: Nat, column: Nat) -> str:
        return f"{pair}|{row.value}|{column.value}"

    def add(self, key: str, outcome: dict[str, Any]) -> None:
        with self._lock:
            self.outcomes.setdefault(key, []).append(outcome)
            draft = self.path.with_suffix(".new")
            draft.write_text(json.dumps(self.outcomes, indent=1))
            draft.replace(self.path)

    def count(self, key: str) -> int:
        return len(self.outcomes.get(key, ()))


@dataclass(frozen=True)
class Task:
    """One round of one cell."""

    pair: str
    row: Nat
    column: Nat
    prediction: bool

    @property
    def key(self) -> str:
        return Store.key(self.pair + ("+prediction" if self.prediction else ""), self.row, self.column)


def tasks(options: argparse.Namespace, store: Store) -> Iterator[Task]:
    """What is missing: every cell's first round, then every cell's second."""
    cells = [
        (row, column)
        for row in options.rows
        for column in options.cols
        if options.both_ways or column not in options.rows or row not in options.cols or _order(row) <= _order(column)
    ]
    for number in range(options.rounds):
        for row, column in cells:
            for pair in options.pair:
                task = Task(pair, row, column, options.prediction)
                if store.count(task.key) <= number:
                    yield task


def _order(nat: Nat) -> int:
    return KINDS.index(nat) if nat in KINDS else len(KINDS)


def work(inet: Inet, task: Task, store: Store) -> None:
    try:
        with Cell(inet, task.row, task.column, PREDICTION_S if task.prediction else PATIENCE_S) as cell:
            outcome = cell.round(task.pair).to_json()
    except LabError as error:
        outcome = {"way": "failed", "note": str(error)[-2000:]}
    store.add(task.key, outcome)
    shown = {key: round(x, 3) if isinstance(x, float) else x for key, x in outcome.items()}
    print(f"{task.key:45} {shown}", file=sys.stderr, flush=True)


def run(options: argparse.Namespace, store: Store) -> None:
    deadline = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="natlab-") as folder, Lab(Path(folder) / "lab", PUBLIC) as lab:
        lab.environment |= PREDICTION if options.prediction else {}
        inet = start_inet(lab)
        with ThreadPoolExecutor(options.jobs) as pool:
            waiting = iter(list(tasks(options, store)))

            def worker() -> None:
                while time.monotonic() < deadline:
                    with _take:
                        task = next(waiting, None)
                    if task is None:
                        return
                    work(inet, task, store)

            for done in [pool.submit(worker) for _ in range(options.jobs)]:
                done.result()


_take = threading.Lock()


def kinds(text: str) -> list[Nat]:
    return [Nat(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.matrix", description=__doc__)
    parser.add_argument("--pair", type=lambda text: text.split(","), default=["ours", "stock"])
    parser.add_argument("--rows", type=kinds, default=list(KINDS))
    parser.add_argument("--cols", type=kinds, default=list(KINDS))
    parser.add_argument("--both-ways", action="store_true", help="each pair of kinds from both ends")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "nat-matrix.json")
    parser.add_argument("--prediction", action="store_true", help="nodes of ours predict ports")
    parser.add_argument("--write", action="store_true", help="measure nothing, write docs/nat.md")
    options = parser.parse_args()
    if unknown := set(options.pair) - set(PAIRS):
        parser.error(f"pairs are {', '.join(PAIRS)}, not {', '.join(unknown)}")
    store = Store(options.store)
    if not options.write:
        run(options, store)
        json.dump(store.outcomes, sys.stdout, indent=1)
    report.write("matrix", report.matrix(store.outcomes))


if __name__ == "__main__":
    main()
