"""The demo's parts: control server and relay in this process, two nodes in processes of their own.

Everything lives in one temporary directory and ends with the `async with` block, however it is left; the
kernel ends the children even if this process is killed. A child's log is shown only if something failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from meshnode.base.errors import MeshError
from meshnode.control.server import ControlServer
from meshnode.demo import paper
from meshnode.local.client import Door
from meshnode.local.paths import socket_path
from meshnode.relay import identity
from meshnode.relay.server import RelayServer
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope

REGION: Final = 900
DOMAIN: Final = "demo.test"
FILE: Final = "file.bin"
MEBIBYTES: Final = 256
READY_S: Final = 10.0
STOP_S: Final = 4.0
CAPABILITY_PORT: Final = 3001
LOG_TAIL: Final = 15
OURSELVES: Final = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
"""With -P: children run this very package, not one that happens to lie in the working directory."""


class Broken(MeshError):
    """Something the demo promises did not hold."""


@dataclass
class Child:
    """A node in a process of its own."""

    name: str
    folder: Path
    process: Process
    started_at: float
    ready_s: float = 0.0
    addresses: tuple[str, ...] = ()
    fqdn: str = ""

    @property
    def state_dir(self) -> Path:
        """Where its identity and its socket are."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """Its stderr."""
        return self.folder / f"{self.name}.log"

    def ask(self, path: str, **query: Any) -> Any:
        """GET a question of its local socket; blocking."""
        return Door(socket_path(str(self.state_dir), os.environ)).get(path, **query)

    def tell(self, path: str, **query: Any) -> Any:
        """POST to its local socket; blocking."""
        return Door(socket_path(str(self.state_dir), os.environ)).post(path, **query)

    def tail(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:])
        return ""

    async def wait_ready(self) -> None:
        """Read its `ready` line. Broken, with its log, if it ends or takes too long."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                line = (await self.process.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        words = line.split()
        if not words or words[0] != "ready":
            what = "ended before it was ready" if self.process.stdout.at_eof() else f"is not ready within {READY_S:g} s"
            raise Broken(f"the node {self.name} {what}; see its log above")
        self.ready_s = time.monotonic() - self.started_at
        self.fqdn, self.addresses = words[1], tuple(words[2:])

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL; returns when it is gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self.process.wait()


@dataclass
class Stage:
    """What is running."""

    folder: Path
    control: ControlServer
    relay: RelayServer
    token: str
    scope: Scope
    on_child_end: asyncio.Future[str]
    """Set to a sentence once a node ends."""
    children: list[Child] = field(default_factory=list)
    digest: str = ""
    door_port: int = 0

    @property
    def site(self) -> Path:
        """The directory that the worker serves."""
        return self.folder / "site"

    async def add_worker(self) -> Child:
        """The node that serves: a capability server and a directory."""
        spec = self.folder / "capabilities.toml"
        paper.write_spec(spec, self.site, FILE)
        settings = self.folder / "worker.toml"
        # A JSON text is a TOML text too, whatever is in the directory's name.
        settings.write_text(f"[tunnel]\nserve = [{json.dumps(f'http:80={self.site}')}]\n")
        words = ["capability", "--port", str(CAPABILITY_PORT), "--spec", str(spec), "--token", "env:CAPABILITY_TOKEN"]
        return await self._start("worker", [*words, "-c", str(settings)], {"CAPABILITY_TOKEN": self.token})

    async def add_laptop(self) -> Child:
        """The node that calls; it keeps to the relay until told otherwise."""
        words = ["up", "--paths", "relay", "--socks5", "127.0.0.1:0", "--log", "json"]
        child = await self._start("laptop", words, {})
        await child.wait_ready()
        self.door_port = door_port_of(child)
        return child

    async def _start(self, name: str, words: list[str], environment: dict[str, str]) -> Child:
        ours = ("MESHNODE_", "TS_", "TAILSCALE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        argv = [sys.executable, "-P", "-m", "meshnode", *words, "--control-url", self.control.url, "--hostname", name]
        argv += ["--state-dir", str(self.folder / name), "--auth-key", "env:MESHNODE_DEMO_KEY"]
        given = {"MESHNODE_DEMO_KEY": self.control.add_key(), "MESHNODE_USE_LOOPBACK": "true"}
        env = kept | given | environment | OURSELVES
        log = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        started_at = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=DEVNULL, stdout=PIPE, stderr=log, env=env, preexec_fn=_die_with_parent
            )
        finally:
            os.close(log)
        child = Child(name, self.folder, process, started_at)
        self.children.append(child)
        self.scope.spawn(self._watch(child), name)
        return child

    async def _watch(self, child: Child) -> None:
        code = await child.process.wait()
        if not self.on_child_end.done():
            self.on_child_end.set_result(f"the node {child.name} ended with {code}; see its log above")

    async def fetch(self, method: str, url: str, *headers: str, body: str = "") -> dict[str, Any]:
        """One request through the laptop's door, by a program of its own. Broken with its complaint."""
        argv = [sys.executable, "-P", "-m", "meshnode.demo.fetch", str(self.door_port), method, url, *headers]
        argv += ["--body", body] if body else []
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=os.environ | OURSELVES, preexec_fn=_die_with_parent
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise Broken(err.decode().strip() or "the calling program failed")
        return dict(json.loads(out))

    def relayed_bytes(self) -> int:
        """What the relay has carried so far."""
        found = [self.control.tailnet.find(child.name) for child in self.children]
        keys = {member.key for member in found if member is not None}
        return sum(client.tx_bytes for client in self.relay.clients() if client.key in keys)

    def logs(self) -> str:
        """The end of every child's log."""
        return "\n".join(f"  log of {child.name} ends:\n{child.tail()}" for child in self.children)


def door_port_of(child: Child) -> int:
    """The port of the node's SOCKS5 door, from its log."""
    for line in child.log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record.get("room") == "socks5" and record.get("message") == "listening":
                return int(record["port"])
    raise Broken(f"the node {child.name} says nothing of its SOCKS5 door; see its log above")


@asynccontextmanager
async def build() -> AsyncIterator[Stage]:
    """Control server and relay, running; children are added to it and end with it."""
    folder = Path(tempfile.mkdtemp(prefix="meshnode-demo-"))
    try:
        tls = identity.make_self_signed(["127.0.0.1"])
        pin = identity.pin_of(identity.first_certificate(tls, "the demo's"))
        relay = RelayServer(tls=tls)
        await relay.start()
        try:
            regions = {"Regions": {str(REGION): _region(relay.port, pin)}}
            async with ControlServer(clock=Clock(), domain=DOMAIN, relays=regions) as control:
                ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
                async with Scope("stage") as scope:
                    stage = Stage(folder, control, relay, secrets.token_urlsafe(18), scope, ended)
                    stage.site.mkdir()
                    try:
                        yield stage
                    finally:
                        await asyncio.gather(*(child.stop() for child in stage.children))
        finally:
            await relay.aclose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _region(port: int, pin: str) -> dict[str, Any]:
    node = {
        "Name": f"{REGION}a",
        "RegionID": REGION,
        "HostName": "127.0.0.1",
        "CertName": pin,
        "IPv4": "127.0.0.1",
        "IPv6": "none",
        "DERPPort": port,
        "STUNPort": -1,
    }
    return {"RegionID": REGION, "RegionCode": "demo", "RegionName": "on this machine", "Nodes": [node]}


def _make_leash() -> Callable[[], None]:
    """For preexec_fn: the kernel sends SIGTERM to the child once this process is gone. Linux only."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    return lambda: libc.prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0) and None


_die_with_parent = _make_leash()
