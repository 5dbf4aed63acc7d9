"""A relay under abuse of every kind at once: what legitimate pairs notice, and how soon the abusers are gone.

    python -m tests.bench.relay_abuse [--seconds 15] [--scale 1.0] > out.json

Needs root (a network namespace of its own) and gcc. The relay is `meshnode derp` with a list of allowed keys. Ten
pairs exchange 20 000 packets of 1280 bytes a second, first alone, then while all of this happens:

half_open     5000 connections that send the beginning of a TLS handshake and no more
slow_header   500 clients that, inside TLS, send one byte of an HTTP request a second
huge_length   clients that log in and announce a frame of 0xFFFFFFFF bytes, again and again
deaf          a client that never reads, while another sends 100 Mbit/s to it
one_key       200 connections with one key, each of which speaks up ten times a second
strangers     logins with keys that nobody knows, as fast as they are refused, and packets to keys that nobody has

`--scale` is a factor on these counts. Targets: ≥ 90 % of the rate, p99 at most 20 ms more, the relay's memory under
its bound, and those that can be cut off gone within 15 s. What one_key does is no offence: it must only hurt nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshnode.base.keys import NodePrivate
from meshnode.wire import derp
from tests.bench.relay import BUILT, HOST, NATIVE, Relay, enter_namespace, login_of, run_driver, say

PAIRS, RATE = 10, 20_000
RATE_TARGET, P99_TARGET_US, GONE_TARGET_S = 0.9, 20_000.0, 15.0
BASE_MIB, MEMORY_MIB = 64, 256
"""What a relay holds with no client, and what may wait for clients at most (relay/server.py MEMORY_MAX)."""
CLIENT_KIB = 24
HELLO = bytes.fromhex("16030100c8010000c40303")
HEAD = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n"


class Abuse:
    """The abusers of one relay: each in a thread, until `stop`."""

    def __init__(self, relay: Relay, known: list[NodePrivate], scale: float) -> None:
        self.relay = relay
        self.known = known
        self.scale = scale
        self.stop = threading.Event()
        self.errors: list[str] = []
        self.counts: dict[str, int] = {}
        self.gone_s: dict[str, float] = {}
        """The longest that one of its kind stayed."""
        self.left: dict[str, int] = {}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def start(self) -> list[threading.Thread]:
        kinds = (self.half_open, self.slow_header, self.huge_length, self.deaf, self.one_key, self.strangers)
        threads = [threading.Thread(target=self._guarded, args=(kind,), daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, kind: Callable[[], None]) -> None:
        try:
            kind()
        except Exception as error:
            self.errors.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    def _count(self, kind: str, by: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + by

    def _connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.relay.port), timeout=20)

    def _tls(self) -> ssl.SSLSocket:
        return self.context.wrap_socket(self._connect())

    def _login(self, private: NodePrivate) -> ssl.SSLSocket:
        sock = self._tls()
        sock.sendall(HEAD + login_of(self.relay.key, private)[34:])
        return sock

    def _watch(self, kind: str, socks: dict[socket.socket, float], tick: Callable[[], None] | None = None) -> None:
        """Until each has been cut off or time is up: how long did they stay?"""
        with selectors.DefaultSelector() as watched:
            for sock in list(socks):
                sock.setblocking(False)
                watched.register(sock, selectors.EVENT_READ, sock)
            while socks and not self.stop.is_set():
                for key, _ in watched.select(0.2):
                    sock = key.data
                    with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
                        if self._ended(sock):
                            watched.unregister(sock)
                            stayed = time.monotonic() - socks.pop(sock)
                            self.gone_s[kind] = max(self.gone_s.get(kind, 0.0), stayed)
                            sock.close()
                if tick is not None:
                    tick()
        self.left[kind] = len(socks)
        for sock in socks:
            sock.close()

    @staticmethod
    def _ended(sock: socket.socket) -> bool:
        try:
            return not sock.recv(65536)
        except (ssl.SSLWantReadError, BlockingIOError):
            raise
        except OSError:
            return True

    # --- kinds ---

    def half_open(self) -> None:
        socks: dict[socket.socket, float] = {}
        for _ in range(int(5000 * self.scale)):
            sock = self._connect()
            sock.sendall(HELLO)
            socks[sock] = time.monotonic()
            self._count("half_open")
        self._watch("half_open", socks)

    def slow_header(self) -> None:
        socks: dict[socket.socket, float] = {}
        for _ in range(int(500 * self.scale)):
            with contextlib.suppress(OSError):  # the crowd of half-open ones may push it out at once
                socks[self._tls()] = time.monotonic()
                self._count("slow_header")
        said, last = 0, time.monotonic()

        def tick() -> None:
            nonlocal said, last
            if time.monotonic() - last < 1:
                return
            last = time.monotonic()
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.send(HEAD[said : said + 1])
            said += 1

        self._watch("slow_header", socks, tick)

    def huge_length(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(OSError), self._login(self.known[0]) as sock:
                sock.sendall(bytes((derp.SEND_PACKET, 0xFF, 0xFF, 0xFF, 0xFF)) + bytes(1000))
                began = time.monotonic()
                self._count("huge_length")
                while not self._ended(sock):
                    pass
                self.gone_s["huge_length"] = max(self.gone_s.get("huge_length", 0.0), time.monotonic() - began)
            time.sleep(0.02)

    def deaf(self) -> None:
        sender = self._login(self.known[1])
        packet = derp.emit_send(self.known[2].public().raw, b"\x04" + bytes(1279))
        while not self.stop.is_set():
            deaf, began, is_gone = self._login(self.known[2]), time.monotonic(), False
            self._count("deaf")
            next_s = time.monotonic()
            while not self.stop.is_set() and not is_gone:
                sender.sendall(packet * 50)
                next_s += 50 * 1280 * 8 / 100e6
                time.sleep(max(0.0, next_s - time.monotonic()))
                is_gone = _is_reset(deaf)
            if is_gone:
                self.gone_s["deaf"] = max(self.gone_s.get("deaf", 0.0), time.monotonic() - began)
            deaf.close()

    def one_key(self) -> None:
        socks = []
        for _ in range(int(200 * self.scale)):
            with contextlib.suppress(OSError):
                socks.append(self._login(self.known[3]))
                self._count("one_key")
        preferred = derp.emit_preferred(True)
        while not self.stop.wait(0.1):
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(preferred)
        for sock in socks:
            sock.close()

    def strangers(self) -> None:
        loud = self._login(self.known[4])
        while not self.stop.is_set():
            with contextlib.suppress(OSError), self._login(NodePrivate(os.urandom(32))) as sock:
                began = time.monotonic()
                self._count("strangers")
                while not self._ended(sock):
                    pass
                self.gone_s["strangers"] = max(self.gone_s.get("strangers", 0.0), time.monotonic() - began)
            frames = [derp.emit_send(os.urandom(32), b"TS\xf0\x9f\x92\xac" + bytes(100)) for _ in range(200)]
            loud.sendall(b"".join(frames))
            self._count("unknown_destinations", 200)


def _is_reset(sock: socket.socket) -> bool:
    """Has the other side cut a connection that is not read? (A look at the kernel's state.)"""
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # no longer established


def run(seconds: float, scale: float, folder: Path) -> dict[str, Any]:
    """Alone, then abused; the figures and which targets hold."""
    relay = Relay("meshnode", folder, options=("--log-level", "error"))
    legitimate = [NodePrivate(os.urandom(32)) for _ in range(2 * PAIRS)]
    known = [NodePrivate(os.urandom(32)) for _ in range(5)]
    allowed = folder / "allowed"
    allowed.write_text("".join(f"{key.public()}\n" for key in [*legitimate, *known]))
    relay.options = (*relay.options, "--allow-keys", str(allowed))
    relay.start()
    try:
        logins = folder / "logins"
        logins.write_bytes(b"".join(login_of(relay.key, key) for key in legitimate))
        argv = [str(BUILT / "relay_load"), HOST, str(relay.port), str(logins), "open", f"pairs={PAIRS}", f"rate={RATE}"]
        load = [*argv, "size=1280", f"seconds={seconds:.0f}", f"pid={relay.pid}"]
        alone = run_driver(load)
        abuse, peak = Abuse(relay, known, scale), [0]
        # The pairs log in first: what is measured is what they notice, not whether the crowd lets them in.
        loaded: list[dict[str, float]] = []
        loading = threading.Thread(target=lambda: loaded.append(run_driver(load)))
        loading.start()
        time.sleep(0.2)
        threads = abuse.start()
        while loading.is_alive():
            peak[0] = max(peak[0], relay.rss_kib())
            loading.join(0.1)
        ends = time.monotonic() + GONE_TARGET_S
        while any(t.is_alive() for t in threads[:2]) and time.monotonic() < ends:
            time.sleep(0.1)
        abuse.stop.set()
        for thread in threads:
            thread.join(10)
    finally:
        relay.close()
    cap = BASE_MIB + MEMORY_MIB + sum(abuse.counts.get(k, 0) for k in ("half_open", "slow_header")) * CLIENT_KIB / 1024
    share = loaded[0]["per_s"] / alone["per_s"]
    more = loaded[0]["p99_us"] - alone["p99_us"]
    return {
        "alone": alone,
        "abused": loaded[0],
        "abusers": abuse.counts,
        "gone_s": abuse.gone_s,
        "left": abuse.left,
        "errors": abuse.errors,
        "peak_rss_mib": peak[0] / 1024,
        "targets": {
            "share of the rate": [share, share >= RATE_TARGET],
            "p99 more, µs": [more, more <= P99_TARGET_US],
            "peak RSS, MiB": [peak[0] / 1024, peak[0] / 1024 <= cap],
            "gone within, s": [
                max(abuse.gone_s.values(), default=0.0),
                "deaf" in abuse.gone_s
                and not any(abuse.left.values())
                and max(abuse.gone_s.values(), default=0.0) <= GONE_TARGET_S,
            ],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    enter_namespace()
    subprocess.run(["make", "-s", "-C", str(NATIVE), "bench"], check=True)
    with tempfile.TemporaryDirectory(prefix="mn-relay-abuse-") as folder:
        outcome = run(options.seconds, options.scale, Path(folder))
    for name, (value, holds) in outcome["targets"].items():
        say(f"{'holds' if holds else 'FALLS SHORT':11} {name}: {value:.3f}")
    json.dump(outcome, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
