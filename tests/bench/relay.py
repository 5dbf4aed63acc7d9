"""The relay beside derper: frames per second and per CPU second, overload, latency, memory, connects, in one run.

    python -m tests.bench.relay [--rounds 3] [--seconds 2] [--drivers c,stock] [--parts rows,overload,…] > out.json

Needs root (it lives in a network namespace of its own, where TCP is cubic), the built peers
(`python -m interop.build && python -m interop.build derp_load`) and gcc. TLS 1.3 throughout. Relays:

meshnode   `meshnode derp --self-signed --open`
derper     the stock relay
yardstick  native/tests/bench_relay: the least that any relay has to do, in C with libssl; for driver c only

Drivers, each one process that holds both clients of every pair:

c          native/tests/relay_load: frames batched into records of 16 KiB
stock      interop/go/derp_load: stock derphttp clients, a record and a write per frame

Parts:

rows       1, 10, 200 pairs × 64, 1280, 8192 bytes × 1, 8, 64 frames in flight: `per_s`, `gbit_s`, `per_cpu_s`
           (frames per CPU second of the relay), `cpu_s_per_gib`, one-way p50 and p99 in µs
overload   offered three times what the closed loop reached; `delivered` is the share of that
latency    offered half of what derper's closed loop reached, to every relay alike, evenly spaced; p50 and p99 in µs
           from when a packet was meant to leave, so that a relay or driver that falls behind shows
idle       RSS per idle client in KiB at 1 000 and 10 000
connects   connect + TLS + login + close, per second and per CPU second of the relay; no session is resumed

A round measures each row at every relay in turn, the order turned round each time; figures are medians over rounds.
`--lock FILE` holds a flock around each row of a round, where several such programs share a machine. The relays'
CPU time is their process's own, by its clock, which the scheduler keeps in nanoseconds; on the loopback it contains the
kernel's receiving at the other end of each send. Where other work shares the cores, rates suffer and CPU seconds less.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop.build import binary
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.wire import derp

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native/tests"
BUILT = NATIVE / "build/plain"
HOST = "127.0.0.1"
INSIDE = "MESHNODE_BENCH_RELAY_INSIDE"
PARTS = ("rows", "overload", "latency", "idle", "connects")
RELAYS = ("meshnode", "derper", "yardstick")
PAIRS, SIZES, FLIGHTS = (1, 10, 200), (64, 1280, 8192), (1, 8, 64)
CROWDS = (1000, 10000)
READY_S = 20.0
RUN_S = 120.0
ROW_TARGET, MOST_TARGET, CEILING_TARGET = 2.0, 2.5, 0.6
OVERLOAD_TARGET, IDLE_TARGET_KIB = 0.8, 24.0

Figures = dict[str, float]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def enter_namespace() -> None:
    """Start this program again in a network namespace of its own; returns there."""
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "dev", "lo", "up"], check=True)
        Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("cubic")
        return
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.orig_argv[1:]])


# --- relays ---


@dataclass
class Relay:
    """A relay of some make as a process on the loopback."""

    name: str
    folder: Path
    popen: subprocess.Popen[str] = field(init=False)
    port: int = 0
    key: NodePublic | None = None
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def start(self) -> Relay:
        self.folder.mkdir(parents=True, exist_ok=True)
        {"meshnode": self._meshnode, "derper": self._derper, "yardstick": self._yardstick}[self.name]()
        return self

    @property
    def pid(self) -> int:
        return self.popen.pid

    def _run(self, argv: list[str]) -> None:
        with (self.folder / "err").open("wb") as err:
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
                start_new_session=True,  # a service has its own share of the processors, as the scheduler sees it
            )

    def _line(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise OSError(f"{self.name} ended: {(self.folder / 'err').read_text()[-2000:]}")
        return line

    def _meshnode(self) -> None:
        argv = [sys.executable, "-m", "meshnode", "derp", "--listen", f"{HOST}:0", "--stun", "off", "--host", HOST]
        self._run([*argv, "--dir", str(self.folder), "--self-signed", *(self.options or ("--open",))])
        found = re.match(r"ready \S+:(\d+) (\S+)", self._line())
        assert found
        self.port, self.key = int(found[1]), NodePublic.parse(found[2])

    def _derper(self) -> None:
        self.port = 3340
        argv = [str(binary("tailscale", "derper")), "-a", f"{HOST}:{self.port}", "-http-port", "-1", "-stun=false"]
        argv += ["-c", str(self.folder / "key"), "-certmode", "manual", "-certdir", str(self.folder)]
        self._run([*argv, "-hostname", HOST, *self.options])
        url, by = f"https://{HOST}:{self.port}/generate_204", time.monotonic() + READY_S
        while subprocess.run(["curl", "-skf", url], check=False).returncode != 0:
            if time.monotonic() > by:
                raise OSError(f"derper does not answer: {(self.folder / 'err').read_text()[-2000:]}")
            time.sleep(0.05)
        kept = json.loads((self.folder / "key").read_text())
        self.key = NodePrivate(bytes.fromhex(kept["PrivateKey"].removeprefix("privkey:"))).public()

    def _yardstick(self) -> None:
        from meshnode.relay import identity

        pem = self.folder / "chain-and-key.pem"
        pem.write_bytes(identity.self_signed(self.folder, (HOST,)))
        self._run([str(BUILT / "bench_relay"), str(pem), str(pem)])
        self.port, self.key = int(self._line()), NodePrivate(os.urandom(32)).public()

    def rss_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ProcessLookupError(self.pid)

    def logins(self, count: int) -> Path:
        """A file of clients for relay_load."""
        path = self.folder / f"logins-{count}"
        if path.exists():
            return path
        with path.open("wb") as out:
            for _ in range(count):
                out.write(login_of(self.key, NodePrivate(os.urandom(32))))
        return path

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()


def login_of(relay: NodePublic | None, private: NodePrivate) -> bytes:
    """One client as relay_load reads it. It does not promise to answer pings: it would not."""
    login = derp.ClientLogin(private)
    login.server = relay
    frame = login.create_client_info(os.urandom(derp.NONCE_LEN), can_ack_pings=False)
    return private.public().raw + len(frame).to_bytes(2, "big") + frame


# --- drivers ---


def by_c(relay: Relay, mode: str, **numbers: float) -> Figures:
    clients = int(numbers.get("pairs", 1)) * 2 if mode != "churn" else int(numbers["at_once"])
    words = [f"{name}={number:.0f}" for name, number in numbers.items()]
    argv = [str(BUILT / "relay_load"), HOST, str(relay.port), str(relay.logins(max(2, clients))), mode]
    return run_driver([*argv, *words, f"pid={relay.pid}"])


def by_stock(relay: Relay, mode: str, **numbers: float) -> Figures:
    words = [f"-{name}={number:.0f}" for name, number in numbers.items()]
    argv = [str(binary("derp_load", "derp-load")), f"-host={HOST}", f"-port={relay.port}"]
    return run_driver([*argv, *words, f"-pid={relay.pid}"])


DRIVERS: dict[str, Callable[..., Figures]] = {"c": by_c, "stock": by_stock}


def run_driver(argv: list[str]) -> Figures:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode != 0:
        raise OSError(f"`{' '.join(argv[:5])}…` failed: {done.stderr[-1000:]}")
    return derived(json.loads(done.stdout))


def derived(said: dict[str, Any]) -> Figures:
    figures = {name: float(value) for name, value in said.items()}
    cpu, frames = figures.get("cpu_s", 0.0), figures.get("frames", figures.get("connects", 0.0))
    if cpu > 0:
        figures["per_cpu_s"] = frames / cpu
    if figures.get("gbit_s"):
        figures["cpu_s_per_gib"] = cpu / (figures["gbit_s"] * figures["seconds"] / 8 * 1e9 / 2**30)
    return figures


# --- a run ---


class Run:
    """All relays under way, and what was measured of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.relays: dict[str, Relay] = {}
        self.samples: dict[str, dict[str, list[Figures]]] = {}

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        if not self.options.lock:
            yield
            return
        with open(self.options.lock, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def note(self, row: str, relay: str, figures: Figures) -> None:
        self.samples.setdefault(row, {}).setdefault(relay, []).append(figures)
        shown = " ".join(f"{k} {v:.4g}" for k, v in figures.items() if k in SHOWN)
        say(f"{row:34} {relay:10} {shown}")

    def median(self, row: str, relay: str, figure: str) -> float:
        values = [s[figure] for s in self.samples.get(row, {}).get(relay, []) if figure in s]
        return statistics.median(values) if values else 0.0

    def each(self, round_: int, row: str, measure: Callable[[Relay], Figures], but: str = "") -> None:
        names = [name for name in self.relays if name not in but.split(",")]
        with self.quiet():
            for name in names if round_ % 2 == 0 else reversed(names):
                try:
                    self.note(row, name, measure(self.relays[name]))
                except (OSError, subprocess.TimeoutExpired) as error:
                    say(f"{row:34} {name:10} FAILED: {error}")

    def rows(self) -> Iterator[tuple[str, str, int, int, int]]:
        chosen = (self.options.drivers.split(","), numbers(self.options.pairs), numbers(self.options.sizes))
        for driver, pairs, size, flight in itertools.product(*chosen, numbers(self.options.flights)):
            yield f"{driver} {pairs}x{flight} of {size}", driver, pairs, size, flight

    def measure_round(self, round_: int) -> None:
        parts, seconds = self.options.parts.split(","), self.options.seconds
        for row, driver, pairs, size, flight in self.rows():
            drive = DRIVERS[driver]
            words: dict[str, float] = {"pairs": pairs, "size": size, "seconds": seconds}
            but = "" if driver == "c" else "yardstick"  # it knows no login, and stock clients look at its answer
            if "rows" in parts:
                self.each(round_, row, lambda r: drive(r, "closed", **words, flight=flight), but)  # noqa: B023
            if flight != FLIGHTS[-1] or size != 1280:
                continue
            if "overload" in parts:
                self.each(round_, f"{row} overload", lambda r: self.overload(r, drive, words, row), but)  # noqa: B023
            if "latency" in parts:
                rate = self.median(row, "derper", "per_s") / 2
                self.each(round_, f"{row} half load", lambda r: drive(r, "open", **words, rate=rate), but)  # noqa: B023
        if "connects" in parts:
            self.each(round_, "connects", lambda r: by_c(r, "churn", at_once=16, seconds=seconds), "yardstick")
        if "idle" in parts and round_ == 0:
            for crowd in CROWDS:
                self.each(round_, f"idle {crowd}", lambda r: self.idle(r, crowd), "yardstick")  # noqa: B023

    def overload(self, relay: Relay, drive: Callable[..., Figures], words: dict[str, float], row: str) -> Figures:
        capacity = self.median(row, relay.name, "per_s")
        if not capacity:
            raise OSError("its capacity is not known: measure `rows` too")
        figures = drive(relay, "open", **words, rate=3 * capacity)
        return {**figures, "delivered": figures["per_s"] / capacity}

    def idle(self, relay: Relay, crowd: int) -> Figures:
        """RSS of a fresh relay before and with a crowd that has logged in and says nothing."""
        fresh = Relay(relay.name, self.folder / f"{relay.name}-{crowd}")
        relay.close()  # the port may be fixed
        fresh.start()
        try:
            # One client comes and goes first: what a relay needs but once is no cost of a client.
            by_c(fresh, "churn", at_once=2, seconds=1)
            before = fresh.rss_kib()
            argv = [str(BUILT / "relay_load"), HOST, str(fresh.port), str(fresh.logins(crowd)), "idle"]
            with subprocess.Popen(
                [*argv, f"count={crowd}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as load:
                assert load.stdin is not None and load.stdout is not None
                said = json.loads(load.stdout.readline() or "{}")
                if not said:
                    raise OSError("the crowd was not let in")
                time.sleep(1.0)  # what logins left behind is freed
                figures = {"kib_per_client": (fresh.rss_kib() - before) / crowd, "per_s": crowd / said["seconds"]}
                load.stdin.close()
            return figures
        finally:
            fresh.close()
            relay.start()

    def verdicts(self) -> dict[str, dict[str, Any]]:
        """Each target: what it is, what came, whether it holds."""
        out: dict[str, dict[str, Any]] = {}

        def judge(name: str, value: float, bound: float, at_least: bool = True) -> None:
            holds = value >= bound if at_least else value <= bound
            out[name] = {"value": round(value, 3), "bound": bound, "holds": holds}

        ratios: list[float] = []
        for row, driver, *_ in self.rows():
            ours, theirs, ideal = [self.median(row, name, "per_cpu_s") for name in RELAYS]
            if ours and theirs:
                ratios.append(ours / theirs)
                judge(f"{row}: frames per CPU second ÷ derper", ours / theirs, ROW_TARGET)
            if ours and ideal and driver == "c":
                judge(f"{row}: ÷ yardstick", ours / ideal, CEILING_TARGET)
            over = f"{row} overload"
            if over in self.samples:
                judge(over, self.median(over, "meshnode", "delivered"), OVERLOAD_TARGET)
            half = f"{row} half load"
            if half in self.samples:
                ours, theirs = [self.median(half, name, "p99_us") for name in RELAYS[:2]]
                judge(f"{half}: p99 ÷ derper", ours / theirs if theirs else 0.0, 1.0, at_least=False)
        if ratios:
            judge("median row ÷ derper", statistics.median(ratios), MOST_TARGET)
        for crowd in CROWDS:
            if f"idle {crowd}" in self.samples:
                kib = self.median(f"idle {crowd}", "meshnode", "kib_per_client")
                judge(f"idle {crowd}: KiB per client", kib, IDLE_TARGET_KIB, at_least=False)
        return out


SHOWN = ("per_s", "gbit_s", "per_cpu_s", "p50_us", "p99_us", "delivered", "kib_per_client", "lost", "skipped", "failed")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--drivers", default="c,stock")
    parser.add_argument("--relays", default=",".join(RELAYS))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--pairs", default=",".join(map(str, PAIRS)))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--flights", default=",".join(map(str, FLIGHTS)))
    parser.add_argument("--lock", default="")
    options = parser.parse_args()
    enter_namespace()
    subprocess.run(["make", "-s", "-C", str(NATIVE), "bench"], check=True)
    folder = Path(tempfile.mkdtemp(prefix="mn-bench-relay-"))
    run = Run(options, folder)
    try:
        for name in options.relays.split(","):
            run.relays[name] = Relay(name, folder / name).start()
        for round_ in range(options.rounds):
            run.measure_round(round_)
    finally:
        for relay in run.relays.values():
            relay.close()
        shutil.rmtree(folder, ignore_errors=True)
    medians = {
        row: {name: {k: run.median(row, name, k) for k in samples[0]} for name, samples in relays.items()}
        for row, relays in run.samples.items()
    }
    verdicts = run.verdicts()
    for name, verdict in verdicts.items():
        outcome = "holds" if verdict["holds"] else "FALLS SHORT"
        say(f"{outcome:11} {name}: {verdict['value']} (target {verdict['bound']})")
    json.dump({"rows": medians, "targets": verdicts}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
