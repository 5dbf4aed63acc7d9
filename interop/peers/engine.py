"""Our engine alone, as a plain WireGuard node: no control server, no relay, keys and peer given.

Run as a program in a host: `python -m interop.peers.engine FILE`, FILE being the JSON of `Settings`.
Port 7 of its tunnel addresses echoes; each line on standard input is a command:
`ping IP`, `fetch IP PORT PATH`; each answer is one line on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from interop.lab import Host, Process

ROOT = Path(__file__).resolve().parents[2]
ECHO_PORT = 7


@dataclass(frozen=True)
class Settings:
    """Keys as hex; addresses as text; `endpoint` is where the peer's UDP is."""

    private: str
    peer: str
    psk: str
    addresses: tuple[str, ...]
    peer_addresses: tuple[str, ...]
    endpoint: tuple[str, int]
    port: int


def start_engine(host: Host, settings: Settings) -> EngineProcess:
    """Start it in `host`; returns once it is ready."""
    path = host.folder / "engine.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(settings)))
    return EngineProcess(host, path)


class EngineProcess:
    """The running program and its two pipes."""

    def __init__(self, host: Host, settings: Path) -> None:
        fifo = host.folder / "engine.in"
        subprocess.run(["mkfifo", str(fifo)], check=True)
        import meshnode

        # The installed package first: the one in the working directory may not be built.
        search = f"{Path(meshnode.__file__).parents[1]}:{ROOT}"
        argv = ["sh", "-c", f"exec {sys.executable} -P -m interop.peers.engine {settings} <>{fifo}"]
        self.process: Process = host.start("engine", argv, PYTHONPATH=search)
        self._fifo = fifo
        self._answers = 0
        self._next_line("ready", 10.0)

    def _next_line(self, what: str, timeout_s: float) -> str:
        def line() -> str:
            lines = self.process.out().splitlines(keepends=True)
            found = lines[self._answers] if len(lines) > self._answers else ""
            return found.strip() if found.endswith("\n") else ""

        answer = self.process.wait_until(line, timeout_s, f"the engine answers: {what}")
        self._answers += 1
        return answer

    def ask(self, *words: str, timeout_s: float = 20.0) -> str:
        """Give a command and return its answer."""
        with self._fifo.open("w") as pipe:
            pipe.write(" ".join(words) + "\n")
        return self._next_line(" ".join(words), timeout_s)


def allow_everything() -> bytes:
    """A filter blob (docs: native/filter) with one rule: all protocols, both families, all ports."""
    every = [(bytes(10) + b"\xff\xff" + bytes(4), 96), (bytes(16), 0)]
    protocols = bytes([1, 6, 17, 58])
    rule = struct.pack("<BHH", len(protocols), len(every), len(every)) + protocols
    rule += b"".join(ip + bytes([bits]) for ip, bits in every)
    rule += b"".join(ip + bytes([bits]) + struct.pack("<HH", 0, 65535) for ip, bits in every)
    return struct.pack("<II", 0x31464E4D, 1) + rule + struct.pack("<I", 0)


async def _echo(listener: object) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        async for sock in listener:  # type: ignore[attr-defined]
            group.create_task(_echo_one(loop, sock))


async def _echo_one(loop: asyncio.AbstractEventLoop, sock: object) -> None:
    with contextlib.closing(sock), contextlib.suppress(OSError):  # type: ignore[type-var]
        while data := await loop.sock_recv(sock, 1 << 16):  # type: ignore[arg-type]
            await loop.sock_sendall(sock, data)  # type: ignore[arg-type]


async def _fetch(engine: object, ip: str, port: str, path: str) -> str:
    """GET over the tunnel; answers the body's length and SHA-256."""
    loop = asyncio.get_running_loop()
    sock = await engine.connect(ip_address(ip), int(port))  # type: ignore[attr-defined]
    with contextlib.closing(sock):
        await loop.sock_sendall(sock, f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, body, size = b"", hashlib.sha256(), 0
        while data := await loop.sock_recv(sock, 1 << 18):
            if b"\r\n\r\n" not in head:
                head += data
                if b"\r\n\r\n" not in head:
                    continue
                head, _, data = head.partition(b"\r\n\r\n")
                head += b"\r\n\r\n"
            body.update(data)
            size += len(data)
    return f"{size} {body.hexdigest()}"


async def _serve(settings: Settings) -> None:
    from meshnode.base.addr import Endpoint
    from meshnode.base.keys import NodePrivate, NodePublic
    from meshnode.engine.engine import PATH_DIRECT, Engine

    engine = await Engine.start(NodePrivate(bytes.fromhex(settings.private)), port=settings.port)
    peer = NodePublic(bytes.fromhex(settings.peer))
    engine.set_addresses([ip_address(x) for x in settings.addresses])
    engine.set_filter(allow_everything())
    engine.upsert_peer(peer, [ip_network(x) for x in settings.peer_addresses], psk=bytes.fromhex(settings.psk))
    ip, port = settings.endpoint
    engine.set_path(peer, Endpoint(ip_address(ip), port), 0, PATH_DIRECT)
    listener = await engine.listen(None, ECHO_PORT)
    async with asyncio.TaskGroup() as group:
        echo = group.create_task(_echo(listener))
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            verb, *words = line.split()
            try:
                if verb == "ping":
                    answer = f"pong {await engine.ping(ip_address(words[0])):.6f}"
                else:
                    answer = await _fetch(engine, *words)
            except OSError as error:
                answer = f"error {error}"
            print(answer, flush=True)
        echo.cancel()
    await engine.aclose()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(_serve(Settings(**given)))
