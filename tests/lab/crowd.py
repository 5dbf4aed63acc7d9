"""What a netmap of a thousand peers costs a node that talks to none of them: its share of a core, minute by minute.

The control server is our embedded one in a process of its own, its other members are made up; nobody of them is ever
there. Run as a program: `python -m tests.lab.crowd ADDRESS PORT MEMBERS RELAYS`, RELAYS being a DERPMap in JSON; it
prints an auth key when it serves.
Source: docs/nat.md.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled
from interop.process import until
from meshnode.base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from meshnode.control.server import ControlServer
from meshnode.run.clock import Clock
from tests.lab import status
from tests.lab.faults import Round
from tests.lab.inet import PAIRS, READY_S, REGIONS, Inet
from tests.lab.rules import Nat
from tests.lab.site import Site
from tests.lab.stage import pass_time

MEMBERS = 1000
PORT = 8081
REST_S = 30.0
MINUTES = 2


def crowd(inet: Inet, pair: str, rounds: int) -> Iterator[Round]:
    """One node behind a router, a thousand peers in its netmap."""
    for number in range(rounds):
        site = Site(inet.lab, f"crowd{pair}{number}", Nat.PORT_RESTRICTED).build()
        host = site.host(f"crowd{pair}{number}n")
        argv = [sys.executable, "-m", "tests.lab.crowd", inet.lab.hub.v4, str(PORT), str(MEMBERS), _relays(inet)]
        server = inet.lab.hub.start(f"crowd-{pair}{number}", argv, PYTHONPATH=status.SEARCH)
        key = server.wait_until(lambda s=server: s.out().strip(), READY_S, "the control server serves")  # type: ignore[misc]
        url = f"http://{inet.lab.hub.v4}:{PORT}"
        if PAIRS[pair][0] == "ours":
            node: Meshnode | Tailscaled = Meshnode(host, host.name, url, key=key).start()
        else:
            node = Tailscaled(host, host.name).start().up(url, key)
        until(lambda n=node: len(status.read(n)["Peer"] or ()) >= MEMBERS, READY_S, "all peers")  # type: ignore[misc]
        assert node.process is not None
        pass_time(REST_S)
        spent = [_cpu_s(node.process.pid)]
        for _ in range(MINUTES):
            pass_time(60.0)
            spent.append(_cpu_s(node.process.pid))
        yield {"cpu_percent": [round((b - a) / 0.6, 3) for a, b in zip(spent, spent[1:], strict=False)]}
        node.process.kill()
        server.kill()
        site.remove()


def _cpu_s(pid: int) -> float:
    """Seconds of a core that a process's threads have used: by the scheduler, for ticks miss most short wakings."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def _relays(inet: Inet) -> str:
    regions = {}
    for region, relay in zip(REGIONS, inet.relays, strict=True):
        node = {"Name": f"{region}a", "RegionID": region, "HostName": relay.host.v4, "IPv4": relay.host.v4,
                "DERPPort": relay.port, "STUNPort": 3478}  # fmt: skip
        regions[region] = {"RegionID": region, "RegionCode": relay.code, "RegionName": relay.code, "Nodes": [node]}
    return json.dumps({"Regions": regions})


async def serve(address: str, port: int, members: int, relays: dict[str, Any]) -> None:
    clock = Clock()
    async with ControlServer(clock=clock, relays=relays, host=address, port=port) as server:
        key = server.add_key()
        for number in range(members):
            machine, node = (
                MachinePrivate.generate(clock.entropy).public(),
                NodePrivate.generate(clock.entropy).public(),
            )
            hostinfo = {"Hostname": f"member{number}", "NetInfo": {"PreferredDERP": REGIONS[number % 2]}}
            request = {"NodeKey": str(node), "Hostinfo": hostinfo, "Auth": {"AuthKey": key}}
            server.tailnet.register(machine, request, clock.wall())
            member = server.tailnet.by_key(node)
            assert member is not None
            disco = DiscoPrivate.generate(clock.entropy).public()
            endpoints = [f"203.0.113.{number % 250}:{1024 + number}", f"192.168.7.{number % 250}:41641"]
            update = {"NodeKey": str(node), "DiscoKey": str(disco), "Endpoints": endpoints, "Hostinfo": hostinfo}
            server.tailnet.update(member, update)
        print(key, flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])))
