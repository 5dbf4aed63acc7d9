"""A relay under abuse of every kind at once: what legitimate pairs notice, and how soon the abusers are gone.

    python -m tests.bench.relay_abuse [--seconds 15] [--scale 1.0] [--busy 0] [--realtime] > out.json

Needs root (a network namespace of its own) and gcc. The relay is `meshnode derp` with a list of allowed keys. Ten
pairs exchange 20 000 packets of 1280 bytes a second, first alone, then while all of this happens:

half_open     5000 connections that send the beginning of a TLS handshake and no more
slow_header   500 clients that, inside TLS, send one byte of an HTTP request a second
huge_length   clients that log in and announce a frame of 0xFFFFFFFF bytes, again and again
deaf          a client that never reads, while another sends 100 Mbit/s to it
one_key       200 connections with one key, each of which speaks up ten times a second
strangers     logins with keys that nobody knows, as fast as they are refused, and packets to keys that nobody has
newcomers     no abuse: a client that may come in, again and again; how long its login takes is what it notices

`--scale` is a factor on these counts. Each kind is a process, so that none delays what another measures; the relay and
the pairs are sessions of their own, as services are, to which the scheduler gives their own share of the processors
(`waits_s` is how long each had to wait for one). `--busy` starts so many programs that only burn processor time, for
both halves: a machine that has other work. `--realtime` gives the relay's packet thread and the pairs real-time
priority, so that on such a machine what is left in p99 is the relay's own doing.
Targets: ≥ 90 % of the rate, p99 at most 20 ms more, nobody legitimate cut off, the relay's memory under its bound, and
those that can be cut off gone within 15 s. What one_key does is no offence: it must only hurt nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import selectors
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from meshnode.base.keys import NodePrivate
from meshnode.wire import derp
from tests.bench.relay import BUILT, HOST, NATIVE, RUN_S, Relay, derived, enter_namespace, login_of, say

PAIRS, RATE = 10, 20_000
RATE_TARGET, P99_TARGET_US, GONE_TARGET_S = 0.9, 20_000.0, 15.0
BASE_MIB, MEMORY_MIB = 64, 256
"""What a relay holds with no client, and what may wait for clients at most (relay/server.py MEMORY_MAX)."""
CLIENT_KIB = 24
HELLO = bytes.fromhex("16030100c8010000c40303")
HEAD = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n"


METRICS_PORT = 9477
CALM_S = 1.0
"""Between the logins of the pairs and the abuse."""
_spawn = multiprocessing.get_context("fork")


class Abuse:
    """One kind of abuse at one relay, in a process of its own until `stop`."""

    def __init__(self, relay: Relay, known: list[NodePrivate], scale: float, kind: str) -> None:
        self.relay = relay
        self.known = known
        self.scale = scale
        self.kind = kind
        self.stop = _spawn.Event()
        self.said: dict[str, Any] = {"count": 0, "logins_s": []}
        """Also "gone_s", the longest that one of its kind stayed, "left", those that should be gone, and "error"."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self._answer, answers = _spawn.Pipe(duplex=False)
        self.process = _spawn.Process(target=self._run, args=(answers,), daemon=True)

    def result(self) -> dict[str, Any]:
        """What it did; `stop` is set."""
        if self._answer.poll(20):
            self.said = self._answer.recv()
        else:
            self.said["error"] = "no answer"
        self.process.kill()
        self.process.join()
        return self.said

    def _run(self, answers: Connection) -> None:
        kind: Callable[[], None] = getattr(self, self.kind)
        try:
            kind()
        except Exception as error:
            self.said["error"] = f"{type(error).__name__}: {error}"
        answers.send(self.said)

    def _count(self, by: int = 1) -> None:
        self.said["count"] += by

    def _gone_after(self, stayed_s: float) -> None:
        self.said["gone_s"] = max(self.said.get("gone_s", 0.0), stayed_s)

    def _connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.relay.port), timeout=20)

    def _tls(self) -> ssl.SSLSocket:
        return self.context.wrap_socket(self._connect())

    def _login(self, private: NodePrivate) -> ssl.SSLSocket:
        sock = self._tls()
        sock.sendall(HEAD + login_of(self.relay.key, private)[34:])
        return sock

    def _crowd(self, make: Iterator[socket.socket], tick: Callable[[list[socket.socket]], None]) -> None:
        """Make them all, and until each has been cut off or time is up: how long did they stay?"""
        began: dict[socket.socket, float] = {}
        with selectors.DefaultSelector() as watched:
            is_making = True
            while (is_making or began) and not self.stop.is_set():
                sock = next(make, None)
                is_making = sock is not None
                if sock is not None:
                    began[sock] = time.monotonic()
                    sock.setblocking(False)
                    watched.register(sock, selectors.EVENT_READ, sock)
                    self._count()
                for key, _ in watched.select(0 if is_making else 0.2):
                    with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
                        if self._ended(key.data):
                            watched.unregister(key.data)
                            self._gone_after(time.monotonic() - began.pop(key.data))
                            key.data.close()
                tick(list(began))
        self.said["left"] = sum(time.monotonic() - at > GONE_TARGET_S for at in began.values())

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
        def make() -> Iterator[socket.socket]:
            for _ in range(int(5000 * self.scale)):
                sock = self._connect()
                sock.sendall(HELLO)
                yield sock

        self._crowd(make(), lambda socks: None)

    def slow_header(self) -> None:
        def make() -> Iterator[socket.socket]:
            for _ in range(int(500 * self.scale)):
                with contextlib.suppress(OSError):  # the crowd of half-open ones may push it out at once
                    yield self._tls()

        said, last = 0, time.monotonic()

        def tick(socks: list[socket.socket]) -> None:
            nonlocal said, last
            if time.monotonic() - last < 1:
                return
            last = time.monotonic()
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.send(HEAD[said : said + 1])
            said += 1

        self._crowd(make(), tick)

    def huge_length(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(OSError), self._login(self.known[0]) as sock:
                sock.sendall(bytes((derp.SEND_PACKET, 0xFF, 0xFF, 0xFF, 0xFF)) + bytes(1000))
                began = time.monotonic()
                self._count()
                while not self._ended(sock):
                    pass
                self._gone_after(time.monotonic() - began)
            time.sleep(0.02)

    def deaf(self) -> None:
        sender = self._login(self.known[1])
        packet = derp.emit_send(self.known[2].public().raw, b"\x04" + bytes(1279))
        while not self.stop.is_set():
            deaf, began, is_gone = self._login(self.known[2]), time.monotonic(), False
            self._count()
            next_s = time.monotonic()
            while not self.stop.is_set() and not is_gone:
                sender.sendall(packet * 50)
                next_s += 50 * 1280 * 8 / 100e6
                time.sleep(max(0.0, next_s - time.monotonic()))
                is_gone = _is_reset(deaf)
            if is_gone:
                self._gone_after(time.monotonic() - began)
            deaf.close()

    def one_key(self) -> None:
        socks = []
        for _ in range(int(200 * self.scale)):
            with contextlib.suppress(OSError):
                socks.append(self._login(self.known[3]))
                self._count()
        preferred = derp.emit_preferred(True)
        while not self.stop.wait(0.1):
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(preferred)

    def strangers(self) -> None:
        loud = self._login(self.known[4])
        while not self.stop.is_set():
            with contextlib.suppress(OSError), self._login(NodePrivate(os.urandom(32))) as sock:
                began = time.monotonic()
                self._count()
                while not self._ended(sock):
                    pass
                self._gone_after(time.monotonic() - began)
            frames = [derp.emit_send(os.urandom(32), b"TS\xf0\x9f\x92\xac" + bytes(100)) for _ in range(200)]
            loud.sendall(b"".join(frames))

    def newcomers(self) -> None:
        while not self.stop.wait(0.1):
            began = time.monotonic()
            with contextlib.suppress(OSError), self._login(self.known[5]) as sock:
                if self._is_welcome(sock):
                    self.said["logins_s"].append(time.monotonic() - began)
                    self._count()
                    continue
            self.said["refused"] = self.said.get("refused", 0) + 1

    @staticmethod
    def _is_welcome(sock: ssl.SSLSocket) -> bool:
        kept = b""
        while part := sock.recv(65536):
            kept += part
            while len(kept) >= derp.HEADER_LEN:
                end = derp.HEADER_LEN + int.from_bytes(kept[1 : derp.HEADER_LEN], "big")
                if len(kept) < end:
                    break
                if kept[0] == derp.SERVER_INFO:
                    return True
                kept = kept[end:]
        return False


KINDS = ("half_open", "slow_header", "huge_length", "deaf", "one_key", "strangers", "newcomers")
ENDS = ("half_open", "slow_header")
"""Those that are over by themselves."""


def _is_reset(sock: socket.socket) -> bool:
    """Has the other side cut a connection that is not read? (A look at the kernel's state.)"""
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # no longer established


def metrics_of_relay() -> dict[str, float]:
    """Every number without a label."""
    with urllib.request.urlopen(f"http://{HOST}:{METRICS_PORT}/metrics", timeout=20) as page:
        lines = [line.split() for line in page.read().decode().splitlines()]
    return {words[0]: float(words[1]) for words in lines if words[0] != "#" and "{" not in words[0]}


def packet_thread(relay: int) -> Path:
    """In /proc."""
    tasks = Path(f"/proc/{relay}/task").iterdir()
    return next(task for task in tasks if (task / "comm").read_text().strip() == "meshnode-derp")


class Waits:
    """How long the relay's packet thread and the driver ran, and how long each waited for a processor: seconds."""

    def __init__(self, relay: int, driver: int) -> None:
        self._files = {"relay": packet_thread(relay) / "schedstat", "driver": Path(f"/proc/{driver}/schedstat")}
        self._before = self._read()
        self.now = self._before

    def look(self) -> None:
        with contextlib.suppress(OSError):
            self.now = self._read()

    def said(self) -> dict[str, float]:
        return {name: value - self._before[name] for name, value in self.now.items()}

    def _read(self) -> dict[str, float]:
        said = {}
        for name, path in self._files.items():
            runs, waits = path.read_text().split()[:2]
            said |= {f"{name}_runs_s": int(runs) / 1e9, f"{name}_waits_s": int(waits) / 1e9}
        return said


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """A machine with other work."""
    burn = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(burn, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def under_abuse(load: list[str], relay: Relay, kinds: list[Abuse]) -> tuple[dict[str, float], int]:
    """What the pairs say, with what kept them waiting, and the relay's largest RSS in KiB."""
    peak = 0
    with subprocess.Popen(
        load, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        # The pairs log in first: what is measured is what they notice, not whether the crowd lets them in.
        ends = time.monotonic() + RUN_S
        while metrics_of_relay()["derp_current_connections"] < 2 * PAIRS and driver.poll() is None:
            if time.monotonic() > ends:
                raise TimeoutError("the pairs do not log in")
            time.sleep(0.05)
        time.sleep(CALM_S)
        waits = Waits(relay.pid, driver.pid)
        for kind in kinds:
            kind.process.start()
        while driver.poll() is None:
            waits.look()
            peak = max(peak, relay.rss_kib())
            time.sleep(0.1)
        out, err = driver.communicate()
    if driver.returncode != 0:
        raise OSError(f"the pairs: {err[-1000:]}")
    return derived(json.loads(out)) | waits.said(), peak


def run(seconds: float, scale: float, folder: Path, *, is_realtime: bool) -> dict[str, Any]:
    """Alone, then abused; the figures and which targets hold."""
    (folder / "relay.toml").write_text(f'[derp]\nmetrics = "{HOST}:{METRICS_PORT}"\n')
    relay = Relay("meshnode", folder, options=("--log-level", "error", "--config", str(folder / "relay.toml")))
    legitimate = [NodePrivate(os.urandom(32)) for _ in range(2 * PAIRS)]
    known = [NodePrivate(os.urandom(32)) for _ in range(6)]
    allowed = folder / "allowed"
    allowed.write_text("".join(f"{key.public()}\n" for key in [*legitimate, *known]))
    relay.options = (*relay.options, "--allow-keys", str(allowed))
    relay.start()
    try:
        logins = folder / "logins"
        logins.write_bytes(b"".join(login_of(relay.key, key) for key in legitimate))
        argv = [str(BUILT / "relay_load"), HOST, str(relay.port), str(logins), "open", f"pairs={PAIRS}", f"rate={RATE}"]
        if is_realtime:
            argv = ["chrt", "-f", "10", *argv]
            os.sched_setscheduler(int(packet_thread(relay.pid).name), os.SCHED_FIFO, os.sched_param(10))
        load = [*argv, "size=1280", f"seconds={seconds:.0f}", f"pid={relay.pid}"]
        alone = under_abuse(load, relay, [])[0]
        kinds = [Abuse(relay, known, scale, name) for name in KINDS]
        abused, peak = under_abuse(load, relay, kinds)
        ends = time.monotonic() + GONE_TARGET_S
        while any(k.process.is_alive() for k in kinds if k.kind in ENDS) and time.monotonic() < ends:
            time.sleep(0.1)
        for kind in kinds:
            kind.stop.set()
        said = {kind.kind: kind.result() for kind in kinds}
        counted = metrics_of_relay()
    finally:
        relay.close()
    return judged(alone, abused, said, counted, peak / 1024)


def judged(
    alone: dict[str, float],
    abused: dict[str, float],
    said: dict[str, dict[str, Any]],
    counted: dict[str, float],
    peak_mib: float,
) -> dict[str, Any]:
    cap = BASE_MIB + MEMORY_MIB + sum(said[kind]["count"] for kind in ENDS) * CLIENT_KIB / 1024
    share = abused["per_s"] / alone["per_s"]
    more = abused["p99_us"] - alone["p99_us"]
    gone = max((about.get("gone_s", 0.0) for about in said.values()), default=0.0)
    are_gone = "gone_s" in said["deaf"] and not any(about.get("left") for about in said.values())
    logins = sorted(said["newcomers"].pop("logins_s"))
    return {
        "alone": alone,
        "abused": abused,
        "abusers": said,
        "newcomers": {
            "refused": said["newcomers"].get("refused", 0),
            "median_s": statistics.median(logins) if logins else None,
            "longest_s": max(logins, default=None),
        },
        "relay": {name: value for name, value in counted.items() if value and "sent" not in name},
        "targets": {
            "share of the rate": [share, share >= RATE_TARGET],
            "p99 more, µs": [more, more <= P99_TARGET_US],
            "legitimate ones cut off": [abused["gone"], abused["gone"] == 0],
            "peak RSS, MiB": [peak_mib, peak_mib <= cap],
            "gone within, s": [gone, are_gone and gone <= GONE_TARGET_S],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="programs that only burn processor time")
    parser.add_argument("--realtime", action="store_true", help="the relay's thread and the pairs go before all else")
    options = parser.parse_args()
    enter_namespace()
    subprocess.run(["make", "-s", "-C", str(NATIVE), "bench"], check=True)
    with tempfile.TemporaryDirectory(prefix="mn-relay-abuse-") as folder, busy(options.busy):
        outcome = run(options.seconds, options.scale, Path(folder), is_realtime=options.realtime)
    for name, (value, holds) in outcome["targets"].items():
        say(f"{'holds' if holds else 'FALLS SHORT':11} {name}: {value:.3f}")
    json.dump(outcome, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
