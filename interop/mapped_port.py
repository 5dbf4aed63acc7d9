"""Keeps one UDP port mapped with meshnode's port mapper and prints what happens, one JSON object a line.

`python -m interop.mapped_port SETTING`; ends with SIGTERM, and then the mapping is given back.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from typing import Any

from meshnode.base.addr import Endpoint
from meshnode.core.portmap_values import Presence
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope
from meshnode.underlay.portmap import PortMapper, protocols_of


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def main(setting: str) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", 0))
    sock.setblocking(False)
    loop.add_reader(sock, lambda: say(got=sock.recv(2000).decode()))
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)

    def on_endpoint(external: Endpoint | None) -> None:
        say(endpoint=str(external) if external else None, state=mapper.state)

    def on_presence(seen: Presence) -> None:
        say(upnp=seen.upnp, pmp=seen.pmp, pcp=seen.pcp)

    port = sock.getsockname()[1]
    mapper = PortMapper(
        protocols_of(setting), clock=Clock(), port=lambda: port, on_endpoint=on_endpoint, on_presence=on_presence
    )
    async with Scope("mapped") as scope:
        scope.spawn(mapper.run(), "mapper")
        await ended.wait()


asyncio.run(main(sys.argv[1]))
