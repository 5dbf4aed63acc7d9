"""A lab to try things in by hand: `python -m interop [--relay embedded] [--defaults]`, until Ctrl-C.

Starts Headscale, a relay, and a stock node `stock` that serves HTTP on ports 80 and 81; makes an empty
host `here`; prints the commands that start a meshnode there and reach it.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path

from interop.bed import make_bed
from interop.lab import Lab
from interop.peers.meshnode import command


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m interop", description=__doc__)
    parser.add_argument("--relay", choices=["derper", "pinned", "embedded"], default="derper")
    parser.add_argument("--defaults", action="store_true", help="Headscale's own batching delays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder) / "lab") as lab:
        bed = make_bed(lab, options.relay, tuned=not options.defaults)
        stock = bed.stock("stock")
        here = lab.host("here")
        try:
            meshnode = command()[0]
        except FileNotFoundError:
            meshnode = "meshnode"
        enter = f"ip netns exec {here.namespace}"
        key = here.folder / "key"
        key.write_text(bed.headscale.key())
        trust = f"env SSL_CERT_FILE={bed.authority.ca} " if bed.authority else ""
        up = f"up --control-url {bed.headscale.url} --auth-key file:{key} --hostname mesh"
        print(f"logs and sockets   {lab.folder}  {lab.sockets}")
        print(f"a node             {enter} {trust}{meshnode} {up} --state-dir {here.folder}/state")
        print(f"another key        ip netns exec {lab.hub.namespace} {' '.join(bed.headscale.key_words())}")
        print(
            f"from stock         ip netns exec {stock.host.namespace} curl {' '.join(stock.curl_words())} http://mesh/"
        )
        print(f"tailscale          ip netns exec {stock.host.namespace} {' '.join(stock.words('status'))}")
        print(f"stock's addresses  {' '.join(stock.addresses)}")
        print("Ctrl-C ends it", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
