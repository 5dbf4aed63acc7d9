"""A small network of namespaces: one hub with a bridge, hosts behind it, and the processes in them.

Owns: namespaces (named after this process, so that two runs coexist), veth pairs, nft tables that cut
UDP, every process started through it, and a folder of logs. Leaving the `with` block kills what is
left and removes the namespaces; the folder stays when the caller asked for it.

Hosts get 10.77.0.N/24 and fd77::N/64, the hub is N = 1 and the default route. Every wait has a
condition and a bound (`until`); nothing here sleeps to let time pass.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

PREFIX = "mnlab"
V4 = "10.77.0."
V6 = "fd77::"
POLL_S = 0.03
_runs = itertools.count()

T = TypeVar("T")


class LabError(AssertionError):
    """Something in the lab did not happen in time; the message carries the log's end."""


def until(condition: Callable[[], T | None], timeout_s: float, what: str, *, interval_s: float = POLL_S) -> T:
    """Wait until `condition()` is truthy and return it; LabError names `what` when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise LabError(f"not within {timeout_s:g} s: {what}")
        time.sleep(interval_s)


def missing_tools() -> list[str]:
    """What this machine lacks to hold a lab; empty when it can."""
    missing = [tool for tool in ("ip", "nft", "curl", "openssl", "setpriv", "wg", "ping") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        missing.append("root")
    return missing


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Process:
    """A program in a namespace, its output in two files."""

    def __init__(self, host: Host, label: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.label = f"{host.name}/{label}"
        self.out_path = host.lab.folder / f"{host.name}-{label}.out"
        self.err_path = host.lab.folder / f"{host.name}-{label}.err"
        self._out_from = self.out_path.stat().st_size if self.out_path.exists() else 0
        self._err_from = self.err_path.stat().st_size if self.err_path.exists() else 0
        with self.out_path.open("ab") as out, self.err_path.open("ab") as err:
            self.popen = subprocess.Popen(
                # pdeathsig: if this interpreter is killed, what it started dies with it.
                ["setpriv", "--pdeathsig", "KILL", *host.enter(argv)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **host.lab.environment, **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def out(self) -> str:
        """Standard output of this start (a label started again appends to the same file)."""
        return self.out_path.read_bytes()[self._out_from :].decode(errors="replace")

    def err(self) -> str:
        return self.err_path.read_bytes()[self._err_from :].decode(errors="replace")

    def log_tail(self, lines: int = 25) -> str:
        tail = (self.out() + self.err()).splitlines()[-lines:]
        return f"--- {self.label} ---\n" + "\n".join(tail)

    def wait_until(self, condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
        """Like `until`, but ends at once when the process dies, and shows its log on failure."""

        def check() -> T | None:
            value = condition()
            if not value and not self.running:
                code = self.popen.returncode
                raise LabError(f"{self.label} ended with {code} before: {what}\n{self.log_tail()}")
            return value

        try:
            return until(check, timeout_s, what)
        except LabError as error:
            if "ended with" in str(error):
                raise
            raise LabError(f"{error}\n{self.log_tail()}") from None

    def signal(self, number: int) -> None:
        if self.running:
            self.popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code; LabError when it lives on."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.label} did not end within {timeout_s:g} s\n{self.log_tail()}") from None

    def survives(self, seconds: float) -> bool:
        """True if it is still running after this long, False as soon as it ends."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def stop(self, timeout_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL to the whole group; returns the exit code."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout_s)
        return self.kill()

    def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.popen.wait(5.0)


class Host:
    """One namespace with one address of each family."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.lab = lab
        self.name = name
        self.number = number
        self.namespace = f"{lab.prefix}-{name}"
        self.v4 = f"{V4}{number}"
        self.v6 = f"{V6}{number:x}"
        self.folder = lab.folder / name
        self.folder.mkdir()

    def enter(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def start(self, label: str, argv: Sequence[str], **environment: str) -> Process:
        """Start a program; the lab ends it at the latest when it is left."""
        process = Process(self, label, argv, environment)
        self.lab.processes.append(process)
        return process

    def run(
        self, *argv: str, timeout_s: float = 30.0, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. With `check`, a bad exit is a LabError with both outputs."""
        try:
            done = subprocess.run(
                self.enter(argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                env={**os.environ, **self.lab.environment, **environment},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: `{' '.join(argv)}` took more than {timeout_s:g} s") from None
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: `{' '.join(argv)}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def use_resolver(self, address: str) -> None:
        """Give programs in this namespace their own resolv.conf (`ip netns exec` mounts it)."""
        folder = Path("/etc/netns") / self.namespace
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:2 attempts:2\n")

    def cut_udp(self) -> None:
        """Drop all UDP on the wire of this host, both ways (its tunnels' inside is not touched)."""
        rules = "\n".join(
            [
                "table inet mncut {",
                "chain in { type filter hook input priority -200 ;",
                'iifname "eth0" meta l4proto udp drop',
                "}",
                "chain out { type filter hook output priority -200 ;",
                'oifname "eth0" meta l4proto udp drop',
                "}",
                "}",
            ]
        )
        self._nft(rules)

    def cut_tcp(self, address: str, port: int) -> None:
        """Refuse TCP from here to one address and port, until the lab ends."""
        rules = "\n".join(
            [
                "table ip mnrefuse {",
                "chain out { type filter hook output priority -200 ;",
                f"ip daddr {address} tcp dport {port} reject with tcp reset",
                "}",
                "}",
            ]
        )
        self._nft(rules)

    def heal_udp(self) -> None:
        self._nft("delete table inet mncut")

    def _nft(self, rules: str) -> None:
        subprocess.run(self.enter(["nft", "-f", "-"]), input=rules, text=True, check=True, capture_output=True)


class Lab:
    """The network. Use as a context manager; `host(name)` adds one."""

    def __init__(self, folder: Path) -> None:
        sweep_leftovers()
        self.number = next(_runs)
        self.prefix = f"{PREFIX}{os.getpid()}x{self.number}"
        self.folder = folder
        # Paths of unix sockets must stay short; `folder` may be deep.
        self.sockets = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        folder.mkdir(parents=True, exist_ok=True)
        self.processes: list[Process] = []
        self.hosts: dict[str, Host] = {}
        self.environment: dict[str, str] = {}
        """Given to every program started from now on, before its own."""

    def __enter__(self) -> Lab:
        try:
            self._build_hub()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hub(self) -> Host:
        return self.hosts["hub"]

    def _build_hub(self) -> None:
        _allow_cubic()
        hub = self._add_namespace("hub", 1)
        _ip("-n", hub.namespace, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self._address(hub, "br0")
        self._sysctl(hub, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def host(self, name: str) -> Host:
        """Add a host on the bridge."""
        number = len(self.hosts) + 1
        host = self._add_namespace(name, number)
        port = f"p{number}"
        names = ["link", "add", "eth0", "netns", host.namespace, "type", "veth"]
        _ip(*names, "peer", "name", port, "netns", self.hub.namespace)
        _ip("-n", self.hub.namespace, "link", "set", port, "master", "br0", "up")
        self._address(host, "eth0")
        _ip("-n", host.namespace, "route", "add", "default", "via", self.hub.v4)
        _ip("-n", host.namespace, "-6", "route", "add", "default", "via", self.hub.v6)
        return host

    def _add_namespace(self, name: str, number: int) -> Host:
        host = Host(self, name, number)
        _ip("netns", "add", host.namespace)
        self.hosts[name] = host
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        self._sysctl(host, "net.ipv4.tcp_congestion_control=cubic", "net.ipv4.ping_group_range=0 65535")
        return host

    def _address(self, host: Host, link: str) -> None:
        _ip("-n", host.namespace, "address", "add", f"{host.v4}/24", "dev", link)
        _ip("-n", host.namespace, "address", "add", f"{host.v6}/64", "dev", link, "nodad")
        _ip("-n", host.namespace, "link", "set", link, "up")

    def _sysctl(self, host: Host, *settings: str) -> None:
        subprocess.run(host.enter(["sysctl", "-qw", *settings]), check=True, capture_output=True)

    def close(self) -> None:
        """End every process (all get SIGTERM first, then a shared second), drop the namespaces."""
        for process in self.processes:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + 1.5
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
        self.processes.clear()
        for host in self.hosts.values():
            _drop_namespace(host.namespace)
        self.hosts.clear()
        shutil.rmtree(self.sockets, ignore_errors=True)


def _allow_cubic() -> None:
    """A namespace may choose only congestion controls that the machine allows everybody."""
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    names = allowed.read_text().split()
    if "cubic" not in names:
        allowed.write_text(" ".join([*names, "cubic"]))


def _drop_namespace(namespace: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)


def sweep_leftovers() -> None:
    """Remove namespaces of runs whose process is gone (a killed pytest leaves some)."""
    for namespace in _lab_namespaces():
        owner = namespace.removeprefix(PREFIX).split("x", 1)[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _drop_namespace(namespace)


def _lab_namespaces() -> Iterator[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        if line.startswith(PREFIX):
            yield line.split()[0]
