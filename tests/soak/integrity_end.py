"""One engine of tests.soak.integrity: opens or serves connections that carry position-tagged bytes, and checks them.

    integrity_end.py open|serve OWN_IP PEER_IP SEED PARALLEL

A connection begins with a head of 64 bytes from who opened it: how many bytes go each way, under which
seeds, and how it is to end. Each direction's reader checks every byte, and that a clean end comes
exactly behind the last one promised. Lines of JSON: {"key", "port"} out and the peer's in, "ready"; then
every line in ("tell", "stop") is answered with the counts so far and what each open connection has said
and heard; after "stop" nothing new is opened.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from meshnode.base.addr import Endpoint, parse_prefix
from meshnode.base.errors import DialError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.engine.engine import PATH_DIRECT, Engine
from meshnode.engine.flow import TunnelSocket
from tests.bench.link import ROOT
from tests.e2e.engines import filter_blob

PORT = 9000
BLOCK = 1 << 17
HEAD = struct.Struct("<8sQQQQB23x")
MAGIC = b"meshsoak"
ENDS = ("together", "after", "opener cuts", "server cuts")
"""How a connection ends: both sides half-close once they have said all, at the same time or the server
after the opener; or one side closes in the middle with bytes unread, which must look like a reset."""
PATIENCE_S = 1200.0

tags = ctypes.CDLL(str(ROOT / "native/tests/build/plain/libtags.so"))
tags.tags_fill.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint64]
tags.tags_check.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint64]
tags.tags_check.restype = ctypes.c_size_t


@dataclass(eq=False)
class Progress:
    """How far one open connection is."""

    end: str
    out: int
    back: int
    said: int = 0
    heard: int = 0
    since: float = field(default_factory=time.monotonic)

    def told(self) -> str:
        return (
            f"{self.end}: said {self.said} of {self.out}, heard {self.heard} of {self.back} "
            f"in {time.monotonic() - self.since:.0f} s"
        )


class Soak:
    """What one process has seen."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.open: set[Progress] = set()

    def told(self) -> dict[str, Any]:
        still = [progress.told() for progress in self.open]
        return {"counts": dict(self.counts), "violations": self.violations[:20], "open": still}

    def violation(self, what: str) -> None:
        self.violations.append(what)
        print(what, file=sys.stderr, flush=True)

    async def write(self, sock: TunnelSocket, size: int, seed: int, progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        block = (ctypes.c_uint8 * BLOCK)()
        view = memoryview(block).cast("B")
        at = 0
        while at < size:
            count = min(BLOCK, size - at)
            tags.tags_fill(block, count, at, seed)
            await loop.sock_sendall(sock, view[:count])
            at += count
            progress.said = at
        self.counts["bytes written"] += size

    async def read(self, sock: TunnelSocket, size: int, seed: int, what: str, progress: Progress) -> None:
        """Read to the end; OSError passes."""
        loop = asyncio.get_running_loop()
        block = (ctypes.c_uint8 * BLOCK)()
        view = memoryview(block).cast("B")
        at = 0
        while count := await loop.sock_recv_into(sock, view):
            right = tags.tags_check(block, count, at, seed)
            if right != count:
                got = bytes(view[right : right + 16]).hex()
                self.violation(f"{what}: byte {at + right} of {size} is wrong (seed {seed:#x}, there: {got})")
                raise ConnectionAbortedError("wrong bytes")
            at += count
            progress.heard = at
            self.counts["bytes checked"] += count
            if at > size:
                break
        if at != size:
            self.violation(f"{what}: a clean end after {at} bytes of {size}")
        self.counts["clean ends"] += 1

    async def cut(self, sock: TunnelSocket, size: int, seed: int, progress: Progress) -> None:
        """Write a part, wait until something unread has come, close: a reset."""
        await self.write(sock, seed % (size + 1), seed, progress)
        await readable(sock)
        sock.close()
        self.counts["cut by us"] += 1

    async def carry(self, sock: TunnelSocket, opener: bool, head: tuple[Any, ...]) -> None:
        _, up, _, down, _, end = head
        progress = Progress(ENDS[end], *((up, down) if opener else (down, up)))
        self.open.add(progress)
        try:
            await self.carry_on(sock, opener, head, progress)
        finally:
            self.open.discard(progress)

    async def carry_on(self, sock: TunnelSocket, opener: bool, head: tuple[Any, ...], progress: Progress) -> None:
        _, up, up_seed, down, down_seed, end = head
        out, out_seed, back, back_seed = (up, up_seed, down, down_seed) if opener else (down, down_seed, up, up_seed)
        what = f"{'server to opener' if opener else 'opener to server'}, {ENDS[end]}"
        if end == (2 if opener else 3):
            await self.cut(sock, out, out_seed, progress)
            return

        async def say() -> None:
            if end == 1 and not opener:
                await heard.wait()
            await self.write(sock, out, out_seed, progress)
            sock.shutdown(socket.SHUT_WR)

        async def hear() -> None:
            await self.read(sock, back, back_seed, what, progress)
            heard.set()

        heard = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(say())
                group.create_task(hear())
            self.counts["connections ended cleanly"] += 1
        except* OSError as errors:
            names = {type(error).__name__ for error in errors.exceptions}
            self.counts[f"{'cut by the peer' if end >= 2 else 'ended unplanned'}: {', '.join(sorted(names))}"] += 1


async def readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(sock.fileno(), seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(sock.fileno())


def some_size(chance: random.Random) -> int:
    """Nearly as often a few bytes as many megabytes."""
    return chance.randrange(1 << chance.choice((4, 10, 16, 20, 23, 25, 26)))


async def opener(soak: Soak, engine: Engine, peer: IPv4Address, chance: random.Random, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        end = chance.choices(range(4), (4, 4, 1, 1))[0]
        up, down = some_size(chance), some_size(chance)
        if end >= 2:
            up, down = up + 300000, down + 300000  # so that there is something to cut
        head = (MAGIC, up, chance.getrandbits(64), down, chance.getrandbits(64), end)
        try:
            sock = await engine.connect(peer, PORT)
        except DialError as error:
            soak.counts[f"connect: {type(error).__name__}"] += 1
            continue
        with sock:
            try:
                await loop.sock_sendall(sock, HEAD.pack(*head))
                async with asyncio.timeout(PATIENCE_S):
                    await soak.carry(sock, True, head)
            except OSError as error:
                kind = "cut by the peer" if end >= 2 else "ended unplanned"
                soak.counts[f"{kind}: {type(error).__name__}"] += 1


async def serve_one(soak: Soak, sock: TunnelSocket) -> None:
    loop = asyncio.get_running_loop()
    with sock:
        try:
            data = b""
            while len(data) < HEAD.size:
                more = await loop.sock_recv(sock, HEAD.size - len(data))
                if not more:
                    soak.violation(f"a clean end within the head, after {len(data)} bytes")
                    return
                data += more
            head = HEAD.unpack(data)
            if head[0] != MAGIC or head[5] >= len(ENDS):
                soak.violation(f"a wrong head: {data.hex()}")
                return
            async with asyncio.timeout(PATIENCE_S):
                await soak.carry(sock, False, head)
        except OSError as error:
            soak.counts[f"server: {type(error).__name__}"] += 1


async def serve(soak: Soak, engine: Engine) -> None:
    listener = await engine.listen(None, PORT)
    async with asyncio.TaskGroup() as group:
        async for sock in listener:
            group.create_task(serve_one(soak, sock))


async def hear_line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def main(role: str, own: str, peer: str, seed: str, parallel: str) -> None:
    soak = Soak()
    private = NodePrivate.generate(os.urandom)
    engine = await Engine.start(private, bind4=IPv4Address(own))
    mine = 1 if role == "open" else 2
    engine.set_addresses([IPv4Address(f"100.64.0.{mine}")])
    engine.set_filter(filter_blob())
    print(json.dumps({"key": private.public().raw.hex(), "port": engine.port4}), flush=True)
    told = json.loads(await hear_line())
    key = NodePublic(bytes.fromhex(told["key"]))
    target = IPv4Address(f"100.64.0.{3 - mine}")
    engine.upsert_peer(key, [parse_prefix(str(target))])
    engine.set_path(key, Endpoint(IPv4Address(peer), told["port"]), 0, PATH_DIRECT)
    stop = asyncio.Event()
    if role == "open":
        work = [opener(soak, engine, target, random.Random(f"{seed} {i}"), stop) for i in range(int(parallel))]
    else:
        work = [serve(soak, engine)]
    tasks = [asyncio.ensure_future(one) for one in work]
    print('"ready"', flush=True)
    while line := await hear_line():
        if json.loads(line) == "stop":
            stop.set()
        dead = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for error in filter(None, dead):
            soak.violation(f"a task died: {error!r}")
        numbers = engine.stats()
        print(json.dumps({**soak.told(), "stats": {k: v for k, v in numbers.items() if v}}), flush=True)
    engine.stop()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
