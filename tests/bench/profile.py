"""Where each nanosecond of a packet goes: one stream between two nodes of ours, under perf.

    python -m tests.bench.profile [--seconds 3] [--row one|eight|pinned] [--lock FILE] > profile.json

Needs root, the built peers and `perf`. Both processes of the `meshnode` pair of tests.bench.tunnel are sampled with
call stacks while one upload runs; every sample is put into one stage by its stack, innermost rule first, and a
stage's share of the samples becomes nanoseconds of CPU per data packet of the run. `node` is the engine's thread,
`app` what the program at that end spends on its side of the socketpair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from interop.bed import make_bed
from interop.lab import Lab
from tests.bench.tunnel import ROWS, Pair, be_direct, cpu_s, held, make_meshnode

HERTZ = 2999
LEAD_S = 0.4
"""Left out at the start and the end: the threads that are sampled must be there, and the stream at its pace."""
KERNEL_CALLS = (
    # innermost first: what runs in a softirq is the other node's receiving kernel, though on this thread's time
    ("handle_softirqs", "kernel: receive softirq, of the other side's packets"),
    ("__do_softirq", "kernel: receive softirq, of the other side's packets"),
    ("unix_stream_sendmsg", "kernel: write to the socketpair"),
    ("unix_stream_read_generic", "kernel: read from the socketpair"),
    ("sendmmsg", "kernel: UDP send (GSO)"),
    ("recvmmsg", "kernel: UDP receive (GRO)"),
    ("epoll", "kernel: epoll"),
    ("sched_yield", "kernel: yield between looks"),
    ("schedule", "kernel: switching threads"),
)
CHECKSUMS = ("copy_wide", "add_wide", "mn_csum", "fold", "__memmove", "__memcpy", "memcpy")


def stage_of(frames: list[tuple[str, str]]) -> str:
    """frames: (symbol, object), innermost first."""
    symbol, where = frames[0]
    if "kernel" in where or where == "[unknown]" or symbol.startswith("__x64_sys"):
        for name, stage in KERNEL_CALLS:
            if any(name in s for s, _ in frames):
                return stage
        return "kernel: interrupts and the rest"
    if any("libcrypto" in w for _, w in frames[:4]):
        return "AEAD (libcrypto, through EVP)"
    if "libc.so" in where and "str" in symbol:
        return "AEAD (libcrypto, through EVP)"  # names of its parameters
    if any(symbol.startswith(name) for name in CHECKSUMS):
        return "copies and checksums"
    if "_native" in where:
        return "engine: WireGuard, IP, TCP, bridge"
    if "python" in where or "loop." in where:
        return "interpreter and event loop"
    return "other"


def samples(path: Path) -> Counter[tuple[str, str]]:
    """(thread kind, stage) → count."""
    words = ["perf", "script", "-i", str(path), "-F", "comm,ip,sym,dso", "--no-inline"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    counts: Counter[tuple[str, str]] = Counter()
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.strip()]
        if len(lines) < 2:
            continue
        frames = []
        for line in lines[1:]:
            _, _, rest = line.strip().partition(" ")
            symbol, _, where = rest.rpartition(" (")
            frames.append((symbol, where.rstrip(")")))
        who = "node" if "meshnode-io" in lines[0] else "app"
        counts[who, stage_of(frames)] += 1
    return counts


def table(counts: Counter[tuple[str, str]], ns_per_packet: float) -> dict[str, dict[str, int]]:
    whole = sum(counts.values())
    out: dict[str, dict[str, int]] = {}
    for (who, stage), count in counts.most_common():
        ns = round(ns_per_packet * count / whole)
        if ns:
            out.setdefault(who, {})[stage] = ns
    return {who: {"sum": sum(stages.values()), **stages} for who, stages in out.items()}


def record(pair: Pair, folder: Path, row: str, seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    pids = {"sender": pair.a.pid, "receiver": pair.b.pid}
    stats = [end.ask("stats")["stats"] for end in (pair.a, pair.b)]
    worker = threading.Thread(target=lambda: result.update(pair.measure(row, seconds)))
    cpu = {name: cpu_s([pid]) for name, pid in pids.items()}
    worker.start()
    time.sleep(LEAD_S)
    recorders = []
    for name, pid in pids.items():
        words = ["perf", "record", "-q", "-F", str(HERTZ), "-g", "-o", str(folder / name), "-p", str(pid)]
        words += ["--", "sleep", str(seconds - 2 * LEAD_S)]
        recorders.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    worker.join()
    cpu = {name: cpu_s([pid]) - cpu[name] for name, pid in pids.items()}
    for recorder in recorders:
        recorder.wait(30)
    after = [end.ask("stats")["stats"] for end in (pair.a, pair.b)]
    sent, got = ({k: b[k] - a[k] for k in b} for a, b in zip(stats, after, strict=True))
    packets = sent["udp_tx_datagrams"]
    return {
        "gbit_s": round(result["gbit_s"], 2),
        "core_s_per_gbit": round(result["core_s"], 3),
        "data_packets": packets,
        "datagrams_per_send": round(packets / sent["udp_tx_calls"], 1),
        "datagrams_per_received_buffer": round(got["udp_rx_datagrams"] / max(1, got["udp_rx_buffers"]), 1),
        "kib_per_app_read": round(sent["app_bytes_in"] / max(1, sent["app_reads"]) / 1024, 1),
        "kib_per_app_write": round(got["app_bytes_out"] / max(1, got["app_writes"]) / 1024, 1),
        "packets_per_ack": round(packets / max(1, got["udp_tx_datagrams"]), 1),
        "ns_per_packet": {
            name: table(samples(folder / name), cpu[name] / packets * 1e9) for name in ("sender", "receiver")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--row", choices=[r for r in ROWS if r in ("one", "eight", "pinned")], default="one")
    parser.add_argument("--lock", default="", help="flock this file while measuring")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mn-profile-") as name, Lab(Path(name)) as lab:
        pair = make_meshnode(make_bed(lab), lab.host("a"), lab.host("b"))
        try:
            be_direct(pair)
            with held(options.lock):
                print(json.dumps(record(pair, Path(name), options.row, options.seconds), indent=1, ensure_ascii=False))
        finally:
            pair.close()


if __name__ == "__main__":
    main()
