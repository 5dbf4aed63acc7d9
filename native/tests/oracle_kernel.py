"""A kernel's TCP against the stack, over a TUN device in a network namespace of its own. Needs root.

    make -C native/tests oracle

Both families, every combination of SACK, timestamps and window scaling, ECN, then loss and delay: bytes are compared,
resets and refusals must be seen, pings answered. Rates are printed and not judged.
"""

from __future__ import annotations

import array
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

OURS4, OURS6, KERNEL4 = "100.64.0.1", "fd7a::1", "100.64.0.2"
MIB = 1 << 20
CLONE_NEWNET = 0x40000000


def pattern(n: int) -> bytes:
    """Big-endian counters: what both sides send."""
    words = array.array("I", range((n + 3) // 4))
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()[:n]


class Stack:
    """One run of the stack behind a fresh TUN device."""

    def __init__(self, binary: str, loss_permille: int = 0, delay_ms: int = 0) -> None:
        self.process = subprocess.Popen(
            [binary, "mn0", str(loss_permille), str(delay_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        for command in (
            "link set mn0 mtu 1280 txqueuelen 10000 up",
            "addr add 100.64.0.2/24 dev mn0",
            "-6 addr add fd7a::2/64 dev mn0 nodad",
        ):
            subprocess.run(["ip", *command.split()], check=True)

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def connect(port: int, v6: bool = False) -> socket.socket:
    return socket.create_connection((OURS6 if v6 else OURS4, port), 60)


def read_all(s: socket.socket) -> bytes:
    parts = []
    while part := s.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def download(n: int, v6: bool = False) -> float:
    began = time.monotonic()
    with connect(80, v6) as s:
        s.sendall(n.to_bytes(8, "big"))
        assert read_all(s) == pattern(n), "downloaded bytes differ"
    return n * 8 / (time.monotonic() - began) / 1e6


def upload(n: int, v6: bool = False) -> float:
    data = pattern(n)
    began = time.monotonic()
    with connect(81, v6) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        assert int.from_bytes(read_all(s), "big") == n, "not all arrived"
    return n * 8 / (time.monotonic() - began) / 1e6


def echo(n: int) -> None:
    data = pattern(n)
    with connect(82) as s:

        def send() -> None:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert read_all(s) == data, "echo differs"
        sender.join()


def ping_pong(rounds: int) -> float:
    times = []
    with connect(82) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(rounds):
            began = time.monotonic()
            message = b"%08d" % i
            s.sendall(message)
            assert s.recv(100) == message
            times.append(time.monotonic() - began)
    return sorted(times)[rounds // 2] * 1e6


def write_write_read(rounds: int) -> float:
    """Two small writes and a read, with Nagle on: the pattern that delayed ACKs stall."""
    worst = 0.0
    with connect(82) as s:
        for _ in range(rounds):
            began = time.monotonic()
            s.send(b"head")
            s.send(b"body")
            got = b""
            while len(got) < 8:
                got += s.recv(100)
            worst = max(worst, time.monotonic() - began)
    return worst * 1e3


def reset() -> None:
    with connect(83) as s:
        s.sendall(b"x")
        try:
            assert s.recv(10) != b"", "a reset looked like an end"
        except ConnectionResetError:
            return
    raise AssertionError("no reset")


def refused() -> None:
    try:
        connect(99).close()
    except ConnectionRefusedError:
        return
    raise AssertionError("a closed port was open")


def outgoing(stack: Stack, n: int) -> None:
    with socket.create_server((KERNEL4, 9000)) as server:
        server.settimeout(60)
        stack.ask(f"connect 9000 {n}")
        s, _ = server.accept()
        with s:
            assert read_all(s) == pattern(n), "sent bytes differ"


def many(count: int) -> None:
    errors: list[BaseException] = []

    def one() -> None:
        try:
            with connect(80) as s:
                s.sendall((20000).to_bytes(8, "big"))
                assert read_all(s) == pattern(20000)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[:3]


def ping(size: int, v6: bool) -> None:
    address = OURS6 if v6 else OURS4
    done = subprocess.run(
        ["ping", "-c", "3", "-i", "0.02", "-W", "2", "-s", str(size), address], capture_output=True, text=True
    )
    assert done.returncode == 0 and " 0% packet loss" in done.stdout, done.stdout + done.stderr


def tune(**settings: object) -> None:
    for name, value in settings.items():
        Path(f"/proc/sys/net/ipv4/{name}").write_text(str(value))


def checksum_errors() -> int:
    """What this namespace's kernel found wrong in the segments it got."""
    names, values = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(values[names.index("InCsumErrors")])


def plain(binary: str) -> None:
    stack = Stack(binary)
    try:
        refused()
        reset()
        echo(3 * MIB)
        many(100)
        print(f"  ping-pong p50 {ping_pong(500):.0f} us, write-write-read worst {write_write_read(50):.1f} ms")
        print(f"  down {download(64 * MIB):.0f}, up {upload(64 * MIB):.0f} Mb/s; IPv6", end=" ")
        print(f"down {download(16 * MIB, True):.0f}, up {upload(16 * MIB, True):.0f} Mb/s")
        outgoing(stack, 5 * MIB)
        if Path("/usr/bin/ping").exists() or Path("/bin/ping").exists():
            for v6 in (False, True):
                for size in (56, 1200, 4000, 8000, 60000):
                    ping(size, v6)
    finally:
        stack.stop()


def impaired(binary: str, loss_permille: int, delay_ms: int, size: int) -> None:
    stack = Stack(binary, loss_permille, delay_ms)
    try:
        down, up = download(size), upload(size)
        print(f"  loss {loss_permille / 10} %, delay {2 * delay_ms} ms: down {down:.1f}, up {up:.1f} Mb/s")
    finally:
        stack.stop()


def main() -> None:
    binary = sys.argv[1]
    # os.unshare is Python 3.12's. What follows tunes the kernel: never the machine's own namespace.
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        sys.exit(f"needs root: no network namespace: {os.strerror(ctypes.get_errno())}")
    tune(tcp_congestion_control="cubic", tcp_no_metrics_save=1)
    for sack in (1, 0):
        for stamps in (1, 0):
            for scale in (1, 0):
                tune(tcp_sack=sack, tcp_timestamps=stamps, tcp_window_scaling=scale)
                print(f"sack {sack} timestamps {stamps} window scaling {scale}", flush=True)
                plain(binary)
    tune(tcp_sack=1, tcp_timestamps=1, tcp_window_scaling=1, tcp_ecn=1)
    print("ecn asked for", flush=True)
    plain(binary)
    for loss, delay, size in ((0, 20, 16 * MIB), (1, 0, 32 * MIB), (10, 0, 16 * MIB), (10, 10, 2 * MIB), (50, 5, MIB)):
        impaired(binary, loss, delay, size)
    assert checksum_errors() == 0, "the kernel found wrong checksums"
    print("ok")


if __name__ == "__main__":
    main()
