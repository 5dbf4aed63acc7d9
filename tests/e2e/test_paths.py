"""Two engines, two Discoveries, one relay, no control server: relayed at first, then direct, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from struct import pack

import pytest

from meshnode.base.addr import Endpoint, RegionId, parse_ip
from meshnode.base.keys import DiscoPrivate, NodePrivate
from meshnode.core.path_values import Mode, State, Tuning
from meshnode.netmap.model import Node
from meshnode.relay.pool import RelayPool, RelayState
from meshnode.relay.server import RelayServer
from meshnode.run.clock import Clock
from meshnode.underlay.disco import Discovery
from meshnode.wire.disco import is_disco

pytest.importorskip("meshnode.engine._native", exc_type=ImportError)

from meshnode.engine.engine import Engine  # noqa: E402

CLOCK = Clock()
HOME = RegionId(900)
QUICK = Tuning(heartbeat_s=0.2, degraded_timeout_s=0.5)
LOOP = parse_ip("127.0.0.1")
ANY4 = bytes(10) + b"\xff\xff" + bytes(4) + b"\x60"
"""0.0.0.0/0 as the filter writes it."""
ANYTHING = pack("<IIBHHBB", 0x31464E4D, 1, 2, 1, 1, 1, 6) + ANY4 + ANY4 + pack("<HHI", 0, 65535, 0)
"""One rule: ICMP and TCP from anywhere to anywhere."""


@dataclass
class Member:
    """The rooms of a node without its control client."""

    private: NodePrivate
    ip: str
    engine: Engine
    discovery: Discovery
    pool: RelayPool
    story: list[str] = field(default_factory=list)
    region_up: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def start(cls, ip: str, server: RelayServer) -> Member:
        private = NodePrivate.generate(CLOCK.entropy)
        engine = await Engine.start(private)
        discovery = Discovery(DiscoPrivate.generate(CLOCK.entropy), private.public(), loopback_ok=True, tuning=QUICK)
        member = cls(private, ip, engine, discovery, RelayPool(private, plain=True))
        member.introduce()
        engine.set_addresses([parse_ip(ip)])
        engine.set_filter(ANYTHING)
        member.pool.set_map(server.relay_map())
        member.pool.set_home(HOME)
        return member

    def introduce(self) -> None:
        engine, discovery, pool = self.engine, self.discovery, self.pool
        engine.on_disco = discovery.on_disco
        engine.on_relay_send = lambda region, peer, data: pool.send(RegionId(region), peer, data)
        engine.on_peer_send = discovery.on_send
        engine.on_peer_recv = discovery.on_recv
        engine.on_send_error = discovery.on_send_error
        engine.on_handshake = discovery.on_handshake
        discovery.send_udp, discovery.send_relay = engine.send_raw, pool.send
        discovery.set_path, discovery.kick = engine.set_path, engine.kick
        discovery.notify = lambda _, old, new, why: self.story.append(f"{old} → {new}: {why}")
        pool.on_packet = lambda region, sender, data: (
            discovery.on_relay_disco(region, sender, data) if is_disco(data) else engine.inject(region, sender, data)
        )
        pool.on_peer_gone = discovery.on_peer_gone
        pool.on_state = lambda _, state: self.region_up.set() if state is RelayState.CONNECTED else None

    def meet(self, other: Member, *endpoints: Endpoint) -> None:
        prefix = ip_network(other.ip)
        key = other.private.public()
        self.engine.upsert_peer(key, [prefix])
        self.discovery.on_netmap_peer(
            Node(
                id=1,
                stable_id="x",
                name="x",
                user_id=1,
                key=key,
                machine=None,
                disco=other.discovery.public,
                addresses=(prefix,),
                allowed=(prefix,),
                endpoints=endpoints,
                home=HOME,
            )  # fmt: skip
        )

    def state(self, other: Member) -> State:
        status = self.discovery.status(other.private.public())
        assert status is not None
        return status.state

    async def aclose(self) -> None:
        self.discovery.close()
        await self.pool.aclose()
        await self.engine.aclose()


async def fetch(a: Member, b: Member, size: int) -> None:
    """`size` bytes from b to a through the tunnel."""
    listener = await b.engine.listen(None, 80)
    loop = asyncio.get_running_loop()
    payload = bytes(range(256)) * (size // 256)

    async def serve() -> None:
        async for sock in listener:
            await loop.sock_sendall(sock, payload)
            sock.close()
            return

    serving = asyncio.ensure_future(serve())
    sock = await a.engine.connect(parse_ip(b.ip), 80)
    got = bytearray()
    while data := await loop.sock_recv(sock, 1 << 18):
        got += data
    sock.close()
    await serving
    listener.close()
    assert bytes(got) == payload


async def until(wanted: Callable[[], object], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not wanted():
            await asyncio.sleep(0.002)


def run(scenario: Callable[[Member, Member], Awaitable[None]]) -> None:
    async def main() -> None:
        server = RelayServer()
        await server.start()
        members: list[Member] = []
        try:
            for ip in ("100.64.0.1", "100.64.0.2"):
                members.append(await Member.start(ip, server))
            async with asyncio.timeout(30):
                await asyncio.gather(*(m.region_up.wait() for m in members))
                await scenario(*members)
        finally:
            for member in members:
                await member.aclose()
            await server.aclose()

    asyncio.run(main())


def test_relayed_then_direct() -> None:
    async def scenario(a: Member, b: Member) -> None:
        a.meet(b)
        b.meet(a)
        await fetch(a, b, 1 << 20)
        assert a.state(b) is not State.DIRECT, a.story
        stats = a.engine.peer_stats(b.private.public())
        assert stats["rx_relay_bytes"] > 1 << 20 and stats["rx_direct_bytes"] == 0
        assert (await a.discovery.ping(b.private.public(), 3.0)).region == HOME
        for member in (a, b):
            member.discovery.set_endpoints([Endpoint(LOOP, member.engine.port4)])
        await until(lambda: a.state(b) is State.DIRECT and b.state(a) is State.DIRECT)
        await fetch(a, b, 4 << 20)
        await until(lambda: a.discovery.status(b.private.public()).mode is Mode.DIRECT)  # type: ignore[union-attr]
        assert a.engine.peer_stats(b.private.public())["rx_direct_bytes"] > 4 << 20
        result = await a.discovery.ping(b.private.public(), 3.0)
        assert result.endpoint == Endpoint(LOOP, b.engine.port4) and result.latency_s < 1.0

    run(scenario)


def test_a_direct_path_that_stays_silent_is_given_up_for_the_relay() -> None:
    async def scenario(a: Member, b: Member) -> None:
        a.meet(b, Endpoint(LOOP, b.engine.port4))
        b.meet(a, Endpoint(LOOP, a.engine.port4))
        await fetch(a, b, 1 << 20)
        await until(lambda: a.state(b) is State.DIRECT and b.state(a) is State.DIRECT)
        for member in (a, b):  # the underlay goes dark for DISCO, as a firewall would make it
            member.engine.on_disco = None
        await until(lambda: a.state(b) is State.RELAY_ONLY and b.state(a) is State.RELAY_ONLY, 15.0)
        await fetch(a, b, 1 << 20)
        assert a.engine.peer_stats(b.private.public())["rx_relay_bytes"] > 1 << 20

    run(scenario)


def test_direct_only_waits_for_a_direct_path_and_relays_no_data() -> None:
    async def scenario(a: Member, b: Member) -> None:
        for here, there in ((a, b), (b, a)):
            here.discovery.allow_relay(False)
            here.meet(there)
        fetching = asyncio.ensure_future(fetch(a, b, 1 << 20))
        await until(lambda: a.state(b) is not State.UNKNOWN)
        assert not fetching.done()
        for member in (a, b):
            member.discovery.set_endpoints([Endpoint(LOOP, member.engine.port4)])
        await fetching
        await until(lambda: a.state(b) is State.DIRECT and b.state(a) is State.DIRECT)
        for here, there in ((a, b), (b, a)):
            assert here.engine.peer_stats(there.private.public())["tx_relay_bytes"] == 0

    run(scenario)
