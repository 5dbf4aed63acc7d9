"""meshnode itself, driven only by its command line, as a stranger would."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop.lab import Host, LabError, Process, until

SOCKS5 = "127.0.0.1:1080"
READY_S = 20.0


def command() -> list[str]:
    """The `meshnode` under test: $MESHNODE_BIN, the one beside this Python, or the one in PATH."""
    beside = Path(sys.executable).with_name("meshnode")
    found = os.environ.get("MESHNODE_BIN") or (str(beside) if beside.exists() else shutil.which("meshnode"))
    if not found:
        raise FileNotFoundError("no `meshnode` command: pip install the package into this environment")
    return [found]


@dataclass(frozen=True)
class Ready:
    """The parts of the `ready` line."""

    line: str
    name: str
    addresses: tuple[str, ...]


@dataclass
class Meshnode:
    """One node on `host`; options of `meshnode up` as fields."""

    host: Host
    name: str
    control_url: str
    key: str | None = None
    ephemeral: bool = False
    state: str | None = None
    serve: list[str] = field(default_factory=list)
    socks5: bool = True
    extra: list[str] = field(default_factory=list)
    ca: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    """More of its environment."""
    process: Process | None = None
    ready: Ready | None = None

    @property
    def state_dir(self) -> str:
        return self.state or str(self.host.folder / f"mesh-{self.name}")

    @property
    def _environment(self) -> dict[str, str]:
        environment = {"MESHNODE_LAB_KEY": self.key, **self.variables} if self.key else dict(self.variables)
        if self.ca is not None:
            environment["SSL_CERT_FILE"] = str(self.ca)
        return environment

    def launch(self) -> Process:
        """Start `meshnode up` and return at once."""
        argv = [*command(), "up", "--control-url", self.control_url, "--hostname", self.name]
        argv += ["--state-dir", self.state_dir]
        argv += ["--auth-key", "env:MESHNODE_LAB_KEY"] if self.key else []
        argv += ["--ephemeral"] if self.ephemeral else []
        argv += ["--socks5", SOCKS5] if self.socks5 else []
        for target in self.serve:
            argv += ["--serve", target]
        argv += self.extra
        self.process = self.host.start(f"mesh-{self.name}", argv, **self._environment)
        return self.process

    def start(self) -> Meshnode:
        """Start and wait for the `ready` line."""
        self.launch()
        return self.wait_ready()

    def wait_ready(self, timeout_s: float = READY_S) -> Meshnode:
        process = self.running
        line = process.wait_until(lambda: self._ready_line(), timeout_s, "meshnode prints its ready line")
        addresses = tuple(re.findall(r"100\.\d+\.\d+\.\d+|fd7a:[0-9a-f:]+", line))
        self.ready = Ready(line, line.split()[1], addresses)
        return self

    @property
    def running(self) -> Process:
        assert self.process is not None, f"{self.name} was never started"
        return self.process

    def _ready_line(self) -> str:
        lines = self.running.out().splitlines(keepends=True)
        return next((x.strip() for x in lines if x.startswith("ready") and x.endswith("\n")), "")

    @property
    def addresses(self) -> tuple[str, str]:
        """(IPv4, IPv6) from the ready line."""
        assert self.ready is not None
        v4, v6 = sorted(self.ready.addresses, key=lambda text: ":" in text)
        return v4, v6

    def cli(self, *words: str, check: bool = True, timeout_s: float = 30.0) -> Any:
        """Run `meshnode VERB … --state-dir D` against this node."""
        verb, *rest = words
        argv = [*command(), verb, "--state-dir", self.state_dir, *rest]
        try:
            return self.host.run(*argv, check=check, timeout_s=timeout_s)
        except LabError as error:
            raise LabError(f"{error}\n{self.running.log_tail()}") from None

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.cli("status", "--json").stdout))

    def peer(self, name: str) -> dict[str, Any] | None:
        """This peer's entry of `status --json`, or None while it is unknown."""
        peers = (self.status().get("Peer") or {}).values()
        return next((p for p in peers if p["DNSName"].split(".")[0] == name), None)

    def wait_for_peer(self, name: str, timeout_s: float = 10.0) -> None:
        until(lambda: self.peer(name) is not None, timeout_s, f"{self.name} learns of {name}")

    def ping(self, target: str) -> str:
        """One `meshnode ping`; returns its pong line, or "" if none came."""
        done = self.cli("ping", target, check=False)
        return next((x for x in done.stdout.splitlines() if x.startswith("pong ")), "")

    def wait_until_direct(self, target: str, timeout_s: float = 15.0) -> str:
        def direct() -> str:
            pong = self.ping(target)
            return pong if pong and "DERP" not in pong else ""

        return until(direct, timeout_s, f"{self.name} reaches {target} directly")

    def wait_until_relayed(self, target: str, timeout_s: float = 30.0) -> str:
        def relayed() -> str:
            pong = self.ping(target)
            return pong if "DERP" in pong else ""

        return until(relayed, timeout_s, f"{self.name} reaches {target} by relay")

    def curl_words(self) -> list[str]:
        """What curl needs on this host; nothing beside a kernel interface."""
        return ["--socks5-hostname", SOCKS5] if self.socks5 else []

    def nc(self, host: str, port: int, send: bytes, timeout_s: float = 20.0) -> bytes:
        """`meshnode nc HOST PORT` with `send` on its input; returns what came back."""
        argv = self.host.enter([*command(), "nc", "--state-dir", self.state_dir, host, str(port)])
        done = subprocess.run(argv, input=send, capture_output=True, timeout=timeout_s, check=False)
        if done.returncode != 0:
            raise LabError(f"nc ended with {done.returncode}: {done.stderr.decode()}\n{self.running.log_tail()}")
        return done.stdout

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM; LabError if it does not end by itself."""
        self.running.signal(signal.SIGTERM)
        return self.running.wait(timeout_s)
