"""A pair of nodes that can only meet at a relay, beside a tailscaled and a tsnet pair: rate, CPU, echo.

    python -m tests.bench.relayed [--rounds 5] [--seconds 3] [--pairs …] > out.json

Needs root, the built peers (`python -m interop.build && python -m interop.build tsnet_bench`) and uvloop. Every pair
is two nodes in two namespaces whose UDP is cut, so that all packets go by the one relay of their tailnet, TLS 1.3; all
share this machine's cores. Two tailnets, each with its own Headscale: one whose relay is ours, one whose relay is a
stock derper. Pairs:

ours           two processes with a Node each, through our relay
ours_derper    the same through derper
tailscaled     two `tailscaled --tun=userspace-networking`, dialled through SOCKS5, through derper
tsnet          two tsnet servers through derper

Rows as in tests/bench/tunnel.py: `one` (with core-seconds per Gbit of the nodes and, as `relay_core_s`, of the relay)
and `echo1`. A round measures each row at every pair in turn, the order turned round each time; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from interop.bed import Bed, make_bed
from interop.lab import Lab, LabError, until
from tests.bench import tunnel
from tests.bench.tunnel import Pair, Results, chosen, cpu_s, make_meshnode, make_tailscaled, make_tsnet, say, warm

PAIRS = ("ours", "ours_derper", "tailscaled", "tsnet")
ROWS = ("one", "echo1")
TARGETS = {
    "ours through our relay ÷ tailscaled through derper, at least": ("gbit_s", "ours", "tailscaled", 6.0),
    "its CPU per Gbit ÷ tailscaled's, at most": ("core_s", "ours", "tailscaled", -0.2),
    "ours through derper ÷ tailscaled through derper, at least": ("gbit_s", "ours_derper", "tailscaled", 2.0),
}


def relay_pid(bed: Bed) -> int:
    peer = bed.relay or bed.derper
    assert peer is not None and peer.process is not None
    return peer.process.pid


def make(name: str, bed: Bed) -> Pair:
    """A pair of this tailnet, its UDP cut once it is made."""
    short = name.replace("_", "")[:6]
    a, b = bed.lab.host(f"{short}a"), bed.lab.host(f"{short}b")
    makers = {"ours": make_meshnode, "ours_derper": make_meshnode, "tailscaled": make_tailscaled, "tsnet": make_tsnet}
    pair = makers[name](bed, a, b)
    pair.name = name
    a.cut_udp()
    b.cut_udp()
    return pair


def be_relayed(pair: Pair) -> None:
    """Until bytes come through, which by now only the relay carries."""
    warm(pair)
    if pair.name.startswith("ours"):
        for end, back in ((pair.a, False), (pair.b, True)):
            until(
                lambda e=end, back=back: not e.ask("direct", **pair.words(back=back))["direct"],  # type: ignore[misc]
                60,
                f"{pair.name}: {end.label} goes by relay",
                interval_s=0.2,
            )


def one_figure(pair: Pair, bed: Bed, row: str, seconds: float, results: Results) -> None:
    before = cpu_s([relay_pid(bed)])
    try:
        figures = pair.measure(row, seconds)
    except (LabError, OSError) as error:
        results.problems.append(f"{row}, {pair.name}: {error}")
        say(results.problems[-1])
        return
    if row == "one":
        figures["relay_core_s"] = (cpu_s([relay_pid(bed)]) - before) / (figures["gbit_s"] * seconds)
    results.add(row, pair.name, figures)


def targets(results: Results) -> dict[str, Any]:
    judged = {}
    for title, (figure, ours, theirs, bound) in TARGETS.items():
        a, b = results.median("one", ours, figure), results.median("one", theirs, figure)
        if a is not None and b:
            value = a / b
            judged[title] = {
                "value": round(value, 3),
                "bound": abs(bound),
                "met": value <= -bound if bound < 0 else value >= bound,
            }
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--pairs", type=lambda t: chosen(t, PAIRS), default=list(PAIRS))
    options = parser.parse_args()
    results = Results()
    tunnel.TARGETS = {}
    with tempfile.TemporaryDirectory(prefix="mn-relayed-") as folder:
        with Lab(Path(folder) / "ours") as lab_ours, Lab(Path(folder) / "derper") as lab_derper:
            beds = {"ours": make_bed(lab_ours, "ours"), "derper": make_bed(lab_derper, "derper")}
            made: list[tuple[Pair, Bed]] = []
            try:
                for name in options.pairs:
                    bed = beds["ours" if name == "ours" else "derper"]
                    try:
                        made.append((make(name, bed), bed))
                    except (LabError, OSError, subprocess.CalledProcessError) as error:
                        results.problems.append(f"{name}: does not start here: {error}")
                        print(results.problems[-1], file=sys.stderr)
                for pair, _ in made:
                    be_relayed(pair)
                for number in range(options.rounds):
                    for row in ROWS:
                        for pair, bed in made if number % 2 == 0 else made[::-1]:
                            one_figure(pair, bed, row, options.seconds, results)
            finally:
                for pair, _ in made:
                    pair.close()
    print(json.dumps(results.summary() | {"targets": targets(results)}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
