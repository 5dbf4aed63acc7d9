"""Two engines in two processes over loopback: what the data plane does, with no control server and no relay.

    python -m tests.bench.engine_pair [--mib 1024] [--family 4] [--requests 2000] [--loop asyncio]

Prints one JSON object: TCP payload rate of one stream in each direction (the sender is blocking code in a
thread, the receiver reads 1 MiB at a time), round trips of 100-byte messages (p50, p99), mean datagrams
per send and receive call, CPU seconds of each process. Rates are of payload, in Mbit/s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from meshnode.base.addr import Endpoint, parse_prefix
from meshnode.base.keys import NodePublic
from meshnode.engine.engine import PATH_DIRECT
from tests.e2e.engines import Side, start_side

BLOCK = 1 << 20


def recv_all(sock: socket.socket, size: int) -> float:
    """Read `size` bytes; seconds from the first byte to the last."""
    buffer = bytearray(BLOCK)
    got, started = 0, 0.0
    while got < size:
        count = sock.recv_into(buffer)
        if not count:
            raise SystemExit("the stream ended early")
        started = started or time.monotonic()
        got += count
    return time.monotonic() - started


def send_all(sock: socket.socket, size: int) -> None:
    block = memoryview(bytes(BLOCK))
    while size:
        size -= sock.send(block[: min(size, BLOCK)])


def blocking(sock: socket.socket) -> socket.socket:
    """A plain blocking socket over the same connection."""
    plain = socket.socket(fileno=sock.detach())
    plain.setblocking(True)
    return plain


async def in_thread(work: Any, *args: Any) -> Any:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def target() -> None:
        result = work(*args)
        loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=target, daemon=True).start()
    return await done


def echo(sock: socket.socket, count: int) -> None:
    for _ in range(count):
        data = sock.recv(100, socket.MSG_WAITALL)
        sock.sendall(data)


def ask(sock: socket.socket, count: int) -> list[float]:
    times = []
    message = bytes(100)
    for _ in range(count):
        started = time.perf_counter()
        sock.sendall(message)
        sock.recv(100, socket.MSG_WAITALL)
        times.append(time.perf_counter() - started)
    return times


def facts(side: Side) -> dict[str, Any]:
    numbers = side.engine.stats()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "datagrams_per_send": round(numbers["udp_tx_datagrams"] / max(1, numbers["udp_tx_calls"]), 1),
        "datagrams_per_receive": round(numbers["udp_rx_datagrams"] / max(1, numbers["udp_rx_buffers"]), 1),
        "bytes_per_app_write": numbers["app_bytes_out"] // max(1, numbers["app_writes"]),
        "bytes_per_app_read": numbers["app_bytes_in"] // max(1, numbers["app_reads"]),
        "retransmits": numbers["ip_tcp_retransmits"],
        "kernel_drops": numbers["udp_rx_kernel_drops"],
    }


def greet(side: Side) -> str:
    """What the other process must know."""
    return json.dumps({"key": side.key.raw.hex(), "port": side.engine.port4})


def know(side: Side, told: dict[str, Any], number: int) -> IPv4Address:
    """Make the other process a peer of this side."""
    key = NodePublic(bytes.fromhex(told["key"]))
    ip4, ip6 = IPv4Address(f"100.64.0.{number}"), IPv6Address(f"fd7a:115c:a1e0::{number}")
    side.engine.upsert_peer(key, [parse_prefix(str(ip4)), parse_prefix(str(ip6))])
    side.engine.set_path(key, Endpoint(IPv4Address("127.0.0.1"), told["port"]), 0, PATH_DIRECT)
    return ip4


async def serve(options: argparse.Namespace) -> None:
    side = await start_side(2)
    print(greet(side), flush=True)
    know(side, json.loads(sys.stdin.readline()), 1)
    listener = await side.engine.listen(None, 9000)
    print("listening", flush=True)
    size = options.mib << 20
    sock = blocking(await anext(listener))
    seconds = await in_thread(recv_all, sock, size)
    await in_thread(send_all, sock, size)
    await in_thread(echo, sock, options.requests)
    print(json.dumps({"seconds": seconds, "facts": facts(side)}), flush=True)
    sys.stdin.readline()
    await side.engine.aclose()


async def drive(options: argparse.Namespace, server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdin is not None and server.stdout is not None
    side = await start_side(1)
    know(side, json.loads(server.stdout.readline()), 2)
    server.stdin.write(greet(side) + "\n")
    server.stdin.flush()
    assert server.stdout.readline().strip() == "listening"
    target = IPv4Address("100.64.0.2") if options.family == 4 else IPv6Address("fd7a:115c:a1e0::2")
    size = options.mib << 20
    sock = blocking(await side.engine.connect(target, 9000))
    await in_thread(send_all, sock, size)
    back = await in_thread(recv_all, sock, size)
    times = sorted(await in_thread(ask, sock, options.requests))
    other = json.loads(server.stdout.readline())
    result = {
        "mib": options.mib,
        "family": options.family,
        "loop": options.loop,
        "there_mbit_s": round(size * 8 / other["seconds"] / 1e6),
        "back_mbit_s": round(size * 8 / back / 1e6),
        "round_trip_us_p50": round(times[len(times) // 2] * 1e6),
        "round_trip_us_p99": round(times[len(times) * 99 // 100] * 1e6),
        "client": facts(side),
        "server": other["facts"],
    }
    server.stdin.write("done\n")
    server.stdin.flush()
    await side.engine.aclose()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if options.serve:
            runner.run(serve(options))
            return
        command = [sys.executable, "-m", "tests.bench.engine_pair", *sys.argv[1:], "--serve"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                print(json.dumps(runner.run(drive(options, server)), indent=2))
            finally:
                if server.stdin is not None:
                    server.stdin.close()
                server.wait(10)


if __name__ == "__main__":
    main()
