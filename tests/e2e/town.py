"""A town on loopback for end-to-end tests: a control server, a relay, and nodes that join them."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from meshnode.control.server import ControlServer
from meshnode.node.node import Node
from meshnode.relay.server import RelayServer
from meshnode.run.clock import Clock

BOUND_S = 30.0
LOOPS = ["asyncio", "uvloop"]
REGION = 900


def run(loop: str, work: Callable[[], Coroutine[Any, Any, None]], bound_s: float = BOUND_S) -> None:
    """One scenario in a loop of its own, bounded; nothing of it may be left over."""

    async def bounded() -> None:
        async with asyncio.timeout(bound_s):
            await work()
        left = [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        assert not left, f"tasks left behind: {left}"

    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())


async def until(wanted: Callable[[], Any], what: str, bound_s: float = 10.0) -> Any:
    """Wait until `wanted()` is true and return it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + bound_s
    while not (value := wanted()):
        assert loop.time() < deadline, f"not within {bound_s:g} s: {what}"
        await asyncio.sleep(0.01)
    return value


def open_files() -> int:
    """File descriptors of this process, garbage not counted."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Town:
    """Control, relay, and what a node needs to join."""

    control: ControlServer
    relay: RelayServer
    stack: AsyncExitStack
    options: dict[str, Any] = field(default_factory=dict)

    def node(self, name: str, **options: Any) -> Node:
        """A node of this town, not started."""
        values: dict[str, Any] = {
            "control_url": self.control.url,
            "auth_key": self.control.add_key(),
            "hostname": name,
            "state_dir": "mem:",
            "plain_relays": True,
            "use_loopback": True,
        }
        return Node(**(values | self.options | options))

    async def join(self, name: str, **options: Any) -> Node:
        """A node of this town, ready; it leaves with the town."""
        node = await self.stack.enter_async_context(self.node(name, **options))
        await node.ready(timeout=10)
        return node

    async def pair(self, **options: Any) -> tuple[Node, Node]:
        """Two nodes that see each other."""
        one, other = await self.join("one", **options), await self.join("other", **options)
        await see_each_other(one, other)
        return one, other


async def see_each_other(*nodes: Node) -> None:
    """Wait until every node has every other in its netmap."""

    def all_seen() -> bool:
        names = {node.name for node in nodes}
        return all(n.netmap and names <= {n.name, *(p.name for p in n.netmap.peers.values())} for n in nodes)

    await until(all_seen, "the nodes see each other")


@asynccontextmanager
async def make_town(**options: Any) -> AsyncIterator[Town]:
    """A town with nobody in it yet; `options` are for every node."""
    relay = RelayServer()
    await relay.start()
    try:
        regions = {"Regions": {str(REGION): relay_json(relay.port)}}
        async with ControlServer(clock=Clock(), relays=regions) as control, AsyncExitStack() as stack:
            yield Town(control, relay, stack, options)
    finally:
        await relay.aclose()


def relay_json(port: int) -> dict[str, Any]:
    """The relay as a region of the relay map."""
    node = {
        "Name": f"{REGION}a",
        "RegionID": REGION,
        "HostName": "127.0.0.1",
        "IPv4": "127.0.0.1",
        "IPv6": "none",
        "DERPPort": port,
        "STUNPort": -1,
    }
    return {"RegionID": REGION, "RegionCode": "own", "RegionName": "own", "Nodes": [node]}
