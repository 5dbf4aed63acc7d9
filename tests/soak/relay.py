"""A relay at full load for long: is its memory flat, and are the sanitizers silent?

    python -m tests.soak.relay --minutes 61 > out.json
    python -m tests.soak.relay --minutes 10 --sanitize > out.json

Needs root (a network namespace of its own) and gcc. `meshnode derp --self-signed --open` in a process, and three kinds
of clients from native/tests/relay_load, all along: pairs that keep 64 packets of 1280 bytes under way, logins one after
another under keys that change, and crowds of pairs that come, speak for seconds and go. Every ten seconds: resident
memory, descriptors and the relay's own counters. At the end it is told to stop and must end well.

Memory is judged by its slope over the second half, by least squares; --sanitize builds the relay under
AddressSanitizer and UBSan beside the tree, in a folder of its own, and judges their silence instead: a finding ends
the relay. Leaks are not looked for there, Python keeps what it likes. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.relay import BUILT, HOST, NATIVE, ROOT, Relay, enter_namespace, say

EVERY_S = 10.0
STOP_S = 30.0
PAIRS, FLIGHT, SIZE = 12, 64, 1280
AT_ONCE, KEYS = 2, 2000
"""Logins under way in the stream, and how many keys they come with."""
CROWD, CROWD_S = 20, 3
METRICS = f"{HOST}:9443"
KEPT = {
    "logins": "meshnode_derp_logins",
    "packets_sent": "derp_packets_sent",
    "bytes_sent": "derp_bytes_sent",
    "clients": "derp_current_connections",
    "connections": "meshnode_derp_connections",
    "queue_chunks": "meshnode_derp_queue_chunks",
    "gone_frames": "derp_peer_gone_disconnected_frames",
    "stalled": "derp_sclient_write_timeouts",
    "protocol_errors": "meshnode_derp_protocol_errors",
}
FLAT_KIB_PER_HOUR = 512.0
MARKS = ("AddressSanitizer", "runtime error:", "LeakSanitizer")

Sample = dict[str, float]


def sanitized(folder: Path) -> dict[str, str]:
    """A relay built for hunting bugs, in `folder`; the environment in which it runs."""
    shutil.copytree(ROOT / "meshnode", folder / "meshnode", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    environment = {**os.environ, "MESHNODE_SANITIZE": "address,undefined"}
    subprocess.run([*command, "--build-temp", str(folder / "objects")], cwd=ROOT, env=environment, check=True)
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "PYTHONPATH": str(folder),
        "PYTHONSAFEPATH": "1",
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def slope_per_hour(samples: Sequence[Sample], name: str) -> float:
    """Of `name` against time, by least squares."""
    count = len(samples)
    if count < 2:
        return 0.0
    mean_s = sum(s["at_s"] for s in samples) / count
    mean = sum(s[name] for s in samples) / count
    spread = sum((s["at_s"] - mean_s) ** 2 for s in samples)
    return 3600 * sum((s["at_s"] - mean_s) * (s[name] - mean) for s in samples) / spread


class Soak:
    """One relay, its clients, and what was seen of it."""

    def __init__(self, relay: Relay, seconds: float, seed: int) -> None:
        self.relay = relay
        self.seconds = seconds
        self.chance = random.Random(seed)
        self.samples: list[Sample] = []
        self.errors: list[str] = []
        self.outcomes: dict[str, Any] = {}
        self.crowds = 0
        self._loads: dict[str, subprocess.Popen[str]] = {}

    def load(self, name: str, mode: str, seconds: float, keys: int, **numbers: int) -> None:
        """One relay_load; the last of this name is over by then. keys: how many, its own."""
        argv = [str(BUILT / "relay_load"), HOST, str(self.relay.port), str(self.relay.logins(keys)), mode]
        argv += [f"seconds={max(1, round(seconds))}", *(f"{key}={value}" for key, value in numbers.items())]
        self._loads[name] = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def collect(self) -> None:
        """Loads that have ended: what they say, and the next crowd."""
        for name, load in list(self._loads.items()):
            if load.poll() is None:
                continue
            said, complaint = load.communicate()
            del self._loads[name]
            if load.returncode != 0:
                self.errors.append(f"{name}: {complaint.strip()}")
            elif name != "crowd":
                self.outcomes[name] = json.loads(said)

    def sample(self, at_s: float) -> None:
        """Memory, descriptors and counters now."""
        status = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{self.relay.pid}/status").read_text().splitlines()
            if ":" in line
        )
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=STOP_S) as answer:
            page = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
        self.samples.append(
            {
                "at_s": round(at_s, 1),
                "rss_kib": float(status["VmRSS"].split()[0]),
                "anonymous_kib": float(status["RssAnon"].split()[0]),
                "descriptors": float(len(os.listdir(f"/proc/{self.relay.pid}/fd"))),
                **{name: float(page[key]) for name, key in KEPT.items()},
            }
        )

    def run(self) -> None:
        """Load it until time is up."""
        began = time.monotonic()
        self.load("pairs", "closed", self.seconds, 2 * PAIRS, pairs=PAIRS, size=SIZE, flight=FLIGHT)
        self.load("stream", "churn", self.seconds, KEYS, at_once=AT_ONCE)
        at_s = next_s = 0.0
        while at_s < self.seconds and self.relay.popen.poll() is None:
            self.collect()
            if "crowd" not in self._loads and at_s < self.seconds - 2 * CROWD_S:
                size = self.chance.choice((64, 1280, 8192, 65000))
                self.load("crowd", "closed", CROWD_S, 2 * CROWD, pairs=CROWD, size=size, flight=8)
                self.crowds += 1
            if at_s >= next_s:
                self.sample(at_s)
                last = self.samples[-1]
                told = f"{last['rss_kib']:.0f} KiB  {last['packets_sent']:.3e} packets  {last['logins']:.0f} logins"
                say(f"{at_s:6.0f} s  {told}")
                next_s += EVERY_S
            time.sleep(0.2)
            at_s = time.monotonic() - began
        if self.relay.popen.poll() is None:
            self.sample(at_s)
        self.end()

    def end(self) -> None:
        """Clients first, then the relay, which must end well."""
        by = time.monotonic() + STOP_S
        while self._loads and time.monotonic() < by:
            self.collect()
            time.sleep(0.1)
        for name, load in self._loads.items():
            load.kill()
            self.errors.append(f"{name}: not over {STOP_S:.0f} s after its time")
        if self.relay.popen.poll() is None:
            self.relay.popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.relay.popen.wait(STOP_S)
        if self.relay.popen.returncode != 0:
            self.errors.append(f"the relay ended with {self.relay.popen.returncode}")
        told = (self.relay.folder / "err").read_text(errors="replace")
        if any(mark in told for mark in MARKS):
            self.errors.append(told[-8000:])

    def verdict(self, judges_memory: bool) -> dict[str, Any]:
        """Slopes, and whether all is well."""
        half = [s for s in self.samples if s["at_s"] >= self.seconds / 2]
        last: Sample = self.samples[-1] if self.samples else {}
        slope = slope_per_hour(half, "rss_kib")
        is_flat = len(half) > 1 and slope <= FLAT_KIB_PER_HOUR
        return {
            "seconds": last.get("at_s", 0.0),
            "packets": last.get("packets_sent", 0.0),
            "logins": last.get("logins", 0.0),
            "crowds": self.crowds,
            "rss_kib_first_middle_last": [s["rss_kib"] for s in (self.samples[0], half[0], half[-1])] if half else [],
            "kib_per_hour_second_half": round(slope, 1),
            "kib_per_hour_all": round(slope_per_hour(self.samples, "rss_kib"), 1),
            "errors": self.errors,
            "holds": not self.errors and (is_flat or not judges_memory),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=61.0)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    enter_namespace()
    subprocess.run(["make", "-s", "-C", str(NATIVE), "bench"], check=True)
    with tempfile.TemporaryDirectory(prefix="mn-soak-relay-") as name:
        folder = Path(name)
        relay = Relay("meshnode", folder / "relay", options=("--open", "--metrics", METRICS))
        if options.sanitize:
            relay.environment = sanitized(folder / "sanitized")
        relay.start()
        soak = Soak(relay, options.minutes * 60, options.seed)
        try:
            soak.run()
        finally:
            relay.close()
    verdict = soak.verdict(judges_memory=not options.sanitize)
    say(json.dumps(verdict, indent=1))
    json.dump({"verdict": verdict, "loads": soak.outcomes, "samples": soak.samples}, sys.stdout, indent=1)
    print()
    sys.exit(0 if verdict["holds"] else 1)


if __name__ == "__main__":
    main()
