"""A paced stream and the gaps in it: the server beside one node, the reader behind the door of the other.

    python -m tests.lab.flow serve PORT
    python -m tests.lab.flow read DOOR HOST PORT SEED RATE SECONDS

The server sends bytes drawn from the seed, RATE a second in slices of 10 ms. The reader connects by SOCKS5 and prints
JSON lines, times by the machine's monotonic clock: `start` before its first packet, `first` when bytes come, `at` each
100 ms or so with the total, `gap` for each silence above 100 ms when it is over, and `end` with whether all bytes
came. A wrong byte is told at once, as `wrong`, and ends it.
"""

from __future__ import annotations

import json
import random
import socket
import socketserver
import struct
import sys
import time
from typing import Any

SLICE_S = 0.01
GAP_S = 0.1
SILENT_S = 60.0
HEADER = struct.Struct("!QII")
"""Seed, bytes per second, milliseconds."""


def slices(rate: int, duration_ms: int) -> list[int]:
    """Lengths of the slices of a stream; their sum is its length."""
    count = max(1, int(duration_ms / 1000 / SLICE_S))
    total = rate * duration_ms // 1000
    return [(i + 1) * total // count - i * total // count for i in range(count)]


class _Stream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        asked = b""
        while len(asked) < HEADER.size:
            piece = self.request.recv(HEADER.size - len(asked))
            if not piece:
                return
            asked += piece
        seed, rate, duration_ms = HEADER.unpack(asked)
        source, begun = random.Random(seed), time.monotonic()
        try:
            for number, length in enumerate(slices(rate, duration_ms)):
                time.sleep(max(0.0, begun + number * SLICE_S - time.monotonic()))
                self.request.sendall(source.randbytes(length))
        except OSError:
            return  # the reader has left


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def serve(port: int) -> None:
    with _Server(("127.0.0.1", port), _Stream) as server:
        print("listening", flush=True)
        server.serve_forever()


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def dial(door: str, host: str, port: int) -> socket.socket:
    """A connection through a SOCKS5 door, by name or address."""
    address, _, door_port = door.rpartition(":")
    sock = socket.create_connection((address, int(door_port)), SILENT_S)
    sock.sendall(b"\x05\x01\x00")
    _exactly(sock, 2)
    name = host.encode()
    sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    answer = _exactly(sock, 4)
    if answer[1] != 0:
        raise OSError(f"the door answers {answer[1]}")
    _exactly(sock, {1: 6, 4: 18}[answer[3]])
    return sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = sock.recv(size - len(got))
        if not piece:
            raise OSError("closed too early")
        got += piece
    return got


class Wanted:
    """The bytes that should come, drawn as far as they are needed."""

    def __init__(self, seed: int, rate: int, duration_ms: int) -> None:
        self._source = random.Random(seed)
        self._lengths = slices(rate, duration_ms)
        self.total = sum(self._lengths)
        self._lengths.reverse()
        self._drawn = bytearray()

    def take(self, size: int) -> bytes:
        while len(self._drawn) < size and self._lengths:
            self._drawn += self._source.randbytes(self._lengths.pop())
        taken = bytes(self._drawn[:size])
        del self._drawn[:size]
        return taken


def read(door: str, host: str, port: int, seed: int, rate: int, duration_ms: int) -> None:
    wanted = Wanted(seed, rate, duration_ms)
    say(start=time.monotonic())
    sock = dial(door, host, port)
    sock.sendall(HEADER.pack(seed, rate, duration_ms))
    total, last, said = 0, time.monotonic(), 0.0
    while piece := sock.recv(1 << 16):
        now = time.monotonic()
        if not total:
            say(first=now)
        elif now - last > GAP_S:
            say(gap=round(now - last, 4), at=now)
        if piece != wanted.take(len(piece)):
            say(wrong=total, at=now)
            return
        total, last = total + len(piece), now
        if now - said > GAP_S:
            said = now
            say(at=now, total=total)
    say(end=time.monotonic(), total=total, whole=total == wanted.total)


def main(argv: list[str]) -> None:
    if argv[0] == "serve":
        serve(int(argv[1]))
        return
    door, host, *numbers = argv[1:]
    try:
        read(door, host, *(int(x) for x in numbers))
    except OSError as error:
        say(end=time.monotonic(), total=0, whole=False, error=str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
