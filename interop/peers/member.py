"""A program that embeds meshnode by its public API and does what it is told: connections, datagrams, echoes.

Run as a program in a host: `python -m interop.peers.member FILE`, FILE being the JSON of `Joining`. In its network
it serves: TCP 7 echoes, TCP 80 greets over HTTP, UDP 53 answers in capitals. Each line on standard input is a command,
each answer one line on standard output:

    ask HOST PORT TEXT      one UDP question; the answer's text and who sent it
    ping HOST [BYTES]       an ICMP echo inside the network
    get HOST PORT PATH      an HTTP GET; status, length and SHA-256 of the body
    stat NAME…              counters of the engine
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interop.lab import Host, Process

ROOT = Path(__file__).resolve().parents[2]
ECHO_PORT, HTTP_PORT, UDP_PORT = 7, 80, 53
ASK_S = 3.0


@dataclass(frozen=True)
class Joining:
    """How the program joins its network."""

    name: str
    control_url: str
    auth_key: str


class Member:
    """The running program and its two pipes."""

    def __init__(self, host: Host, joining: Joining) -> None:
        settings, fifo = host.folder / f"{joining.name}.json", host.folder / f"{joining.name}.in"
        settings.touch(mode=0o600)
        settings.write_text(json.dumps(asdict(joining)))
        subprocess.run(["mkfifo", str(fifo)], check=True)
        import meshnode

        # The installed package first: the one in the working directory may not be built.
        search = f"{Path(meshnode.__file__).parents[1]}:{ROOT}"
        argv = ["sh", "-c", f"exec {sys.executable} -P -m interop.peers.member {settings} <>{fifo}"]
        self.host = host
        self.process: Process = host.start(f"member-{joining.name}", argv, PYTHONPATH=search)
        self._fifo = fifo
        self._answers = 0
        _, *self.addresses = self._next_line("ready", 20.0).split()

    def _next_line(self, what: str, timeout_s: float) -> str:
        def line() -> str:
            lines = self.process.out().splitlines(keepends=True)
            found = lines[self._answers] if len(lines) > self._answers else ""
            return found.strip() if found.endswith("\n") else ""

        answer = self.process.wait_until(line, timeout_s, f"the member answers: {what}")
        self._answers += 1
        return answer

    def tell(self, *words: str, timeout_s: float = 20.0) -> str:
        """Give a command and return its answer."""
        with self._fifo.open("w") as pipe:
            pipe.write(" ".join(words) + "\n")
        return self._next_line(" ".join(words), timeout_s)


async def _echo(reader: asyncio.StreamReader, writer: Any) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _greet(reader: asyncio.StreamReader, writer: Any) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = f"hello {writer.get_extra_info('peername')[0]}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def _answer(endpoint: Any) -> None:
    async for datagram in endpoint:
        endpoint.reply(datagram, datagram.data.upper())


async def _ask(network: Any, host: str, port: str, text: str) -> str:
    async with asyncio.timeout(ASK_S), await network.open_datagram(host, int(port)) as endpoint:
        endpoint.send(text.encode())
        got = await endpoint.recv()
        return f"{got.data.decode()} from {got.source.ip}"


async def _ping(network: Any, host: str, size: str = "56") -> str:
    pong = await network.ping(host, kind="icmp", size=int(size), timeout=ASK_S)
    return f"pong from {pong.ip} in {pong.latency_s:.6f}"


async def _get(network: Any, host: str, port: str, path: str) -> str:
    reader, writer = await network.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    body, size = hashlib.sha256(), 0
    while data := await reader.read(1 << 18):
        body.update(data)
        size += len(data)
    writer.close()
    return f"{head.split()[1].decode()} {size} {body.hexdigest()}"


async def _stat(network: Any, *names: str) -> str:
    stats = network._inside().engine.stats()
    return " ".join(str(stats[name]) for name in names)


COMMANDS = {"ask": _ask, "ping": _ping, "get": _get, "stat": _stat}


@contextlib.asynccontextmanager
async def _join(settings: dict[str, Any]) -> AsyncIterator[Any]:
    from meshnode import Node

    joining = Joining(**settings)
    node = Node(
        control_url=joining.control_url, auth_key=joining.auth_key, hostname=joining.name, state_dir="mem:"
    )  # fmt: skip
    async with node:
        await node.ready(timeout=15)
        yield node


async def _serve(settings: dict[str, Any]) -> None:
    async with _join(settings) as network, asyncio.TaskGroup() as group:
        await network.start_server(_echo, ECHO_PORT)
        await network.start_server(_greet, HTTP_PORT)
        answering = group.create_task(_answer(await network.listen_packet(UDP_PORT)))
        print("ready", *network.addresses, flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            verb, *words = line.split()
            try:
                answer = await COMMANDS[verb](network, *words)
            except OSError as error:
                answer = f"{type(error).__name__} {error}"
            print(answer, flush=True)
        answering.cancel()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(Path(sys.argv[1]).read_text())))
