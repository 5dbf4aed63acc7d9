"""Logins at a relay by each of our links, fast as they come and kept from it, each timed from its dial to admission.

Run as a program in a host: `python -m interop.peers.logins FILE`, FILE being the JSON of `Visit`; its answer is one
line, a list of `Login`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interop.lab import Host

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0


@dataclass(frozen=True)
class Visit:
    """Where, and how often in each way."""

    host: str
    port: int
    address: str
    """Where `host` is."""
    cert_name: str = ""
    ca_file: str = ""
    times: int = 3


@dataclass(frozen=True)
class Login:
    """One way of logging in; `best_s` of several times."""

    link: str
    """python or engine."""
    is_told: bool
    """Whether it was let know the key that TLS told."""
    is_fast: bool
    best_s: float


def visit(host: Host, wanted: Visit) -> list[Login]:
    """Run the program in `host`."""
    import meshnode

    path = host.folder / "visit.json"
    path.write_text(json.dumps(asdict(wanted)))
    # The installed package first: the one in the working directory may not be built.
    search = f"{Path(meshnode.__file__).parents[1]}:{ROOT}"
    argv = ["env", f"PYTHONPATH={search}", sys.executable, "-P", "-m", "interop.peers.logins", str(path)]
    return [Login(**row) for row in json.loads(host.run(*argv, timeout_s=LIMIT_S).stdout)]


async def _visit(wanted: Visit) -> list[Login]:
    from meshnode.base.addr import RegionId
    from meshnode.base.keys import NodePrivate, NodePublic
    from meshnode.core.lanes import Lanes
    from meshnode.engine.engine import Engine
    from meshnode.netmap.model import RelayNode, RelayRegion
    from meshnode.relay.dial import dial_region
    from meshnode.relay.link import Link
    from meshnode.relay.options import DialOptions
    from meshnode.run.clock import Clock

    clock, private, one = Clock(), NodePrivate.generate(Clock().entropy), RegionId(1)
    node = RelayNode(
        "a", one, wanted.host, ipv4=wanted.address, port=wanted.port, stun_port=-1, cert_name=wanted.cert_name
    )
    region = RelayRegion(one, "r", "r", (node,))
    engine = await Engine.start(private)

    class Untold(Link):
        async def login(
            self, host: str, ideal: str, *, by_websocket: bool = False, told: NodePublic | None = None
        ) -> None:
            await super().login(host, ideal, by_websocket=by_websocket)

    async def log_in(options: DialOptions, kind: type[Link]) -> tuple[float, bool]:
        def make() -> Link:
            return kind(
                private, Lanes(), clock=clock, region=1,
                on_packet=_ignore, on_gone=_ignore, on_health=_ignore,
            )  # fmt: skip

        started = time.monotonic()
        link, _ = await dial_region(region, options, make)
        took = time.monotonic() - started
        link.abort()
        return took, link.is_fast

    rows = []
    for name, carrier in (("python", None), ("engine", engine.adopt_relay)):
        options = DialOptions(wanted.ca_file, carrier=carrier)
        for kind in (Link, Untold):
            found = [await log_in(options, kind) for _ in range(wanted.times)]
            rows.append(Login(name, kind is Link, all(fast for _, fast in found), min(took for took, _ in found)))
    await engine.aclose()
    return rows


def _ignore(*_: Any) -> None:
    pass


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in asyncio.run(_visit(Visit(**json.loads(Path(sys.argv[1]).read_text()))))]))
