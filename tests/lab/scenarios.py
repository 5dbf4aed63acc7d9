"""Faults under a running download, and what idling costs: our pair beside a tailscaled pair in the same lab.

    python -m tests.lab.scenarios [NAME …] [--pair ours,stock] [--rounds N] [--store FILE]
    python -m tests.lab.scenarios --write               # only the table of docs/nat.md, from the stored rounds

Needs root and the built peers. Names are those of SCENARIOS; without any, all run. Rounds are kept in --store (JSON)
and added to; --fresh drops those of what is run. JSON of what was run goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from interop.lab import Lab, LabError
from tests.lab import crowd, faults, idle, outages, report
from tests.lab.faults import Round
from tests.lab.inet import PAIRS, PUBLIC, Inet, start_inet


@dataclass(frozen=True)
class Scenario:
    run: Callable[[Inet, str, int], Iterator[Round]]
    rounds: int
    """How many by default."""
    stages: int = 1
    """At once; each does its part of the rounds."""


SCENARIOS = {
    "cut": Scenario(faults.cut, 20, stages=4),
    "cut-out": Scenario(faults.cut_out, 6, stages=2),
    "cut-in": Scenario(faults.cut_in, 6, stages=2),
    "scrub": Scenario(faults.scrub, 3, stages=3),
    "scrub-out": Scenario(faults.scrub_out, 3, stages=3),
    "scrub-in": Scenario(faults.scrub_in, 3, stages=3),
    "hole-1280": Scenario(faults.hole_1280, 2),
    "hole-1124": Scenario(faults.hole_1124, 2),
    "rebinding": Scenario(faults.rebinding, 5),
    "roaming": Scenario(faults.roaming, 3, stages=3),
    "replugged": Scenario(faults.replugged, 3),
    "relay-stopped": Scenario(outages.relay_stopped, 3),
    "relay-half-dead": Scenario(outages.relay_half_dead, 3),
    "suspend": Scenario(outages.suspended, 3),
    "idle": Scenario(idle.packets, 1),
    "crowd": Scenario(crowd.crowd, 1),
}


def run(inet: Inet, name: str, pair: str, rounds: int) -> list[Round]:
    """All rounds of one scenario, its stages side by side."""
    stages = min(SCENARIOS[name].stages, rounds)
    shares = [rounds // stages + (number < rounds % stages) for number in range(stages)]
    with ThreadPoolExecutor(stages) as pool:
        done = pool.map(lambda share: list(run_stage(inet, name, pair, share)), shares)
        return [found for part in done for found in part]


def run_stage(inet: Inet, name: str, pair: str, rounds: int) -> Iterator[Round]:
    """Rounds of one scenario; one that cannot go on says why."""
    try:
        for found in SCENARIOS[name].run(inet, pair, rounds):
            shown = {key: round(x, 3) if isinstance(x, float) else x for key, x in found.items()}
            print(f"{name} {pair} {shown}", file=sys.stderr, flush=True)
            yield shown
    except LabError as error:
        print(f"{name} {pair}: {error}", file=sys.stderr, flush=True)
        yield {"note": str(error)[-2000:]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.scenarios", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--pair", type=lambda text: text.split(","), default=["ours", "stock"])
    parser.add_argument("--rounds", type=int, help="of each; else as many as the scenario has")
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "nat-scenarios.json")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--write", action="store_true", help="measure nothing, write docs/nat.md")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCENARIOS) | set(options.pair) - set(PAIRS):
        parser.error(f"there is no {', '.join(unknown)}")
    stored: dict[str, list[Round]] = json.loads(options.store.read_text()) if options.store.exists() else {}
    if not options.write:
        with tempfile.TemporaryDirectory(prefix="natlab-") as folder, Lab(Path(folder) / "lab", PUBLIC) as lab:
            inet = start_inet(lab)
            for name in options.names or SCENARIOS:
                for pair in options.pair:
                    had = [] if options.fresh else stored.get(f"{name}|{pair}", [])
                    found = run(inet, name, pair, options.rounds or SCENARIOS[name].rounds)
                    stored[f"{name}|{pair}"] = had + found
                    options.store.write_text(json.dumps(stored, indent=1))
        json.dump(stored, sys.stdout, indent=1)
    report.write("scenarios", report.scenarios(stored))


if __name__ == "__main__":
    main()
