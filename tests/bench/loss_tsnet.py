"""A tsnet pair as one more kind of tests.bench.loss: two servers of interop/go/tsnet_bench across an impaired link.

Needs root and the built peers (`python -m interop.build && python -m interop.build tsnet_bench`). The pair
joins a Headscale over a bridge (interop/lab.py) that carries no datagrams between the two, so their direct path is the
link with the box; a run whose path is another one ends with an error.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from interop.bed import Bed, make_bed
from interop.build import binary
from interop.lab import Host, Lab, LabError
from tests.bench.link import A, B, Link
from tests.bench.tunnel import PORT, End, Pair, be_direct

SAMPLE_S = 0.5


class TsnetLinks:
    """A lab whose pairs of hosts have a Link between them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.bed: Bed = make_bed(lab)
        self.hosts: dict[Link, tuple[Host, Host]] = {}
        self.starts = 0

    def link(self) -> Link:
        """One more pair of hosts; whoever calls enters the link."""
        number = len(self.hosts)
        a, b = (self.lab.host(f"{side}{number}") for side in "ab")
        for host in (a, b):
            relay_only(host)
        link = Link(inside=(a.namespace, b.namespace))
        self.hosts[link] = (a, b)
        return link

    @contextlib.contextmanager
    def pair(self, link: Link) -> Iterator[Pair]:
        """Two servers whose path is the link."""
        key, url = self.bed.headscale.key(ephemeral=True), self.bed.headscale.url
        self.starts += 1
        with contextlib.ExitStack() as stack:
            ends = []
            for host in self.hosts[link]:
                name = f"{host.name}n{self.starts}"
                argv = ["nice", "-n", "-10", str(binary("tsnet_bench", "tsnet-bench")), "-url", url, "-name", name]
                argv += ["-dir", str(host.folder / name), "-port", str(PORT)]
                end = End(host, name, argv, TS_AUTHKEY=key, TS_NO_LOGS_NO_SUPPORT="true")
                stack.callback(end.close)
                ends.append(end)
            a, b = ends
            made = Pair("tsnet", a, b)
            made.address_a, made.address_b = a.address, b.address
            be_direct(made)
            expect_link(made)
            yield made


def relay_only(host: Host) -> None:
    """On the bridge only TCP passes: control and relay, no direct path beside the link."""
    words = (
        "add table inet mnloss",
        "add chain inet mnloss in { type filter hook input priority -200 ; }",
        "add rule inet mnloss in iifname eth0 meta l4proto udp drop",
    )
    subprocess.run(host.enter(["nft", "-f", "-"]), input="\n".join(words), text=True, check=True, capture_output=True)


def expect_link(pair: Pair) -> None:
    """LabError unless each end sends to the other's address on the link."""
    for end, other, back in ((pair.a, B, False), (pair.b, A, True)):
        by = str(end.ask("direct", **pair.words(back=back)).get("by"))
        if not by.startswith(f"{other}:"):
            raise LabError(f"tsnet: {end.label} sends to {by!r}, not over the link; the figures are void")


def run(pair: Pair, seconds: float) -> dict[str, Any]:
    """Pump over the open connection; what the receiver's application took within the time."""
    before = int(pair.b.ask("taken")["bytes"])
    started = time.monotonic()
    pair.a.ask("pump")
    series = []
    for i in range(1, round(seconds / SAMPLE_S) + 1):
        time.sleep(max(0.0, started + i * SAMPLE_S - time.monotonic()))
        series.append(int(pair.b.ask("taken")["bytes"]) - before)
    return {"bytes": series[-1], "series": series, "facts": {}}
