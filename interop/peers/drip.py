"""A server that sends at a steady rate: what a stall of the network under it is seen by.

Run as a program: `python -m interop.peers.drip PORT`. A client sends one line, SEED BYTES RATE, and gets that many
bytes that follow from the seed, a piece every ten milliseconds, RATE a second; then the end. A reader that was stalled
gets what was due at once.
"""

from __future__ import annotations

import asyncio
import random
import sys

from interop.lab import Host, Process
from interop.peers.origin import ROOT

PORT = 90
EVERY_S = 0.01


def content(seed: int, size: int) -> bytes:
    """The bytes of a seed."""
    return random.Random(seed).randbytes(size)


def start_drip(host: Host) -> Process:
    """On every address of `host`, port PORT; returns when it listens."""
    argv = [sys.executable, "-P", "-m", "interop.peers.drip", str(PORT)]
    process = host.start("drip", argv, PYTHONPATH=str(ROOT))
    process.wait_until(lambda: "listening" in process.out(), 10.0, "the drip listens")
    return process


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    seed, size, rate = map(int, (await reader.readline()).split())
    data, at = content(seed, size), 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    while at < size:
        until = min(size, int((loop.time() - began) * rate) + 1)
        writer.write(data[at:until])
        at = until
        await writer.drain()
        await asyncio.sleep(EVERY_S)
    writer.close()


async def _main(port: int) -> None:
    server = await asyncio.start_server(_serve, None, port)
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
