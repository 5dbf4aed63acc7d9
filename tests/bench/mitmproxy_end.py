"""The serving end of the tunnel bench over mitmproxy_rs, run inside a lab namespace by tunnel.py.

    mitmproxy_end.py FOLDER PRIVATE_HEX PEER_PUBLIC_HEX

FOLDER holds mitmproxy_rs (`pip install --no-deps --target FOLDER mitmproxy_rs`). It is a WireGuard server whose
TCP streams are handed to Python coroutines; it cannot dial. Its module of eBPF for local redirection, which
comes apart and wants a newer Python, is not needed here and stands in as an empty one.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
import types
from typing import Any

from ends import BLOCK, END, HEADER, SAMPLE, Driver, obey, the_block

PORT = 51820
READ = 65536


async def serve(stream: Any) -> None:
    data = b""
    while len(data) < HEADER:
        more = await stream.read(READ)
        if not more:
            return
        data += more
    head, rest = data[:HEADER], data[HEADER:]
    if head.startswith(b"U"):
        await sink(stream, rest)
    else:
        await echo(stream, rest)
    stream.close()


async def echo(stream: Any, data: bytes) -> None:
    while True:
        if data:
            stream.write(data)
            await stream.drain()
        data = await stream.read(READ)
        if not data:
            return


async def sink(stream: Any, data: bytes) -> None:
    total = first = last = wrong = 0
    while True:
        if data:
            last = time.time_ns()
            first = first or last
            at = total % BLOCK
            total += len(data)
            if (total - 1) % BLOCK == 0 and data[-1] == END[0]:
                break
            # A read may cross the end of the block, which the sample behind it repeats.
            sample = min(len(data), SAMPLE)
            wrong += data[:sample] != the_block()[at : at + sample]
        data = await stream.read(READ)
        if not data:
            return
    stream.write(b"".join(n.to_bytes(8, "big") for n in (total, first, last, wrong)))
    await stream.drain()
    await stream.read(1)


async def refuse(stream: Any) -> None:
    stream.close()


def no_dial(peer: str, port: int) -> Any:
    raise OSError("mitmproxy_rs cannot dial")


async def main() -> None:
    folder, private, peer = sys.argv[1:4]
    sys.path.insert(0, folder)
    sys.modules["mitmproxy_linux"] = types.ModuleType("mitmproxy_linux")
    import mitmproxy_rs  # type: ignore[import-not-found]

    keys = [base64.b64encode(bytes.fromhex(text)).decode() for text in (private, peer)]
    server = await mitmproxy_rs.wireguard.start_wireguard_server("0.0.0.0", PORT, keys[0], [keys[1]], serve, refuse)
    await obey(Driver(no_dial), "10.93.0.2")
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
