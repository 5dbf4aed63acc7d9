"""The figures of docs/protocol/paths.md 8.1, measured: `python -m tests.sim.figures` prints them, `--write` keeps them.

15 ms one way, 30 ms by relay, 50 packets a second each way, both ends ours. Kept in figures.json to the
digit: same seeds, same figures, so whatever changes them shows in a diff.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from meshnode.core.path_values import State
from tests.sim.judge import lost_for, lost_runs
from tests.sim.node import SimNode
from tests.sim.world import World, pair

KEPT: Final = Path(__file__).with_name("figures.json")
SEEDS: Final = 30
OUTAGES: Final = 60
EACH_S: Final = 0.02
LOSSES: Final = {"1": 0.01, "5": 0.05, "20": 0.2, "40": 0.4}
"""In per cent, and as a share."""
LOSSY_S: Final = 300.0
RELAYED_EACH_S: Final = 0.1
TEN_MINUTES_S: Final = 600.0

Figures = dict[str, float]


def settled(seed: int, **about: object) -> tuple[World, SimNode, SimNode]:
    """Two that are direct and have been for some seconds, at no particular moment between two heartbeats."""
    world, a, b = pair(seed, firewall=True, **about)
    world.talk(a, b, each_s=EACH_S)
    world.run_until(lambda: both_direct(a, b), 10.0)
    world.run(4.0 + world.dice.uniform(0.0, 2.0))
    return world, a, b


def both_direct(a: SimNode, b: SimNode) -> bool:
    """Whether both ends are."""
    return a.state(b) is State.DIRECT and b.state(a) is State.DIRECT


def entered(node: SimNode, state: State, since: float) -> float:
    """Seconds from an instant until the node was first in that state."""
    return next(at for at, old, new, _ in node.states if at >= since and new == state and old != new) - since


def cold_start() -> Figures:
    """Firewalls on both sides, nothing known but endpoints."""
    took, lost = [], 0.0
    for seed in range(SEEDS):
        world, a, b = pair(seed, firewall=True)
        world.talk(a, b, each_s=EACH_S)
        at = world.now
        world.run(5.0)
        took += [entered(a, State.DIRECT, at), entered(b, State.DIRECT, at)]
        lost += sum(len(lost_runs(x, y)) for x, y in ((a, b), (b, a)))
    return {"cold start: direct after, ms": 1000 * statistics.median(took), "cold start: stretches lost": lost}


def path_dies() -> Figures:
    """UDP cut both ways, and one way with the return data going on."""
    both, degraded, one = [], [], []
    for seed in range(SEEDS):
        world, a, b = settled(seed)
        at = world.now
        world.cut(a, b)
        world.run(5.0)
        both += [lost_for(a, b, at), lost_for(b, a, at)]
        degraded.append(entered(a, State.DEGRADED, at))
        world, a, b = settled(seed)
        at = world.now
        world.cut(a, b, one_way=True)
        world.run(8.0)
        one.append(lost_for(a, b, at))
    return {
        "cut both ways: without delivery, s": statistics.median(both),
        "cut both ways: degraded after, s": statistics.median(degraded),
        "cut one way: without delivery, s": statistics.median(one),
        "cut one way: without delivery at worst, s": max(one),
    }


def link_change() -> Figures:
    """Our address goes and another comes."""
    lost, took = [], []
    for seed in range(SEEDS):
        world, a, b = settled(seed)
        at = world.now
        a.set_ips(["198.51.100.9"])
        world.run(5.0)
        took.append(entered(a, State.DIRECT, at))
        lost.append(lost_for(a, b, at))
    return {"link change: without delivery, s": max(lost), "link change: new path after, s": statistics.median(took)}


def outage_ends() -> Figures:
    """Twenty seconds without UDP, and then it is back."""
    took = []
    for seed in range(OUTAGES):
        world, a, b = settled(seed)
        world.cut(a, b)
        world.run(20.0)
        world.heal()
        took.append(world.run_until(lambda a=a, b=b: both_direct(a, b), 30.0))
    return {"outage of 20 s: direct again after, s": statistics.median(took), "outage of 20 s: at worst, s": max(took)}


def black_hole() -> Figures:
    """Packets of 1360 bytes vanish from the start."""
    found, lost = [], []
    for seed in range(SEEDS):
        world, a, b = pair(seed)
        a.up.limit = b.up.limit = 1300
        at = world.now
        world.talk(a, b, each_s=0.05, size=1360)
        world.talk(a, b, each_s=0.05)
        world.run_until(lambda a=a, b=b: bool((r := a.routes.get(b.key)) and r.limit == 1280), 10.0)
        found.append(world.now - at)
        world.run(5.0)
        lost += [lost_for(a, b, at), lost_for(b, a, at)]
    return {"hole of 1300: found after, s": statistics.median(found), "hole of 1300: without delivery, s": max(lost)}


def random_loss() -> Figures:
    """Of all packets, each way."""
    out: Figures = {}
    for name, share in LOSSES.items():
        world, a, b = pair(0, loss=share)
        world.talk(a, b, each_s=EACH_S)
        world.run_until(lambda a=a, b=b: both_direct(a, b), 30.0)
        world.run(20.0)
        at, before = world.now, a.data_relayed + b.data_relayed
        world.run(LOSSY_S)
        news = [new for n in (a, b) for t, _, new, _ in n.states if t >= at]
        sent = sum(1 for n, o in ((a, b), (b, a)) for t in n.sent[o.key].values() if t >= at)
        out[f"loss {name} %: degraded per 10 min"] = news.count(State.DEGRADED) / 2 * TEN_MINUTES_S / LOSSY_S
        out[f"loss {name} %: relay only"] = news.count(State.RELAY_ONLY)
        out[f"loss {name} %: relayed, %"] = 100 * (a.data_relayed + b.data_relayed - before) / sent
    return out


def pings() -> Figures:
    """Pings a second and side, on a direct path in use and without one."""
    world, a, b = settled(0)
    before = a.path(b).pings_sent + b.path(a).pings_sent
    world.run(TEN_MINUTES_S / 5)
    direct = a.path(b).pings_sent + b.path(a).pings_sent - before
    world, a, b = pair(1)
    world.cut(a, b)
    world.talk(a, b, each_s=RELAYED_EACH_S)
    world.run(60.0)
    before = a.path(b).pings_sent + b.path(a).pings_sent
    world.run(TEN_MINUTES_S)
    none = a.path(b).pings_sent + b.path(a).pings_sent - before
    return {
        "pings a second, direct": direct / 2 / (TEN_MINUTES_S / 5),
        "pings a second, no direct path": none / 2 / TEN_MINUTES_S,
    }


PARTS: Final[tuple[Callable[[], Figures], ...]] = (
    cold_start, path_dies, link_change, outage_ends, black_hole, random_loss, pings,
)  # fmt: skip


def measure() -> Figures:
    """All of them, to four digits behind the point."""
    return {name: round(value, 4) for part in PARTS for name, value in part().items()}


def kept() -> Figures:
    """Those of the file."""
    figures: Figures = json.loads(KEPT.read_text())
    return figures


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="the figures of paths.md 8.1")
    parser.add_argument("--write", action="store_true", help="keep them as the figures to come")
    figures = measure()
    for name, value in figures.items():
        print(f"{value:10.3f}  {name}")
    if parser.parse_args(argv).write:
        KEPT.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
