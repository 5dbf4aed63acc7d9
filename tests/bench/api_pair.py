"""One end of a stream over the public API, run inside a lab namespace by first_light.

`api_pair.py serve URL NAME SIZE` listens on port 9000 of the tailnet and sends SIZE bytes to each
caller; `api_pair.py fetch URL NAME PEER SIZE` reads them all, once to warm up (one tenth, cut short)
and once measured, and prints JSON. The key comes in MESHNODE_KEY. Reads are `loop.sock_recv_into` of
1 MiB: what a program that cares for speed would write.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time

from meshnode import Node

PORT = 9000
BLOCK = 1 << 20


def make_node(url: str, name: str) -> Node:
    return Node(control_url=url, auth_key=os.environ["MESHNODE_KEY"], hostname=name, state_dir="mem:", ephemeral=True)


async def send_all(sock: socket.socket, size: int) -> None:
    loop = asyncio.get_running_loop()
    block = memoryview(bytes(BLOCK))
    left = size
    while left:
        part = block[: min(left, BLOCK)]
        await loop.sock_sendall(sock, part)
        left -= len(part)
    sock.shutdown(socket.SHUT_WR)
    await loop.sock_recv(sock, 1)
    sock.close()


async def serve(url: str, name: str, size: int) -> None:
    async with make_node(url, name) as node:
        await node.ready(timeout=20)
        listener = await node.listen(PORT)
        print("listening", flush=True)
        async for sock in listener:
            with contextlib.suppress(OSError):  # the caller cuts its warm-up short
                await send_all(sock, size)


async def fetch(url: str, name: str, peer: str, size: int) -> None:
    loop = asyncio.get_running_loop()
    async with make_node(url, name) as node:
        await node.ready(timeout=20)
        buffer = bytearray(BLOCK)
        for measured in (False, True):
            sock = await connect(node, peer)
            started = time.monotonic()
            got = 0
            while got < (size if measured else size // 10):
                count = await loop.sock_recv_into(sock, buffer)
                if not count:
                    break
                got += count
            seconds = time.monotonic() - started
            sock.close()
        assert got == size, f"{got} of {size} bytes"
        print(json.dumps({"gbit_per_s": got * 8 / seconds / 1e9, "seconds": seconds}))


async def connect(node: Node, peer: str) -> socket.socket:
    """Connect once the peer is known and its path is direct (bounded by 15 s)."""
    deadline = time.monotonic() + 15
    while True:
        try:
            sock = await node.connect(peer, PORT)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
            continue
        return sock


if __name__ == "__main__":
    what, url, name, *rest = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(url, name, int(rest[0])))
    else:
        asyncio.run(fetch(url, name, rest[0], int(rest[1])))
