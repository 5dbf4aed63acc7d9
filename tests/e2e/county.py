"""Several relay regions on loopback, each with a STUN server that can be slow or silent, and a control server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from meshnode.control.server import ControlServer
from meshnode.control.tailnet import Member
from meshnode.relay.server import RelayServer
from meshnode.relay.stun import StunServer
from meshnode.run.clock import Clock
from tests.e2e.town import Town


class Stun(StunServer):
    """The relay's STUN server, as far away as a test says."""

    delay_s: float | None = 0.0
    """None: it is silent."""

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.counters["heard"] += 1
        if self.delay_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.delay_s, super().datagram_received, data, addr)


@dataclass
class District:
    """One region: a relay and its STUN server."""

    number: int
    relay: RelayServer
    stun: Stun

    def to_json(self, **fields: Any) -> dict[str, Any]:
        """As control hands it out."""
        node = {
            "Name": f"{self.number}a", "RegionID": self.number, "HostName": "127.0.0.1", "IPv4": "127.0.0.1",
            "IPv6": "none", "DERPPort": self.relay.port, "STUNPort": self.stun.port,
        }  # fmt: skip
        code = f"r{self.number}"
        return {"RegionID": self.number, "RegionCode": code, "RegionName": code.upper(), "Nodes": [node | fields]}


@dataclass
class County(Town):
    """A town with several relays."""

    districts: list[District] = field(default_factory=list)

    def member(self, name: str) -> Member:
        """What control knows of a node."""
        member = self.control.tailnet.find(name)
        assert member is not None
        return member


@asynccontextmanager
async def make_county(*delays_ms: float | None, **options: Any) -> AsyncIterator[County]:
    """Regions 901, 902, … whose STUN servers answer that late; None: not at all."""
    async with AsyncExitStack() as stack:
        districts = []
        for number, delay_ms in enumerate(delays_ms, 901):
            relay, stun = RelayServer(), await Stun.start(port=0)
            assert isinstance(stun, Stun)
            stun.delay_s = None if delay_ms is None else delay_ms / 1000
            await relay.start()
            stack.push_async_callback(relay.aclose)
            stack.callback(stun.close)
            districts.append(District(number, relay, stun))
        regions = {"Regions": {str(d.number): d.to_json() for d in districts}}
        control = await stack.enter_async_context(ControlServer(clock=Clock(), relays=regions))
        nodes = await stack.enter_async_context(AsyncExitStack())
        yield County(control, districts[0].relay, nodes, options, districts)
