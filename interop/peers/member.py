"""A program that embeds meshnode by its public API and does what it is told: connections, datagrams, echoes.

Run as a program in a host: `python -m interop.peers.member FILE`, FILE being the JSON of `Joining`: a tailnet, plain
WireGuard networks, or both. In each of them it serves: TCP 7 echoes, TCP 80 greets over HTTP, UDP 53 answers in
capitals. Each line on standard input is a number, a network's name and a command; they run side by side, and each
answer is one line on standard output that begins with the number:

    ask HOST PORT TEXT      one UDP question; the answer's text and who sent it
    ping HOST [BYTES]       an ICMP echo inside the network
    get HOST PORT PATH      an HTTP GET; status, length and SHA-256 of the body
    stat NAME…              counters of the engine
    status                  of a plain WireGuard network, as JSON
    keepalive SECONDS       of every peer of a plain WireGuard network
    kick                    another handshake with every peer of a plain WireGuard network
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
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
    control_url: str = ""
    auth_key: str = ""
    networks: tuple[tuple[str, str], ...] = ()
    """Names and configuration files of plain WireGuard networks."""

    @property
    def names(self) -> list[str]:
        """What commands begin with: the node's own name, and its networks'."""
        return ([self.name] if self.control_url else []) + [name for name, _ in self.networks]


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
        self._default = joining.names[0]
        self.process: Process = host.start(f"member-{joining.name}", argv, PYTHONPATH=search)
        self._fifo = fifo
        self._orders = 0
        _, *self.addresses = self._line("ready", 20.0).split()

    def _line(self, mark: str, timeout_s: float) -> str:
        """The line of its output that begins with this word."""

        def line() -> str:
            lines = self.process.out().splitlines(keepends=True)
            return next((x.strip() for x in lines if x.startswith(mark + " ") and x.endswith("\n")), "")

        return self.process.wait_until(line, timeout_s, f"the member answers {mark}")

    def tell(self, *words: str, network: str = "", timeout_s: float = 20.0) -> str:
        """Give a command in a network, the first if none is named, and return its answer."""
        return self.answer(self.order(*words, network=network), timeout_s)

    def order(self, *words: str, network: str = "") -> int:
        """Give a command; `answer` of the number is what became of it."""
        self._orders += 1
        with self._fifo.open("w") as pipe:
            pipe.write(" ".join([str(self._orders), network or self._default, *words]) + "\n")
        return self._orders

    def answer(self, number: int, timeout_s: float = 60.0) -> str:
        """The answer of a command that `order` gave."""
        return self._line(str(number), timeout_s).partition(" ")[2]

    def status(self, network: str) -> dict[str, Any]:
        """A plain WireGuard network."""
        return dict(json.loads(self.tell("status", network=network)))

    def endpoint(self, network: str) -> str:
        """Where the only peer of a plain WireGuard network is."""
        return str(self.status(network)["Peers"][0]["Endpoint"])


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


async def _status(network: Any) -> str:
    return json.dumps(network.status().to_json())


async def _kick(network: Any) -> str:
    for peer in network.config.peers:
        network._inside().engine.kick(peer.key)
    return "kicked"


async def _keepalive(network: Any, seconds: str) -> str:
    peers = tuple(replace(peer, keepalive_s=int(seconds)) for peer in network.config.peers)
    network.reconfigure(replace(network.config, peers=peers))
    return "changed"


COMMANDS: dict[str, Callable[..., Awaitable[str]]] = {
    "ask": _ask,
    "ping": _ping,
    "get": _get,
    "stat": _stat,
    "status": _status,
    "kick": _kick,
    "keepalive": _keepalive,
}


@contextlib.asynccontextmanager
async def _join(joining: Joining) -> AsyncIterator[dict[str, Any]]:
    from meshnode import Node, WireGuardNetwork
    from meshnode.run.log import configure

    configure()
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, Any] = {}
        if joining.control_url:
            node = Node(
                control_url=joining.control_url, auth_key=joining.auth_key, hostname=joining.name, state_dir="mem:"
            )  # fmt: skip
            found[joining.name] = await stack.enter_async_context(node)
            await node.ready(timeout=15)
        for name, path in joining.networks:
            found[name] = await stack.enter_async_context(WireGuardNetwork.from_file(path, name=name))
        yield found


async def _serve(joining: Joining) -> None:
    async with _join(joining) as networks, asyncio.TaskGroup() as group:
        answering = []
        for network in networks.values():
            await network.start_server(_echo, ECHO_PORT)
            await network.start_server(_greet, HTTP_PORT)
            answering.append(group.create_task(_answer(await network.listen_packet(UDP_PORT))))
        print("ready", *(ip for network in networks.values() for ip in network.addresses), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            number, name, verb, *words = line.split()
            group.create_task(_run(number, COMMANDS[verb](networks[name], *words)))
        for task in answering:
            task.cancel()


async def _run(number: str, work: Any) -> None:
    try:
        answer = await work
    except OSError as error:
        answer = f"{type(error).__name__} {error}"
    print(number, answer, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(Joining(**json.loads(Path(sys.argv[1]).read_text()))))
