"""One end of one measured stream, run inside a link's namespace by tests.bench.loss.

    loss_end.py kernel|ours take|give OWN_IP PEER_IP

`take` listens and counts what arrives, `give` connects and sends. Lines of JSON both ways: first, for
ours, {"key", "port"} out and the other end's in; "listening" of `take`, a line to the kernel's `give`
that it may connect; then "connected"; then {"at", "seconds"} or {"at",
"bytes"} in (`at` by the monotonic clock, which both ends share); then `take` answers with what it got
within the time, or with how long the bytes took, and `give` with what its side counted. A line ends it.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any

BLOCK = 1 << 18
PORT = 9000
SAMPLE_S = 0.5
TAILNET = {"give": 1, "take": 2}


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def hear() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(0)
    return dict(json.loads(line))


class Counter:
    """Reads a socket to its end in a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.bytes = 0
        self.ended_at = 0.0
        self.is_clean = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        buffer = bytearray(BLOCK)
        try:
            while count := self.sock.recv_into(buffer):
                self.bytes += count
            self.is_clean = True
        except OSError:
            pass
        self.ended_at = time.monotonic()


def take(sock: socket.socket, facts: Callable[[], dict[str, Any]]) -> None:
    counter = Counter(sock)
    say("connected")
    order = hear()
    if "bytes" in order:
        counter.thread.join(order["limit_s"])
        done = counter.is_clean and counter.bytes == order["bytes"]
        seconds = counter.ended_at - order["at"] if done else None
        say({"bytes": counter.bytes, "seconds": seconds, "facts": facts()})
        hear()
        return
    series = []
    for i in range(1, round(order["seconds"] / SAMPLE_S) + 1):
        time.sleep(max(0.0, order["at"] + i * SAMPLE_S - time.monotonic()))
        series.append(counter.bytes)
    say({"bytes": series[-1], "series": series, "facts": facts()})
    hear()


def give(sock: socket.socket, facts: Callable[[], dict[str, Any]]) -> None:
    say("connected")
    order = hear()
    block = memoryview(bytes(BLOCK))
    time.sleep(max(0.0, order["at"] - time.monotonic()))

    def pump() -> None:
        left = order.get("bytes", sys.maxsize)
        with contextlib.suppress(OSError):
            while left:
                left -= sock.send(block[: min(left, BLOCK)])
            sock.shutdown(socket.SHUT_WR)

    # A thread of its own: what does not get through in time must not keep the run from ending.
    threading.Thread(target=pump, daemon=True).start()
    if "seconds" in order:
        time.sleep(max(0.0, order["at"] + order["seconds"] - time.monotonic()))
    hear()
    say({"facts": facts()})
    hear()


def kernel_facts(sock: socket.socket) -> dict[str, Any]:
    """Parts of struct tcp_info (linux/tcp.h)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    words = struct.unpack_from("<24I", info, 8)
    names = {"rtt_us": 15, "ssthresh": 17, "cwnd": 18, "reordering": 20, "retransmits": 23}
    return {name: words[at] for name, at in names.items()}


def run_kernel(role: str, own: str, peer: str) -> None:
    if role == "take":
        with socket.create_server((own, PORT)) as listener:
            say("listening")
            sock, _ = listener.accept()
    else:
        hear()
        sock = socket.create_connection((peer, PORT))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    (take if role == "take" else give)(sock, lambda: kernel_facts(sock))


async def in_thread(work: Callable[..., None], *args: Any) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def target() -> None:
        try:
            work(*args)
        finally:
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=target, daemon=True).start()
    await done


async def run_ours(role: str, own: str, peer: str) -> None:
    from meshnode.base.addr import Endpoint, parse_prefix
    from meshnode.base.keys import NodePrivate, NodePublic
    from meshnode.engine.engine import PATH_DIRECT, Engine
    from tests.e2e.engines import filter_blob

    private = NodePrivate.generate(os.urandom)
    engine = await Engine.start(private, bind4=IPv4Address(own))
    mine, theirs = TAILNET[role], 3 - TAILNET[role]
    engine.set_addresses([IPv4Address(f"100.64.0.{mine}")])
    engine.set_filter(filter_blob())
    say({"key": private.public().raw.hex(), "port": engine.port4})
    told = hear()
    key = NodePublic(bytes.fromhex(told["key"]))
    engine.upsert_peer(key, [parse_prefix(f"100.64.0.{theirs}")])
    engine.set_path(key, Endpoint(IPv4Address(peer), told["port"]), 0, PATH_DIRECT)
    if role == "take":
        listener = await engine.listen(None, PORT)
        say("listening")
        sock: socket.socket = await anext(listener)
    else:
        sock = await engine.connect(IPv4Address(f"100.64.0.{theirs}"), PORT)
    plain = socket.socket(fileno=sock.detach())
    plain.setblocking(True)
    await in_thread(take if role == "take" else give, plain, lambda: our_facts(engine.stats()))
    engine.stop()


def our_facts(numbers: dict[str, int]) -> dict[str, Any]:
    """What moved among the engine's counters."""
    return {name: value for name, value in numbers.items() if value and name.startswith(("ip_tcp", "udp", "wg"))}


RUNNERS: dict[str, Callable[[str, str, str], Awaitable[None] | None]] = {"kernel": run_kernel, "ours": run_ours}


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # as the box: what else this machine does must not decide between the kernel and a process
    kind, role, own, peer = sys.argv[1:]
    waiting = RUNNERS[kind](role, own, peer)
    if waiting is not None:
        asyncio.run(waiting)  # type: ignore[arg-type]
