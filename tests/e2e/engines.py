"""Two engines in one process, joined over loopback, by a relay played in Python, or both."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from meshnode.base.addr import IP, Endpoint, parse_prefix
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.engine.engine import PATH_BOTH, PATH_DIRECT, PATH_NONE, PATH_RELAY, Engine

REGION = 9
LIMIT_S = 60.0
LOOPS = ["asyncio", "uvloop"]


def run(loop: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run one test under the named loop, bounded."""

    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await work()

    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())


def filter_blob(*, ports: tuple[int, int] = (0, 65535), protocols: bytes = b"\x06\x11\x01\x3a") -> bytes:
    """Everyone may reach these ports; protocols empty: nobody reaches anything."""
    v4, v6 = IPv6Address("::ffff:0:0").packed, bytes(16)
    sources = v4 + b"\x60" + v6 + b"\x00"
    targets = b"".join(ip + bits + struct.pack("<HH", *ports) for ip, bits in ((v4, b"\x60"), (v6, b"\x00")))
    rule = struct.pack("<BHH", len(protocols), 2, 2) + protocols + sources + targets
    return struct.pack("<II", 0x31464E4D, 1) + rule + struct.pack("<I", 0)


@dataclass
class Side:
    """One engine and what the test knows of it."""

    engine: Engine
    private: NodePrivate
    ip4: IPv4Address
    ip6: IPv6Address
    sends: list[bool] = field(default_factory=list)
    recvs: list[tuple[Endpoint | None, int, int]] = field(default_factory=list)
    handshakes: list[bool] = field(default_factory=list)
    relayed: int = 0

    key: NodePublic = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.private.public()

    @property
    def underlay(self) -> Endpoint:
        return Endpoint(IPv4Address("127.0.0.1"), self.engine.port4)

    def address(self, family: int) -> IP:
        return self.ip4 if family == 4 else self.ip6


async def start_side(number: int, timestamp_floor: bytes = b"") -> Side:
    """An engine on loopback with its own tailnet addresses and an open filter."""
    private = NodePrivate.generate(os.urandom)
    engine = await Engine.start(
        private, bind4=IPv4Address("127.0.0.1"), bind6=IPv6Address("::1"), timestamp_floor=timestamp_floor
    )
    side = Side(engine, private, IPv4Address(f"100.64.0.{number}"), IPv6Address(f"fd7a:115c:a1e0::{number}"))
    engine.set_addresses([side.ip4, side.ip6])
    engine.set_filter(filter_blob())
    engine.on_peer_send = lambda peer, wanted: side.sends.append(wanted)
    engine.on_peer_recv = lambda peer, direct, region, what: side.recvs.append((direct, region, what))
    engine.on_handshake = lambda peer, ok: side.handshakes.append(ok)
    return side


def introduce(a: Side, b: Side, mode: int) -> None:
    """Tell `a` of `b`, with this path."""
    a.engine.upsert_peer(b.key, [parse_prefix(str(b.ip4)), parse_prefix(str(b.ip6))])
    a.engine.set_path(b.key, b.underlay, REGION, mode)


def join_by_relay(a: Side, b: Side) -> None:
    """What either sends by relay is injected into the other, as a relay would carry it."""

    def carry(source: Side, target: Side) -> Callable[[int, NodePublic, bytes], None]:
        def send(region: int, peer: NodePublic, data: bytes) -> None:
            assert region == REGION and peer == target.key
            source.relayed += 1
            target.engine.inject(region, source.key, data)

        return send

    a.engine.on_relay_send = carry(a, b)
    b.engine.on_relay_send = carry(b, a)


@asynccontextmanager
async def pair(mode: int = PATH_DIRECT) -> AsyncIterator[tuple[Side, Side]]:
    """Two engines that know each other."""
    a, b = await start_side(1), await start_side(2)
    try:
        introduce(a, b, mode)
        introduce(b, a, mode)
        if mode in (PATH_RELAY, PATH_BOTH):
            join_by_relay(a, b)
        yield a, b
    finally:
        await a.engine.aclose()
        await b.engine.aclose()


__all__ = ["LOOPS", "PATH_BOTH", "PATH_DIRECT", "PATH_NONE", "PATH_RELAY", "REGION", "Side", "filter_blob",
           "introduce", "join_by_relay", "pair", "run", "start_side"]  # fmt: skip
