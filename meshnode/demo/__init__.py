"""Layer 6, the street: `meshnode demo`, a whole tailnet on one machine.

`run` tells the story and checks it, `stage` holds the parts (control server, relay, two nodes in
processes of their own), `fetch` is the program that calls through the tunnel, `paper` makes what the
parts need: a certificate, a spec, a file.
"""

from __future__ import annotations

import argparse


def run_demo(parsed: argparse.Namespace) -> int:
    """The command: 0 only if everything held."""
    from meshnode.demo.run import run

    return run(keep=parsed.keep)
