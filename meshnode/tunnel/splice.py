"""Two connected sockets made one: bytes both ways, each direction with its own end.

A half-close travels on, so that an answer after a half-closed question arrives. An error on either
side ends both; a TCP socket is then reset rather than closed, so that nobody takes a cut for an end.
At most one chunk waits per direction: a slow side slows the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final

from meshnode.run.scope import Scope

CHUNK: Final = 256 * 1024
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: close sends RST."""


async def splice(one: socket.socket, other: socket.socket, early: bytes = b"") -> None:
    """Carry until both directions ended, then close both. `early` goes to `other` first."""
    failed = True
    try:
        async with Scope("splice") as scope:
            there = scope.spawn(_carry(one, other, early), "there")
            back = scope.spawn(_carry(other, one, b""), "back")
            done, _ = await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            if all(task.result() for task in done):
                await asyncio.wait({there, back})
                failed = not (there.result() and back.result())
    finally:
        for sock in (one, other):
            if failed:
                reset(sock)
            else:
                sock.close()


async def _carry(source: socket.socket, sink: socket.socket, early: bytes) -> bool:
    """Copy until `source` ends; False if either side broke."""
    loop = asyncio.get_running_loop()
    try:
        if early:
            await loop.sock_sendall(sink, early)
        while data := await loop.sock_recv(source, CHUNK):
            await loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def reset(sock: socket.socket) -> None:
    """Close at once, by RST where the family knows one."""
    with contextlib.suppress(OSError):
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
