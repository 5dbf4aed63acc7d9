"""What peers cost that say nothing: UDP packets between two nodes, minute by minute after the last byte.

Source: docs/nat.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.lab import rules
from tests.lab.faults import Round
from tests.lab.inet import Inet
from tests.lab.stage import Stage, pass_time

MINUTES = 4


def packets(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """A direct path, some bytes, then silence: packets to and from the other router in each minute."""
    for _ in range(rounds):
        with Stage(inet, pair) as stage:
            stage.wait_direct()
            stage.reader.process.kill()
            stage.site.router.nft(rules.count_udp(stage.sites[1].wan))
            counts = [0]
            for _ in range(MINUTES):
                pass_time(60.0)
                counts.append(_counted(stage))
            yield {"packets_by_minute": [b - a for a, b in zip(counts, counts[1:], strict=False)]}


def _counted(stage: Stage) -> int:
    """Packets both ways so far."""
    said = json.loads(stage.site.router.run("nft", "-j", "list", "table", "inet", "count").stdout)
    lines = [entry["rule"]["expr"] for entry in said["nftables"] if "rule" in entry]
    return sum(part["counter"]["packets"] for line in lines for part in line if "counter" in part)
