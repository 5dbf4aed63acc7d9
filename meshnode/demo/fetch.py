"""A small program that knows nothing of meshnode: HTTP through a SOCKS5 door, timed and hashed.

    python -m meshnode.demo.fetch PORT METHOD URL [HEADER]… [--body TEXT]

Prints one JSON object: status, body (if short) or its size and SHA-256, seconds to the first byte and
in all. It runs as a process of its own so that its work is not the relay's delay.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

TIMEOUT_S: Final = 20.0
SHORT: Final = 64 * 1024
BUFFER: Final = 1 << 20


def connect(door_port: int, host: str, port: int) -> socket.socket:
    """A connection to `host` by way of the door, which resolves the name. OSError with the door's answer."""
    sock = socket.create_connection(("127.0.0.1", door_port), timeout=TIMEOUT_S)
    name = host.encode()
    sock.sendall(b"\x05\x01\x00")
    greeting = _exactly(sock, 2)
    if greeting != b"\x05\x00":
        raise OSError(f"the door wants a password: {greeting.hex()}")
    sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    head = _exactly(sock, 4)
    if head[1]:
        raise OSError(f"{host}:{port}: the door answers {head[1]}")
    _exactly(sock, (4 if head[3] == 1 else 16) + 2)
    return sock


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise OSError("the connection ended early")
        data += part
    return data


def fetch(door_port: int, method: str, url: str, headers: list[str], body: str) -> dict[str, Any]:
    """One request; the whole answer is read."""
    target = urlsplit(url)
    started = time.monotonic()
    with connect(door_port, target.hostname or "", target.port or 80) as sock:
        lines = [f"{method} {target.path or '/'} HTTP/1.1", f"Host: {target.netloc}", "Connection: close", *headers]
        raw = body.encode()
        lines += [f"Content-Length: {len(raw)}"] if raw else []
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + raw)
        head, rest = _head(sock)
        first_s = time.monotonic() - started
        status = int(head.split(b" ", 2)[1])
        answer = _body(sock, rest, _length(head))
    return {"status": status, "first_s": first_s, "seconds": time.monotonic() - started} | answer


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(4096)
        if not part or len(data) > 65536:
            raise OSError("no HTTP answer")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return next((int(value) for name, _, value in fields if name.lower() == b"content-length"), 0)


def _body(sock: socket.socket, rest: bytes, length: int) -> dict[str, Any]:
    digest, size, kept = hashlib.sha256(rest), len(rest), bytearray(rest)
    buffer = memoryview(bytearray(BUFFER))
    while size < length:
        count = sock.recv_into(buffer)
        if not count:
            raise OSError(f"the body ended after {size} of {length} bytes")
        digest.update(buffer[:count])
        size += count
        if size <= SHORT:
            kept += buffer[:count]
    short = {"body": bytes(kept).decode("utf-8", "replace")} if length <= SHORT else {}
    return {"size": size, "sha256": digest.hexdigest()} | short


def main() -> int:
    """The command line."""
    words = sys.argv[1:]
    body = ""
    if "--body" in words:
        place = words.index("--body")
        body = words[place + 1]
        del words[place : place + 2]
    port, method, url, *headers = words
    try:
        print(json.dumps(fetch(int(port), method, url, headers, body)))
    except (OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
