"""One end of the tunnel bench in Python, run inside a lab namespace by tunnel.py.

    ends.py mesh URL NAME [--port 9000]            a node of ours: node.listen, node.connect; key in MESHNODE_KEY
    ends.py kernel ADDRESS [--socks HOST:PORT]     kernel sockets: what runs over a TUN or through a SOCKS5 door

Both serve one port and drive the other end's. Commands come as JSON lines on standard input, answers leave
as JSON lines on standard output:

upload  streams, seconds   send a fixed block for that long on each stream, end each, and ask the other end what
                           came: bytes, first and last moment, samples of the block that did not match
echo    streams, seconds   one byte there and back, one at a time on each connection: count, p50, p99 in µs
churn   seconds            connect + one echoed byte + close, one after the other: count, seconds, p50, p99
direct                     whether the path to the peer is direct (mesh only)
stats                      the engine's counters (mesh only)

How it is written is what a user of the public API would write who cares for speed: uvloop, the serving side
as protocols (BufferedProtocol with 1 MiB for bulk), bulk senders and the single echo as blocking sockets in
a thread, 64 echoes as protocols.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import functools
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

HEADER = 16
REPORT = 32
BLOCK = 1 << 20
SAMPLE = 64
END = b"\0"
"""Ends an upload where a block would begin; blocks begin with another byte. (A half-close would be nicer, but
tailscaled's SOCKS5 door takes it for the end of both directions.)"""
DIAL_S = 20.0


@functools.cache
def the_block() -> bytes:
    """The same bytes as the Go end makes: a receiver checks samples of them against their position.

    Made when first needed: it is no part of an idle node.
    """
    x, out = 1, bytearray(BLOCK)
    for i in range(BLOCK):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = x >> 24
    return bytes(out) + bytes(out[:SAMPLE])


def header(kind: str) -> bytes:
    return kind.encode().ljust(HEADER, b"\0")


# --- the serving end ---


class Sink(asyncio.BufferedProtocol):
    """Counts an upload and answers what came."""

    buffer = memoryview(bytearray(BLOCK))
    """One for all: what was read is judged before the loop goes on."""

    def __init__(self, transport: Any, early: bytes) -> None:
        self.transport = transport
        self.total = self.first = self.last = self.wrong = 0
        if early:
            self.buffer[: len(early)] = early
            self.buffer_updated(len(early))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        self.last = time.time_ns()
        self.first = self.first or self.last
        at = self.total % BLOCK
        sample = min(count, SAMPLE)
        self.total += count
        if (self.total - 1) % BLOCK == 0 and self.buffer[count - 1] == END[0]:
            numbers = (self.total, self.first, self.last, self.wrong)
            self.transport.write(b"".join(n.to_bytes(8, "big") for n in numbers))
        elif self.buffer[:sample] != the_block()[at : at + sample]:
            self.wrong += 1


class Greeter(asyncio.Protocol):
    """Reads the header, then echoes or becomes a Sink."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.head = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if len(self.head) == HEADER:
            self.transport.write(data)
            return
        data = self.head + data
        self.head, rest = data[:HEADER], data[HEADER:]
        if self.head.startswith(b"U"):
            self.transport.set_protocol(Sink(self.transport, rest))
        elif rest and len(self.head) == HEADER:
            self.transport.write(rest)


# --- the driving end ---

Times = array.array  # of doubles: a list of as many floats would show in the memory that is measured
Dial = Callable[[str, int], Awaitable[Any]]
"""A connected socket to (address, port)."""


def new_times() -> Times:
    return array.array("d")


def plain(sock: Any) -> Any:
    """The same connection, blocking, for use in a thread."""
    sock.settimeout(DIAL_S)
    return sock


def exactly(sock: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError(f"closed after {len(data)} of {count} bytes")
        data += more
    return data


async def in_threads(work: list[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread of its own; the first error is raised."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = []

    def settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run(one: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        value, error = None, None
        try:
            value = one()
        except BaseException as caught:
            error = caught
        loop.call_soon_threadsafe(settle, future, value, error)

    for one in work:
        future: asyncio.Future[Any] = loop.create_future()
        futures.append(future)
        threading.Thread(target=run, args=(one, future), daemon=True).start()
    return list(await asyncio.gather(*futures))


def upload_one(sock: Any, until: float) -> list[int]:
    """[sent, received, first ns, last ns, wrong samples]"""
    with plain(sock):
        sock.sendall(header("U"))
        view, sent = memoryview(the_block())[:BLOCK], 0
        while time.monotonic() < until:
            sock.sendall(view)
            sent += BLOCK
        sent += len(END)
        sock.sendall(END)
        report = exactly(sock, REPORT)
    return [sent, *(int.from_bytes(report[i : i + 8], "big") for i in range(0, REPORT, 8))]


def echo_one(sock: Any, until: float) -> Times:
    times = new_times()
    with plain(sock):
        sock.sendall(header("E"))
        while True:
            started = time.perf_counter()
            if time.monotonic() > until:
                return times[1:]
            sock.sendall(b"\x07")
            if not sock.recv(1):
                raise ConnectionError("the echo ended")
            times.append((time.perf_counter() - started) * 1e6)


class Asker(asyncio.Protocol):
    """One byte out, one back, until time is up."""

    def __init__(self, until: float, times: Times) -> None:
        self.until = until
        self.times = times
        self.started = 0.0
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(header("E"))
        self.ask()

    def ask(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(b"\x07")

    def data_received(self, data: bytes) -> None:
        self.times.append((time.perf_counter() - self.started) * 1e6)
        if time.monotonic() < self.until:
            self.ask()
        else:
            self.done.set_result(True)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(False)


def percentiles(given: Times) -> dict[str, Any]:
    if not given:
        return {"count": 0}
    times = sorted(given)
    return {"count": len(times), "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


class Driver:
    """Runs the commands over `dial`."""

    def __init__(self, dial: Dial) -> None:
        self.dial = dial

    async def run(self, command: dict[str, Any]) -> dict[str, Any]:
        do = getattr(self, f"do_{command['do']}", None)
        if do is None:
            return {"error": f"no command {command['do']}"}
        return dict(await do(command))

    async def dial_all(self, command: dict[str, Any]) -> list[Any]:
        return [await self.dial(command["peer"], command["port"]) for _ in range(command["streams"])]

    async def do_upload(self, command: dict[str, Any]) -> dict[str, Any]:
        socks = await self.dial_all(command)
        until = time.monotonic() + command["seconds"]
        return {"reports": await in_threads([lambda s=s: upload_one(s, until) for s in socks])}  # type: ignore[misc]

    async def do_echo(self, command: dict[str, Any]) -> dict[str, Any]:
        socks = await self.dial_all(command)
        until = time.monotonic() + command["seconds"]
        if len(socks) == 1:
            (times,) = await in_threads([lambda: echo_one(socks[0], until)])
            return {**percentiles(times), "failures": 0}
        loop = asyncio.get_running_loop()
        times, askers = new_times(), []
        for sock in socks:
            sock.setblocking(False)
            _, asker = await loop.create_connection(lambda: Asker(until, times), sock=sock)
            askers.append(asker)
        ended = await asyncio.wait_for(asyncio.gather(*(a.done for a in askers)), command["seconds"] + DIAL_S)
        return {**percentiles(times), "failures": ended.count(False)}

    async def do_churn(self, command: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        times, failures, began = new_times(), 0, time.monotonic()
        hello = header("E") + b"\x07"
        while time.monotonic() - began < command["seconds"]:
            started = time.perf_counter()
            try:
                sock = await self.dial(command["peer"], command["port"])
                with contextlib.closing(sock):
                    sock.setblocking(False)
                    await loop.sock_sendall(sock, hello)
                    if await loop.sock_recv(sock, 1) != b"\x07":
                        raise ConnectionError("the echo ended")
            except OSError:
                failures += 1
                continue
            times.append((time.perf_counter() - started) * 1e6)
        return {**percentiles(times), "failures": failures, "seconds": time.monotonic() - began}


class MeshDriver(Driver):
    """Our node's end."""

    def __init__(self, node: Any) -> None:
        super().__init__(lambda peer, port: node.connect(peer, port, timeout=DIAL_S))
        self.node = node

    async def do_direct(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            pong = await self.node.ping(command["peer"])
        except OSError as error:
            return {"direct": False, "by": str(error)}
        return {"direct": pong.endpoint is not None, "by": str(pong.endpoint)}

    async def do_stats(self, command: dict[str, Any]) -> dict[str, Any]:
        return {"stats": self.node._house.engine.stats()}


# --- the two kinds ---


async def obey(driver: Driver, ready: str) -> None:
    """Answer commands until standard input ends."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    print(json.dumps({"ready": ready}), flush=True)
    while line := await lines.get():
        try:
            answer = await driver.run(json.loads(line))
        except (OSError, TimeoutError, RuntimeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


async def serve_mesh(options: argparse.Namespace) -> None:
    from meshnode import Node

    key = os.environ["MESHNODE_KEY"]
    node = Node(control_url=options.where, auth_key=key, hostname=options.name, state_dir="mem:", ephemeral=True)
    async with node:
        await node.ready(timeout=20)
        listener = await node.listen(options.port)
        accepting = asyncio.create_task(accept_mesh(listener))
        await obey(MeshDriver(node), str(node.addresses[0]))
        accepting.cancel()


async def accept_mesh(listener: Any) -> None:
    loop = asyncio.get_running_loop()
    async for sock in listener:
        await loop.connect_accepted_socket(Greeter, sock)


async def serve_kernel(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Greeter, options.where, options.port, backlog=1024)

    async def direct(peer: str, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        await loop.sock_connect(sock, (peer, port))
        return sock

    async def through_socks(peer: str, port: int) -> socket.socket:
        host, _, door = options.socks.rpartition(":")
        sock = await direct(host, int(door))
        await loop.sock_sendall(sock, b"\x05\x01\x00")
        await exactly_on(sock, 2)
        request = b"\x05\x01\x00\x01" + socket.inet_aton(peer) + port.to_bytes(2, "big")
        await loop.sock_sendall(sock, request)
        answer = await exactly_on(sock, 10)
        if answer[1]:
            sock.close()
            raise ConnectionError(f"SOCKS5 answered {answer[1]}")
        return sock

    async def exactly_on(sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await loop.sock_recv(sock, count - len(data))
            if not more:
                raise ConnectionError("the SOCKS5 door closed")
            data += more
        return data

    async with server:
        await obey(Driver(through_socks if options.socks else direct), options.where)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("mesh", "kernel"))
    parser.add_argument("where", help="control URL, or the address to bind")
    parser.add_argument("name", nargs="?", default=f"end-{random.randrange(1 << 16):x}")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--socks", default="")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve_mesh(options) if options.kind == "mesh" else serve_kernel(options))


if __name__ == "__main__":
    main()
