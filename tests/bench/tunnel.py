"""The tunnel beside its peers: rates, latencies, connections per second, CPU and memory, in one run.

    python -m tests.bench.tunnel [--rounds 5] [--seconds 2] [--rows …] [--peers …] > out.json

Needs root, the built peers (`python -m interop.build && python -m interop.build tsnet_bench`), uvloop and gcc.
Every peer is a pair of nodes in two namespaces on one bridge that see each other directly, MTU 1280; all share
this machine's cores. A round measures each row at every peer in turn, the order turned round each time; figures
are medians over rounds. Peers:

meshnode       two processes with a Node each: node.listen, node.connect (ends.py: uvloop)
meshnode_tun   two `meshnode up --tun` with kernel TCP (cubic)
tsnet          two processes of interop/go/tsnet_bench, each a tsnet server
tailscaled     two `tailscaled --tun=userspace-networking`, dialled through SOCKS5
tailscaled_tun two `tailscaled --tun` with kernel TCP (cubic)
wireguard_go   two wireguard-go with TUN and kernel TCP (cubic)
boringtun      the same with boringtun-cli
mitmproxy      wireguard-go → mitmproxy_rs (it serves only): `--mitmproxy DIR`, where
               `pip install --no-deps --target DIR mitmproxy_rs` has put it
yardstick      native/tests/bench_ceiling: sealing, segmentation, coalescing, opening; no TCP

Rows (each lasts --seconds):

one, eight     upload on 1 and 8 streams, Gbit of payload per second from the receiver's first byte to its last;
               with core-seconds per Gbit of all processes (`core_s`) and of the nodes alone where these are not
               the programs that use them (`node_core_s`), the peak RSS of either node (`rss_mib`), and what the
               least served of eight streams moved as a part of the most served (`least_of_most`)
bidi           one stream each way at once, sum
echo1, echo64  one byte there and back on 1 and 64 connections, µs, p50 and p99 over all
churn          connect + one echoed byte + close, one after the other, per second
pinned         `one` with every process of the pair on CPU 0
idle           RSS of a node before its first connection

Every byte is counted at both ends and samples are compared with what was sent; a run whose counts differ is an
error, not a figure. `--lock FILE` holds a flock around each row of a round, where several such programs share
a machine.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop.bed import Bed, make_bed
from interop.build import binary
from interop.lab import Host, Lab, LabError, until
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import SOCKS5, Tailscaled
from interop.peers.wireguard import Wireguard, key_pair

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENDS = HERE / "ends.py"
PORT = 9000
ROWS = ("idle", "one", "eight", "bidi", "echo1", "echo64", "churn", "pinned")
PEERS = (
    "meshnode", "meshnode_tun", "tsnet", "tailscaled", "tailscaled_tun", "wireguard_go", "boringtun", "mitmproxy",
    "yardstick",
)  # fmt: skip
STREAMS = {"one": 1, "eight": 8, "pinned": 1}
IDLE_S = 3.0
ANSWER_S = 60.0
TARGETS = {
    "one ÷ tsnet, at least": ("one", "gbit_s", "tsnet", 1.6),
    "eight ÷ tsnet, at least": ("eight", "gbit_s", "tsnet", 2.2),
    "core-s per Gbit ÷ tsnet, at most": ("one", "core_s", "tsnet", -0.55),
    "pinned ÷ yardstick pinned, at least": ("pinned", "gbit_s", "yardstick", 0.45),
    "one ÷ yardstick, towards": ("one", "gbit_s", "yardstick", 0.8),
    "echo p50 ÷ tsnet, at most": ("echo1", "p50", "tsnet", -0.75),
    "echo p99 ÷ tsnet, at most": ("echo1", "p99", "tsnet", -1.0),
    "echo p50, 64 connections, ÷ tsnet, at most": ("echo64", "p50", "tsnet", -0.75),
    "echo p99, 64 connections, ÷ tsnet, at most": ("echo64", "p99", "tsnet", -1.0),
    "connect+echo+close ÷ tsnet, at least": ("churn", "per_s", "tsnet", 1.5),
    "peak RSS under 8 streams, MiB, at most": ("eight", "rss_mib", "", -64.0),
    "idle RSS, MiB, at most": ("idle", "rss_mib", "", -40.0),
}
"""Row, figure, whom it is divided by ('': nobody), bound (negative: at most)."""

Figures = dict[str, float]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- processes ---


class End:
    """A driver program in a namespace: one command, one answer."""

    def __init__(self, host: Host, label: str, argv: list[str], **environment: str) -> None:
        self.label = f"{host.name}/{label}"
        self.log = host.lab.folder / f"{host.name}-{label}.err"
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **host.lab.environment, **environment}
        with self.log.open("wb") as err:
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *host.enter(argv)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env=variables,
                text=True,
                bufsize=1,
            )
        self.address = str(self.read(ANSWER_S)["ready"])

    @property
    def pid(self) -> int:
        return self.popen.pid

    def tell(self, do: str, **more: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"do": do, **more}) + "\n")

    def read(self, timeout_s: float) -> dict[str, Any]:
        """The next answer; LabError when it is an error, or none comes."""
        assert self.popen.stdout is not None
        while select.select([self.popen.stdout], [], [], timeout_s)[0]:
            line = self.popen.stdout.readline()
            if not line.startswith("{"):
                if not line:
                    break
                continue
            answer = dict(json.loads(line))
            if "error" in answer:
                raise LabError(f"{self.label}: {answer['error']}")
            return answer
        raise LabError(f"{self.label}: no answer within {timeout_s:g} s\n{self.log.read_text()[-2000:]}")

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        self.tell(do, **more)
        return self.read(ANSWER_S + float(more.get("seconds", 0)))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self.popen.stdin is not None
            self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(3)
        self.popen.kill()
        self.popen.wait()


def cpu_s(pids: list[int]) -> float:
    """User and system seconds that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, name: str) -> float:
    """VmRSS or VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def forget_peak(pid: int) -> None:
    """Make VmHWM begin again at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def pin(pids: list[int], cpus: set[int]) -> None:
    """Every thread there is, and so every thread they start."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)


# --- pairs ---


@dataclass
class Pair:
    """Two ends and the nodes they use."""

    name: str
    a: End
    b: End
    nodes: list[int] = field(default_factory=list)
    """pids of the nodes where these are programs of their own."""
    address_a: str = ""
    address_b: str = ""
    is_one_way: bool = False

    @property
    def programs(self) -> list[int]:
        """The pids that hold a node."""
        return self.nodes or [self.a.pid, self.b.pid]

    @property
    def pids(self) -> list[int]:
        return list({self.a.pid, self.b.pid, *self.nodes})

    def words(self, *, back: bool = False, **more: Any) -> dict[str, Any]:
        return {"peer": self.address_a if back else self.address_b, "port": PORT, **more}

    # rows

    def measure(self, row: str, seconds: float) -> Figures:
        if row == "idle":
            return {"rss_mib": max(memory_mib(pid, "VmRSS") for pid in self.programs)}
        if row in ("one", "eight"):
            return self.upload(STREAMS[row], seconds)
        if row == "pinned":
            return self.pinned(seconds)
        if row == "bidi":
            return self.both_ways(seconds)
        if row == "churn":
            answer = self.a.ask("churn", **self.words(seconds=seconds))
            rate = answer["count"] / answer["seconds"]
            return {"per_s": rate, "p50": answer.get("p50", 0), "failures": answer["failures"]}
        answer = self.a.ask("echo", **self.words(streams=int(row.removeprefix("echo")), seconds=seconds))
        if not answer["count"]:
            raise LabError(f"{self.name}: no echo came back")
        return {k: float(answer[k]) for k in ("p50", "p99", "count", "failures")}

    def upload(self, streams: int, seconds: float) -> Figures:
        for pid in self.programs:
            forget_peak(pid)
        before, before_nodes = cpu_s(self.pids), cpu_s(self.nodes)
        answer = self.a.ask("upload", **self.words(streams=streams, seconds=seconds))
        rate, gbit = judge(self.name, answer["reports"])
        figures = {"gbit_s": rate, "core_s": (cpu_s(self.pids) - before) / gbit}
        if streams > 1:
            came = [report[1] for report in answer["reports"]]
            figures["least_of_most"] = min(came) / max(came)
        if self.nodes:
            figures["node_core_s"] = (cpu_s(self.nodes) - before_nodes) / gbit
        figures["rss_mib"] = max(memory_mib(pid, "VmHWM") for pid in self.programs)
        return figures

    def pinned(self, seconds: float) -> Figures:
        pin(self.pids, {0})
        try:
            return self.upload(1, seconds)
        finally:
            pin(self.pids, set(range(os.cpu_count() or 1)))

    def both_ways(self, seconds: float) -> Figures:
        if self.is_one_way:
            raise LabError(f"{self.name} can only be dialled")
        before = cpu_s(self.pids)
        self.a.tell("upload", **self.words(streams=1, seconds=seconds))
        self.b.tell("upload", **self.words(back=True, streams=1, seconds=seconds))
        there = judge(self.name, self.a.read(ANSWER_S)["reports"])
        back = judge(self.name, self.b.read(ANSWER_S)["reports"])
        return {"gbit_s": there[0] + back[0], "core_s": (cpu_s(self.pids) - before) / (there[1] + back[1])}

    def close(self) -> None:
        self.a.close()
        self.b.close()


def judge(name: str, reports: list[list[int]]) -> tuple[float, float]:
    """(Gbit/s, Gbit) of an upload; LabError when what came is not what was sent."""
    for sent, received, first, last, wrong in reports:
        if sent != received or wrong or not first < last:
            raise LabError(f"{name}: sent {sent}, received {received}, {wrong} samples wrong, {first}..{last} ns")
    gbit = sum(r[1] for r in reports) * 8 / 1e9
    seconds = (max(r[3] for r in reports) - min(r[2] for r in reports)) / 1e9
    return gbit / seconds, gbit


class Yardstick:
    """The ceiling: no pair, only a program."""

    name = "yardstick"

    def __init__(self) -> None:
        folder = ROOT / "native/tests"
        subprocess.run(["make", "-s", "-C", str(folder), "bench"], check=True)
        self.program = str(folder / "build/plain/bench_ceiling")

    def measure(self, row: str, seconds: float) -> Figures:
        words = {"one": [], "pinned": ["one"]}.get(row)
        if words is None:
            raise LabError("the yardstick has no such row")
        done = subprocess.run([self.program, str(seconds), *words], check=True, capture_output=True, text=True)
        said = json.loads(done.stdout)
        return {"gbit_s": said["gbit_per_s"], "core_s": said["core_s_per_gbit"], "lost": said["lost"]}

    def close(self) -> None:
        pass


# --- making pairs ---


def python(kind: str, where: str, *more: str) -> list[str]:
    return [sys.executable, "-P", str(ENDS), kind, where, *more, "--port", str(PORT)]


def warm(pair: Pair) -> Pair:
    """Until one upload works; the first packets between two nodes may go astray."""

    def works() -> bool:
        try:
            pair.a.ask("upload", **pair.words(streams=1, seconds=0.2))
            if not pair.is_one_way:
                pair.b.ask("upload", **pair.words(back=True, streams=1, seconds=0.1))
        except LabError as error:
            if pair.a.popen.poll() is not None or pair.b.popen.poll() is not None:
                raise
            say(f"{pair.name}: not yet ({error})")
            return False
        return True

    until(works, 60, f"{pair.name} carries bytes", interval_s=0.5)
    return pair


def be_direct(pair: Pair) -> Pair:
    """Ask both ends until their path is direct."""
    warm(pair)
    for end, back in ((pair.a, False), (pair.b, True)):
        until(
            lambda e=end, back=back: e.ask("direct", **pair.words(back=back))["direct"],  # type: ignore[misc]
            30,
            f"{pair.name}: {end.label} is direct",
            interval_s=0.2,
        )
    return pair


def self_addressed(pair: Pair) -> Pair:
    pair.address_a, pair.address_b = pair.a.address, pair.b.address
    return pair


def make_meshnode(bed: Bed, a: Host, b: Host) -> Pair:
    key, url = bed.headscale.key(ephemeral=True), bed.headscale.url
    ends = [End(h, "mesh", python("mesh", url, f"mesh-{h.name}"), MESHNODE_KEY=key) for h in (a, b)]
    return self_addressed(Pair("meshnode", ends[0], ends[1]))


def make_tsnet(bed: Bed, a: Host, b: Host) -> Pair:
    key, url = bed.headscale.key(ephemeral=True), bed.headscale.url
    ends = []
    for h in (a, b):
        argv = [str(binary("tsnet_bench", "tsnet-bench")), "-url", url, "-name", f"tsnet-{h.name}"]
        argv += ["-dir", str(h.folder / "tsnet"), "-port", str(PORT)]
        ends.append(End(h, "tsnet", argv, TS_AUTHKEY=key, TS_NO_LOGS_NO_SUPPORT="true"))
    return self_addressed(Pair("tsnet", ends[0], ends[1]))


def make_tailscaled(bed: Bed, a: Host, b: Host) -> Pair:
    key = bed.headscale.key()
    nodes = [Tailscaled(h, f"stock-{h.name}").start().up(bed.headscale.url, key) for h in (a, b)]
    ends = [End(h, "stock", python("kernel", "127.0.0.1", "--socks", SOCKS5)) for h in (a, b)]
    pids = [node.process.pid for node in nodes if node.process]
    pair = Pair("tailscaled", ends[0], ends[1], pids, nodes[0].addresses[0], nodes[1].addresses[0])
    nodes[0].wait_for_peer(nodes[1].name)
    nodes[0].wait_until_direct(nodes[1].name)
    return pair


def make_meshnode_tun(bed: Bed, a: Host, b: Host) -> Pair:
    key, url = bed.headscale.key(), bed.headscale.url
    nodes = [Meshnode(h, f"tun-{h.name}", url, key=key, socks5=False, extra=["--tun", "mesh0"]).start() for h in (a, b)]
    ends = [End(h, "tun", python("kernel", node.addresses[0])) for h, node in zip((a, b), nodes, strict=True)]
    pids = [node.running.pid for node in nodes]
    pair = Pair("meshnode_tun", ends[0], ends[1], pids, nodes[0].addresses[0], nodes[1].addresses[0])
    nodes[0].wait_for_peer(nodes[1].name)
    nodes[0].wait_until_direct(nodes[1].name)
    return pair


def make_tailscaled_tun(bed: Bed, a: Host, b: Host) -> Pair:
    key = bed.headscale.key()
    nodes = [Tailscaled(h, f"tuns-{h.name}", tun=True).start().up(bed.headscale.url, key) for h in (a, b)]
    ends = [End(h, "stock-tun", python("kernel", node.addresses[0])) for h, node in zip((a, b), nodes, strict=True)]
    pids = [node.process.pid for node in nodes if node.process]
    pair = Pair("tailscaled_tun", ends[0], ends[1], pids, nodes[0].addresses[0], nodes[1].addresses[0])
    nodes[0].wait_for_peer(nodes[1].name)
    nodes[0].wait_until_direct(nodes[1].name)
    return pair


def make_wireguard(program: str, net: int, a: Host, b: Host) -> Pair:
    private_a, public_a = key_pair()
    private_b, public_b = key_pair()
    ours, theirs = f"10.{net}.0.1", f"10.{net}.0.2"
    devices = [
        Wireguard(a, private_a, 51820, (f"{ours}/32",), program).start(),
        Wireguard(b, private_b, 51820, (f"{theirs}/32",), program).start(),
    ]
    devices[0].peer(public_b, f"{theirs}/32", endpoint=f"{b.v4}:51820")
    devices[1].peer(public_a, f"{ours}/32", endpoint=f"{a.v4}:51820")
    ends = [End(h, program, python("kernel", ip)) for h, ip in ((a, ours), (b, theirs))]
    pids = [device.process.pid for device in devices if device.process]
    return Pair(program, ends[0], ends[1], pids, ours, theirs)


def make_mitmproxy(folder: str, a: Host, b: Host) -> Pair:
    private_a, public_a = key_pair()
    private_b, public_b = key_pair()
    device = Wireguard(a, private_a, 51820, ("10.93.0.1/32",), "wireguard_go").start()
    device.peer(public_b, "10.93.0.2/32", endpoint=f"{b.v4}:51820")
    argv = [sys.executable, str(HERE / "mitmproxy_end.py"), folder, private_b.hex(), public_a.hex()]
    ends = [End(a, "mitmproxy", python("kernel", "10.93.0.1")), End(b, "mitmproxy", argv)]
    assert device.process
    pair = Pair("mitmproxy", ends[0], ends[1], [device.process.pid, ends[1].pid], "", "10.93.0.2")
    pair.is_one_way = True
    return pair


def make(name: str, bed: Bed, options: argparse.Namespace) -> Pair | Yardstick:
    if name == "yardstick":
        return Yardstick()
    short = "".join(part[:4] for part in name.split("_"))
    a, b = bed.lab.host(f"{short}a"), bed.lab.host(f"{short}b")
    if name == "meshnode":
        return make_meshnode(bed, a, b)
    if name == "meshnode_tun":
        return make_meshnode_tun(bed, a, b)
    if name == "tailscaled_tun":
        return make_tailscaled_tun(bed, a, b)
    if name == "tsnet":
        return make_tsnet(bed, a, b)
    if name == "tailscaled":
        return make_tailscaled(bed, a, b)
    if name == "mitmproxy":
        return make_mitmproxy(options.mitmproxy, a, b)
    return make_wireguard(name, 91 if name == "wireguard_go" else 92, a, b)


# --- the run ---


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    """Hold a flock on `path`, if there is one."""
    if not path:
        yield
        return
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Results:
    """Every figure of every row and peer."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.problems: list[str] = []

    def add(self, row: str, peer: str, figures: Figures) -> None:
        into = self.rows.setdefault(row, {}).setdefault(peer, {})
        for name, value in figures.items():
            into.setdefault(name, []).append(round(value, 4))
        say(f"{row:8} {peer:13} " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    def median(self, row: str, peer: str, figure: str) -> float | None:
        values = self.rows.get(row, {}).get(peer, {}).get(figure)
        return statistics.median(values) if values else None

    def summary(self) -> dict[str, Any]:
        medians = {
            row: {peer: {k: round(statistics.median(v), 4) for k, v in figures.items()} for peer, figures in p.items()}
            for row, p in self.rows.items()
        }
        return {"medians": medians, "targets": self.targets(), "all": self.rows, "problems": self.problems}

    def targets(self) -> dict[str, Any]:
        judged = {}
        for title, (row, figure, peer, bound) in TARGETS.items():
            ours = self.median(row, "meshnode", figure)
            theirs = self.median(row, peer, figure) if peer else 1.0
            if ours is None or not theirs:
                continue
            value = ours / theirs
            held_to = value <= -bound if bound < 0 else value >= bound
            judged[title] = {"value": round(value, 3), "bound": abs(bound), "met": held_to}
        return judged


def start_pairs(bed: Bed, options: argparse.Namespace, results: Results) -> list[Pair | Yardstick]:
    """Start all that can run here; what cannot is named with its reason."""
    pairs: list[Pair | Yardstick] = []
    for name in options.peers:
        if name == "mitmproxy" and not options.mitmproxy:
            results.problems.append("mitmproxy: left out, no --mitmproxy DIR")
            continue
        started = time.monotonic()
        try:
            pairs.append(make(name, bed, options))
        except (LabError, OSError, subprocess.CalledProcessError) as error:
            results.problems.append(f"{name}: does not start here: {error}")
            say(results.problems[-1])
        else:
            say(f"{name}: up after {time.monotonic() - started:.1f} s")
    return pairs


def measure(pairs: list[Pair | Yardstick], options: argparse.Namespace, results: Results) -> None:
    for pair in pairs:  # before the first connection
        if "idle" in options.rows and isinstance(pair, Pair):
            results.add("idle", pair.name, pair.measure("idle", 0))
    for pair in pairs:
        if isinstance(pair, Pair):
            be_direct(pair) if pair.name in ("meshnode", "tsnet") else warm(pair)
    for i in range(options.rounds):
        for row in options.rows:
            if row == "idle":
                continue
            with held(options.lock):
                for pair in pairs if i % 2 == 0 else pairs[::-1]:
                    one_figure(pair, row, options, results)


def one_figure(pair: Pair | Yardstick, row: str, options: argparse.Namespace, results: Results) -> None:
    if isinstance(pair, Yardstick) and row not in ("one", "pinned"):
        return
    if isinstance(pair, Pair) and pair.is_one_way and row == "bidi":
        return
    try:
        results.add(row, pair.name, pair.measure(row, options.seconds))
    except (LabError, OSError, subprocess.CalledProcessError) as error:
        results.problems.append(f"{row}, {pair.name}: {error}")
        say(results.problems[-1])


def chosen(text: str, known: tuple[str, ...]) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"{text}: choose from {','.join(known)}")
    return [name for name in known if name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rows", type=lambda t: chosen(t, ROWS), default=list(ROWS))
    parser.add_argument("--peers", type=lambda t: chosen(t, PEERS), default=list(PEERS))
    parser.add_argument("--mitmproxy", default="", help="directory with mitmproxy_rs")
    parser.add_argument("--lock", default="", help="flock this file around each row of a round")
    options = parser.parse_args()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="mn-tunnel-") as name, Lab(Path(name)) as lab:
        pairs = start_pairs(make_bed(lab), options, results)
        try:
            if "idle" in options.rows:
                time.sleep(IDLE_S)  # what "idle" means here
            measure(pairs, options, results)
        finally:
            for pair in pairs:
                pair.close()
    print(json.dumps(results.summary(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
