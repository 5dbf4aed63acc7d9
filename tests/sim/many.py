"""Plays many scenarios: `python -m tests.sim.many --seeds 10000`; `--seed N --trace` replays one.

Prints how many were played and how they ended; for each failure its seed, the scenario in words, what did not
hold and the end of its story.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from tests.sim.scenario import Scenario
from tests.sim.world import START

SHOWN: Final = 5


@dataclass
class Result:
    """How one seed ended."""

    seed: int
    words: str
    problem: str = ""
    mishaps: list[str] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    direct_after_s: float | None = None
    events: int = 0


def play(seed: int) -> Result:
    """One scenario from beginning to end."""
    scenario = Scenario.of(seed)
    result = Result(seed, str(scenario))
    try:
        scenario.play()
    except Exception as error:
        result.problem = str(error) or repr(error)
        if not isinstance(error, AssertionError):
            raise
    result.mishaps = [what for _, what in scenario.world.events]
    result.stalls, result.direct_after_s = scenario.stalls, scenario.direct_after_s
    result.events = scenario.world.watch.events
    return result


def replay(seed: int, *, is_traced: bool) -> bool:
    """One scenario with its story, traced: with every packet; whether all held."""
    scenario = Scenario.of(seed)
    scenario.is_traced = is_traced
    print(f"seed {seed}: {scenario}")
    problem = ""
    try:
        scenario.play()
    except AssertionError as error:
        problem = str(error).partition("\n")[0]
    print(scenario.world.story(lines=100_000))
    print(f"{scenario.world.now - START:9.3f} {problem or 'all held'}")
    return not problem


def summary(results: list[Result], took_s: float) -> str:
    """Counts and figures."""
    failed = [r for r in results if r.problem]
    kinds = Counter(r.problem.partition("\n")[0].split(":")[0][:60] for r in failed)
    direct = sorted(r.direct_after_s for r in results if r.direct_after_s is not None)
    lines = [
        f"{len(results)} scenarios, {sum(r.events for r in results)} events, {took_s:.0f} s "
        f"({len(results) / max(took_s, 1e-9):.0f} a second): {len(results) - len(failed)} held, {len(failed)} failed"
    ]
    if len(direct) >= 20:
        lines.append(f"direct after {quantiles(direct)} ({len(direct)} times)")
    lines += [f"  {count} x {kind}" for kind, count in kinds.most_common()]
    return "\n".join(lines)


def quantiles(values: list[float]) -> str:
    """p50, p95 and the worst, in seconds."""
    cuts = statistics.quantiles(values, n=20)
    return f"{cuts[9]:.2f} s (p50), {cuts[18]:.2f} s (p95), {max(values):.2f} s (worst)"


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="path scenarios in virtual time")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="play this one only and tell its story")
    parser.add_argument("--trace", action="store_true", help="with --seed: every packet too")
    options = parser.parse_args(argv)
    if options.seed is not None:
        return 0 if replay(options.seed, is_traced=options.trace) else 1
    seeds = range(options.start, options.start + options.seeds)
    began = time.monotonic()
    if options.jobs > 1:
        with ProcessPoolExecutor(options.jobs) as pool:
            results = list(pool.map(play, seeds, chunksize=20))
    else:
        results = [play(seed) for seed in seeds]
    failed = [r for r in results if r.problem]
    for result in failed[:SHOWN]:
        print(f"seed {result.seed}: {result.words}\n  " + "; ".join(result.mishaps) + f"\n  {result.problem[:3000]}\n")
    print(summary(results, time.monotonic() - began))
    if failed:
        print("failed seeds:", *(r.seed for r in failed[:50]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
