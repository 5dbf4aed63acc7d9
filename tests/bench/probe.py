"""The measuring client, run inside a lab namespace: the same program for every peer.

`python -P probe.py latency PROXY HOST PORT COUNT` sends COUNT small keep-alive GETs, one at a time,
over one connection through a SOCKS5 proxy; `short` does connect + GET + close COUNT times, and goes on
after a failure. Prints JSON: `times`, sorted, in microseconds, and `failures`.
Standard library only, blocking sockets: what it adds is the same for every peer.
"""

import json
import socket
import sys
import time

REQUEST = "GET /hello.txt HTTP/1.1\r\nHost: {}\r\n{}\r\n"


def dial(proxy: str, host: str, port: int) -> socket.socket:
    """A connection to host:port through the SOCKS5 proxy; the name is resolved by the proxy."""
    proxy_host, _, proxy_port = proxy.rpartition(":")
    sock = socket.create_connection((proxy_host, int(proxy_port)), timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"\x05\x01\x00")
    assert _exactly(sock, 2) == b"\x05\x00"
    name = host.encode()
    sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    head = _exactly(sock, 4)
    if head[1]:
        raise ConnectionError(f"SOCKS5 answered {head[1]}")
    _exactly(sock, {1: 4, 4: 16}.get(head[3]) or _exactly(sock, 1)[0])
    _exactly(sock, 2)
    return sock


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("closed early")
        data += more
    return data


def one_get(sock: socket.socket, host: str, *, close: bool = False) -> int:
    """One GET on `sock`; returns the body's length."""
    sock.sendall(REQUEST.format(host, "Connection: close\r\n" if close else "").encode())
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("closed before the answer")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(head.splitlines()[0].decode())
    length = next(int(x.split(b":")[1]) for x in head.lower().splitlines() if x.startswith(b"content-length"))
    while len(body) < length:
        body += sock.recv(65536)
    return length


def latency(proxy: str, host: str, port: int, count: int) -> list[float]:
    sock = dial(proxy, host, port)
    for _ in range(min(50, count)):
        one_get(sock, host)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        one_get(sock, host)
        times.append((time.perf_counter() - started) * 1e6)
    return times


def short(proxy: str, host: str, port: int, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        try:
            with dial(proxy, host, port) as sock:
                one_get(sock, host, close=True)
        except OSError:
            continue
        times.append((time.perf_counter() - started) * 1e6)
    return times


if __name__ == "__main__":
    what, proxy, host, port, count = sys.argv[1:]
    work = {"latency": latency, "short": short}[what]
    times = sorted(work(proxy, host, int(port), int(count)))
    print(json.dumps({"times": times, "failures": int(count) - len(times)}))
