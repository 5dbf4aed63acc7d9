"""A small network of namespaces: one hub with a bridge, hosts behind it, and the processes in them.

Owns: namespaces (named after this process, so that two runs coexist), veth pairs, nft tables that cut
UDP, every process started through it, and a folder of logs. Leaving the `with` block kills what is
left and removes the namespaces; the folder stays when the caller asked for it.

Hosts get 10.77.0.N/24 and fd77::N/64, the hub is N = 1 and the default route. Every wait has a
condition and a bound (`until`); nothing here sleeps to let time pass.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from interop.process import LabError as LabError
from interop.process import Process as Process
from interop.process import until as until

PREFIX = "mnlab"
V4 = "10.77.0."
V6 = "fd77::"
NUMBERS = range(2, 250)
"""Of hosts on the bridge; one that is removed gives its number back, last of all."""
_runs = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def missing_tools() -> list[str]:
    """What this machine lacks to hold a lab; empty when it can."""
    tools = ("ip", "nft", "curl", "openssl", "setpriv", "wg", "ping", "miniupnpd")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0:
        missing.append("root")
    return missing


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host:
    """One namespace; `v4` and `v6` are its addresses, empty where it has none of a family."""

    def __init__(self, lab: Lab, name: str, number: int, v4: str, v6: str) -> None:
        self.lab = lab
        self.name = name
        self.number = number
        self.namespace = f"{lab.prefix}-{name}"
        self.v4 = v4
        self.v6 = v6
        self.folder = lab.folder / name
        self.folder.mkdir(exist_ok=True)

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

    def use_names(self, names: Mapping[str, Sequence[str]]) -> None:
        """Give programs in this namespace their own /etc/hosts."""
        folder = Path("/etc/netns") / self.namespace
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
        (folder / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n" + "".join(lines))

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
        self.nft(rules)

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
        self.nft(rules)

    def only_tcp(self, *ports: int, address: str = "") -> None:
        """Leave this host nothing but TCP to these ports, of one IPv4 address or of any, until the lab ends."""
        those = "{ " + ", ".join(map(str, ports)) + " }"
        there = f"ip daddr {address} " if address else ""
        back = f"ip saddr {address} " if address else ""
        rules = "\n".join(
            [
                "table inet mnonly {",
                "chain in { type filter hook input priority -200 ; policy drop ;",
                f'iifname "lo" accept ; {back}tcp sport {those} accept ;',
                "}",
                "chain out { type filter hook output priority -200 ; policy drop ;",
                f'oifname "lo" accept ; {there}tcp dport {those} accept ;',
                "}",
                "}",
            ]
        )
        self.nft(rules)

    def divert(self, port: int, to: str, address: str = "") -> None:
        """Lead TCP from here to a port, of one IPv4 address or of any, to that of another host, until the lab ends."""
        there = f"ip daddr {address} " if address else ""
        rules = [
            "table ip mndivert {",
            "chain out { type nat hook output priority -100 ;",
            f"{there}tcp dport {port} dnat to {to}",
            "}",
            "}",
        ]
        self.nft("\n".join(rules))

    def heal_udp(self) -> None:
        self.nft("delete table inet mncut")

    def nft(self, rules: str) -> None:
        """Load rules; LabError shows what nft has against them."""
        argv = self.enter(["nft", "-f", "-"])
        done = subprocess.run(argv, input=rules, text=True, check=False, capture_output=True)
        if done.returncode != 0:
            raise LabError(f"{self.name}: nft: {done.stderr}\n{rules}")

    def ip(self, *words: str) -> None:
        """`ip -n NAMESPACE …`"""
        _ip("-n", self.namespace, *words)

    def bridge(self, name: str) -> None:
        """Make a bridge. With an address of its own: else it takes a port's, and loses it with the port."""
        self.ip("link", "add", name, "address", f"02:{os.urandom(5).hex(':')}", "type", "bridge", "forward_delay", "0")

    def sysctl(self, *settings: str) -> None:
        subprocess.run(self.enter(["sysctl", "-qw", *settings]), check=True, capture_output=True)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and the sockets it makes, in this namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        target = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            if _libc.setns(target, 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            yield
        finally:
            _libc.setns(before, 0)
            os.close(before)
            os.close(target)


class Lab:
    """The network. Use as a context manager; `host(name)` adds one. v4: the first three numbers of the bridge's."""

    def __init__(self, folder: Path, v4: str = V4) -> None:
        sweep_leftovers()
        self.number = next(_runs)
        self._v4 = v4
        self._numbers = list(NUMBERS)
        self._ports = itertools.count()
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
        hub = self._add_namespace("hub", 1, *self.addresses_of(1))
        hub.bridge("br0")
        self._address(hub, "br0")
        hub.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def host(self, name: str) -> Host:
        """Add a host on the bridge."""
        number = self.take_number()
        host = self._add_namespace(name, number, *self.addresses_of(number))
        self.wire(host, "eth0", self.hub, "br0")
        self._address(host, "eth0")
        host.ip("route", "add", "default", "via", self.hub.v4)
        host.ip("-6", "route", "add", "default", "via", self.hub.v6)
        return host

    def bare(self, name: str, v4: str = "", v6: str = "") -> Host:
        """A namespace with nothing but loopback; whoever wires it gives it these addresses."""
        return self._add_namespace(name, self.take_number(), v4, v6)

    def wire(self, host: Host, device: str, middle: Host, bridge: str) -> None:
        """A veth pair: `device` of `host`, up, and a port of a bridge in another namespace."""
        port = f"p{next(self._ports)}"
        names = ["link", "add", device, "netns", host.namespace, "type", "veth"]
        _ip(*names, "peer", "name", port, "netns", middle.namespace)
        middle.ip("link", "set", port, "master", bridge, "up")
        host.ip("link", "set", device, "up")

    def addresses_of(self, number: int) -> tuple[str, str]:
        """On the bridge, of both families."""
        return f"{self._v4}{number}", f"{V6}{number:x}"

    def far_end(self, host: Host) -> str:
        """The name of the hub's port at the other end of this host's cable."""
        number = json.loads(host.run("ip", "-j", "link", "show", "eth0").stdout)[0]["link_index"]
        links = json.loads(self.hub.run("ip", "-j", "link").stdout)
        return next(str(link["ifname"]) for link in links if link["ifindex"] == number)

    def take_number(self) -> int:
        """The number that has been free for longest."""
        if not self._numbers:
            raise LabError(f"a lab has room for {len(NUMBERS)} namespaces")
        return self._numbers.pop(0)

    def remove(self, *hosts: Host) -> None:
        """End what runs in these hosts and take their namespaces away."""
        gone = {host.name for host in hosts}
        for process in [p for p in self.processes if p.host.name in gone]:
            process.kill()
            self.processes.remove(process)
        for host in hosts:
            _drop_namespace(host.namespace)
            del self.hosts[host.name]
            self._numbers.append(host.number)

    def _add_namespace(self, name: str, number: int, v4: str, v6: str) -> Host:
        host = Host(self, name, number, v4, v6)
        _ip("netns", "add", host.namespace)
        self.hosts[name] = host
        host.ip("link", "set", "lo", "up")
        host.sysctl("net.ipv4.tcp_congestion_control=cubic", "net.ipv4.ping_group_range=0 65535")
        return host

    def _address(self, host: Host, link: str) -> None:
        host.ip("address", "add", f"{host.v4}/24", "dev", link)
        host.ip("address", "add", f"{host.v6}/64", "dev", link, "nodad")
        host.ip("link", "set", link, "up")

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
