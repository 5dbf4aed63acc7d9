"""Ten thousand idle connections and a thousand active ones between two engines in two processes, over loopback.

    python -m tests.bench.many [--idle 10000] [--active 1000] [--slow 20] [--seconds 4] [--rounds 3]

Prints one JSON object: what an idle connection costs each node (resident memory of the process with its Python
object, without it, and kernel memory), connects per second, and for each round the bytes that every active
connection moved (least, median, most) and their sum: alone, and beside `--slow` connections whose reader takes
nothing at all. Every active connection writes 64 KiB whenever it may; both ends are protocols on uvloop.

A connection takes two descriptors in each process. Where the limit of open files does not allow that, the
applications' ends of idle ones are handed to a shelf, a process that only holds them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from meshnode.base.addr import parse_prefix
from meshnode.base.keys import NodePublic
from meshnode.engine.engine import PATH_DIRECT
from tests.e2e.engines import Side, start_side

PORT = 9000
CHUNK = bytes(64 << 10)
SPARE = 400
"""Descriptors for everything else."""
AT_ONCE = 250
SHELF = """
import socket, sys
s, kept = socket.socket(fileno=int(sys.argv[1])), []
while (got := socket.recv_fds(s, 1, 250))[0]:
    kept += got[1]
    s.send(b"k")
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def kernel_kib() -> int:
    """What the whole machine's kernel holds in slabs and socket buffers."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(facts["Slab"].split()[0])


def rss_kib() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1])


class Other:
    """The accepting process: one command, one answer."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.bench.many", "--serve"]
        self.popen = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.said = self.read()

    def read(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise SystemExit("the accepting process ended")
        return dict(json.loads(line))

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"do": do, **more}) + "\n")
        return self.read()

    def close(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        self.popen.wait(30)


class Shelf:
    """A process that holds descriptors for us."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        argv = [sys.executable, "-c", SHELF, str(theirs.fileno())]
        self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        theirs.close()

    def put(self, socks: list[Any]) -> None:
        for at in range(0, len(socks), AT_ONCE):
            part = socks[at : at + AT_ONCE]
            socket.send_fds(self.sock, [b"x"], [s.fileno() for s in part])
            self.sock.recv(1)
            for sock in part:
                sock.close()

    def close(self) -> None:
        self.sock.close()
        self.process.wait(10)


# --- active connections ---


class Pump(asyncio.Protocol):
    """Writes whenever it may, while it should."""

    def __init__(self) -> None:
        self.runs = self.may = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.may = True
        transport.set_write_buffer_limits(high=1)

    def start(self) -> None:
        self.runs = True
        self.push()

    def push(self) -> None:
        while self.runs and self.may:
            self.transport.write(CHUNK)

    def pause_writing(self) -> None:
        self.may = False

    def resume_writing(self) -> None:
        self.may = True
        asyncio.get_running_loop().call_soon(self.push)


class Count(asyncio.BufferedProtocol):
    """Counts what comes, unless it is to be the slow one."""

    buffer = memoryview(bytearray(1 << 20))

    def __init__(self) -> None:
        self.total = 0
        self.is_slow = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        if not self.total and self.buffer[:1] == b"s":
            self.is_slow = True
            self.transport.pause_reading()
        self.total += count


# --- the two processes ---


class Crowd:
    """One process's end of all connections."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.idle: list[Any] = []
        self.active: list[Any] = []
        self.slow: list[Any] = []
        self.shelf: Shelf | None = None

    def shelve(self) -> None:
        """Everything idle leaves this process; nothing to do where the limit is high."""
        self.shelf = self.shelf or Shelf()
        self.shelf.put(self.idle)
        self.idle.clear()

    def facts(self) -> dict[str, Any]:
        numbers = self.side.engine.stats()
        names = ("flows", "ring_bytes", "tcp_conns", "flows_refused", "accept_refused", "ip_tcp_retransmits")
        return {"rss_kib": rss_kib(), **{n: numbers[n] for n in names}}

    def know(self, told: dict[str, Any], number: int) -> IPv4Address:
        ip = IPv4Address(f"100.64.0.{number}")
        key = NodePublic(bytes.fromhex(told["key"]))
        self.side.engine.upsert_peer(key, [parse_prefix(str(ip))])
        endpoint = self.side.underlay
        self.side.engine.set_path(key, type(endpoint)(endpoint.ip, told["port"]), 0, PATH_DIRECT)
        return ip

    def greeting(self) -> dict[str, Any]:
        return {"key": self.side.key.raw.hex(), "port": self.side.engine.port4}


async def serve() -> None:
    """The accepting process: obeys lines on standard input."""
    crowd = Crowd(await start_side(2))
    listener = await crowd.side.engine.listen(None, PORT, backlog=4096)
    counts: list[Count] = []
    wants_idle = True
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        async for sock in listener:
            if wants_idle:
                crowd.idle.append(sock)
            else:
                _, count = await loop.connect_accepted_socket(Count, sock)
                counts.append(count)

    accepting = asyncio.create_task(accept())
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"ready": "", **crowd.greeting()}), flush=True)
    while line := await reader.readline():
        command = json.loads(line)
        answer: dict[str, Any] = {}
        match command["do"]:
            case "know":
                crowd.know(command["peer"], 1)
            case "shelve":
                while len(crowd.idle) < command["count"]:
                    await asyncio.sleep(0.01)
                crowd.shelve()
            case "busy":
                wants_idle = False
            case "facts":
                answer = crowd.facts()
            case "totals":
                answer = {"totals": [c.total for c in counts if not c.is_slow], "slow": sum(c.is_slow for c in counts)}
        print(json.dumps(answer), flush=True)
    accepting.cancel()
    started = time.monotonic()
    await crowd.side.engine.aclose()
    say(f"the accepting engine closed in {time.monotonic() - started:.2f} s")
    if crowd.shelf:
        crowd.shelf.close()


async def connect_many(crowd: Crowd, target: IPv4Address, count: int) -> list[Any]:
    socks: list[Any] = []
    while len(socks) < count:
        batch = min(AT_ONCE, count - len(socks))
        socks += await asyncio.gather(*(crowd.side.engine.connect(target, PORT) for _ in range(batch)))
    return socks


async def open_idle(crowd: Crowd, other: Other, target: IPv4Address, count: int) -> dict[str, Any]:
    """All idle connections, in steps that fit into this process; returns what they cost."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # Each step's sockets are held here until it is measured; behind it only the engine's ends stay.
    step = count if 2 * count + SPARE < limit else max(AT_ONCE, (limit - SPARE - count) // 2)
    seconds, with_objects, opened = 0.0, [], 0
    before = {"us": crowd.facts(), "them": other.ask("facts"), "kernel": kernel_kib()}
    first = before
    while opened < count:
        number = min(step, count - opened)
        started = time.monotonic()
        crowd.idle = await connect_many(crowd, target, number)
        seconds += time.monotonic() - started
        opened += number
        if not with_objects:
            now = crowd.facts()["rss_kib"], other.ask("facts")["rss_kib"]
            with_objects = [(now[0] - first["us"]["rss_kib"]) / number, (now[1] - first["them"]["rss_kib"]) / number]
        if step < count:
            other.ask("shelve", count=number)
            crowd.shelve()
    after = {"us": crowd.facts(), "them": other.ask("facts"), "kernel": kernel_kib()}
    grown = [(after[w]["rss_kib"] - before[w]["rss_kib"]) / count for w in ("us", "them")]  # type: ignore[index]
    kernel = (int(after["kernel"]) - int(before["kernel"])) / count / 2  # type: ignore[call-overload]
    return {
        "connections": count,
        "per_s": round(count / seconds),
        "kib_each_process_with_socket_objects": [round(x, 2) for x in with_objects],
        "kib_each_process_all": [round(x, 2) for x in grown],
        "kib_each_kernel_slab_per_node": round(kernel, 2),
        "objects_held": step >= count,
        "facts": after,
    }


async def make_pumps(crowd: Crowd, target: IPv4Address, count: int, kind: bytes) -> list[Pump]:
    loop = asyncio.get_running_loop()
    pumps = []
    for sock in await connect_many(crowd, target, count):
        _, pump = await loop.create_connection(Pump, sock=sock)
        pump.transport.write(kind)
        pumps.append(pump)
    return pumps


async def settled(other: Other, active: int, slow: int) -> None:
    """Until the other end has read of every connection which kind it is; 30 s at most."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = other.ask("totals")
        if answer["slow"] == slow and len(answer["totals"]) == active and min(answer["totals"]) > 0:
            return
        await asyncio.sleep(0.02)
    raise SystemExit(f"not all of {active} active and {slow} slow connections were told of within 30 s")


async def one_phase(other: Other, pumps: list[Pump], seconds: float) -> dict[str, Any]:
    before = other.ask("totals")["totals"]
    for pump in pumps:
        pump.start()
    await asyncio.sleep(seconds)  # what is measured
    after = other.ask("totals")["totals"]
    for pump in pumps:
        pump.runs = False
    moved = sorted(b - a for a, b in zip(before, after, strict=True))
    total = sum(moved)
    result = {
        "least_kib": moved[0] >> 10,
        "tenth_kib": moved[len(moved) // 10] >> 10,
        "median_kib": moved[len(moved) // 2] >> 10,
        "most_kib": moved[-1] >> 10,
        "gbit_s": round(total * 8 / seconds / 1e9, 3),
    }
    say(str(result))
    await asyncio.sleep(0.3)  # lets the last chunks of this phase arrive before the next one counts
    return result


async def drive(options: argparse.Namespace) -> dict[str, Any]:
    other = Other()
    crowd = Crowd(await start_side(1))
    target = crowd.know(other.said, 2)
    other.ask("know", peer=crowd.greeting())
    (await crowd.side.engine.connect(target, PORT)).close()
    result: dict[str, Any] = {"idle": await open_idle(crowd, other, target, options.idle)}
    say(str(result["idle"]))
    other.ask("busy")
    active = await make_pumps(crowd, target, options.active, b"a")
    await settled(other, options.active, 0)
    result["alone"] = [await one_phase(other, active, options.seconds)]
    slow = await make_pumps(crowd, target, options.slow, b"s")
    await settled(other, options.active, options.slow)
    for pump in slow:
        pump.start()
    result["beside slow readers"] = []
    for _ in range(options.rounds):
        result["beside slow readers"].append(await one_phase(other, active, options.seconds))
    for pump in slow:
        pump.transport.abort()
    for _ in range(options.rounds - 1):
        result["alone"].append(await one_phase(other, active, options.seconds))
    medians = [statistics.median(p["gbit_s"] for p in result[k]) for k in ("beside slow readers", "alone")]
    result["slow_reader_ratio"] = round(medians[0] / medians[1], 3)
    result["facts"] = {"us": crowd.facts(), "them": other.ask("facts")}
    started = time.monotonic()
    await crowd.side.engine.aclose()
    result["closed_s"] = round(time.monotonic() - started, 3)
    other.close()
    if crowd.shelf:
        crowd.shelf.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--idle", type=int, default=10000)
    parser.add_argument("--active", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve:
            runner.run(serve())
        else:
            print(json.dumps(runner.run(drive(options)), indent=1))


if __name__ == "__main__":
    main()
