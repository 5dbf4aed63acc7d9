"""A small HTTP client for figures, run inside a host: `python -m interop.probe URL COUNT [SOCKS5]`.

One keep-alive connection, COUNT requests one after another, directly or through a SOCKS5 proxy that
resolves the name. Prints JSON: connect_ms, p50_ms, p99_ms, per_second. No library between us and the
socket, so that the client costs the same for every node it is used with.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
import urllib.parse


def dial(host: str, port: int, proxy: str) -> socket.socket:
    """A connected socket, by SOCKS5 if `proxy` is given (RFC 1928, no authentication)."""
    if not proxy:
        connected = socket.create_connection((host, port), timeout=20)
    else:
        at, _, number = proxy.rpartition(":")
        connected = socket.create_connection((at, int(number)), timeout=20)
        name = host.encode()
        connected.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack("!H", port))
        answer = _exactly(connected, 2 + 4)
        if answer[:2] != b"\x05\x00" or answer[3] != 0:
            raise ConnectionError(f"SOCKS5 refused {host}:{port}: {answer.hex()}")
        _exactly(connected, {1: 4, 4: 16}[answer[5]] + 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _exactly(source: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = source.recv(count - len(got))
        if not piece:
            raise ConnectionError(f"ended after {len(got)} of {count} bytes")
        got += piece
    return got


def _request(connection: socket.socket, request: bytes) -> None:
    """One GET and its whole answer; ConnectionError unless it is a 200."""
    connection.sendall(request)
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("ended inside the header")
        buffer += piece
    head, _, body = buffer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ConnectionError(head.split(b"\r\n", 1)[0].decode(errors="replace"))
    length = next(int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
    if len(body) < length:
        _exactly(connection, length - len(body))


def measure(url: str, count: int, proxy: str) -> dict[str, float]:
    """Warm up with a tenth, then time each request."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    started = time.perf_counter()
    connection = dial(host, port, proxy)
    connect_s = time.perf_counter() - started
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for _ in range(max(1, count // 10)):
        _request(connection, request)
    times = []
    began = time.perf_counter()
    for _ in range(count):
        at = time.perf_counter()
        _request(connection, request)
        times.append(time.perf_counter() - at)
    whole = time.perf_counter() - began
    times.sort()
    return {
        "connect_ms": connect_s * 1e3,
        "p50_ms": times[count // 2] * 1e3,
        "p99_ms": times[min(count - 1, count * 99 // 100)] * 1e3,
        "per_second": count / whole,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")))
