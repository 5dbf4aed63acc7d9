"""A bed: one lab with control, a relay, and helpers that every scenario speaks in.

Owns the order of things: hub first, then relay, then Headscale, then nodes. `Bed.curl` fetches by
curl from any node's namespace and returns what the scenario asserts on; `files` holds what the
nodes serve.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from interop.certs import Authority
from interop.lab import Host, Lab, LabError
from interop.peers.derper import Derper
from interop.peers.headscale import Headscale
from interop.peers.meshnode import Meshnode
from interop.peers.origin import start_origin
from interop.peers.relay import OurRelay
from interop.peers.tailscaled import Tailscaled

RelayKind = Literal["derper", "pinned", "embedded", "ours", "ours-pinned"]
"""derper with a certificate of the lab's authority; derper with its own, pinned; Headscale's own relay; `meshnode derp`
in both ways."""
MIB = 1 << 20
FULL = os.environ.get("MESHNODE_INTEROP_FULL") == "1"


class Node(Protocol):
    """What `Bed.curl` needs of a node, ours or stock."""

    host: Host

    def curl_words(self) -> list[str]: ...


@dataclass(frozen=True)
class Fetched:
    """What curl said: its exit code, the HTTP status, the body's file and length."""

    exit_code: int
    status: int
    path: Path
    size: int
    seconds: float
    note: str

    @property
    def text(self) -> str:
        return self.path.read_text(errors="replace")

    @property
    def sha256(self) -> str:
        return sha256_of(self.path)


@dataclass
class Bed:
    """Lab, Headscale and relay, started. Use `make_bed`."""

    lab: Lab
    headscale: Headscale
    relay_kind: RelayKind
    authority: Authority | None
    derper: Derper | None = None
    relay: OurRelay | None = None
    _fetches: int = field(default=0)

    def files(self, host: Host, greeting: str) -> Path:
        """A directory to serve: hello.txt saying who it is."""
        directory = host.folder / "www"
        directory.mkdir(exist_ok=True)
        (directory / "hello.txt").write_text(greeting)
        return directory

    def stock(self, name: str, *, tun: bool = False, release: str = "tailscale", key: str | None = None) -> Tailscaled:
        """A joined stock node on a host of its own, with an origin server on ports 80 and 81."""
        host = self.lab.host(name)
        node = Tailscaled(host, name, tun=tun, release=release)
        if tun:
            host.use_resolver("100.100.100.100")
        node.start().up(self.headscale.url, key or self.headscale.key())
        start_origin(host, self.files(host, f"hello from {name}\n"), 80, 81)
        return node

    def mesh(
        self,
        name: str,
        *,
        key: str | None = None,
        ephemeral: bool = False,
        host: Host | None = None,
        extra: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Meshnode:
        """A node of ours, by default on a host of its own, serving a directory on ports 80 and 81; ready."""
        host = host or self.lab.host(name)
        directory = self.files(host, f"hello from {name}\n")
        node = Meshnode(
            host,
            name,
            self.headscale.url,
            key=key or self.headscale.key(ephemeral=ephemeral),
            ephemeral=ephemeral,
            serve=[f"http:80={directory}", f"http:81={directory}"],
            extra=list(extra),
            variables=dict(variables),
        )
        return node.start()

    def curl(self, node: Node, url: str, *options: str, timeout_s: float = 20.0) -> Fetched:
        """Fetch from `node`'s namespace. Never raises for a refusal: assert on the result."""
        self._fetches += 1
        path = node.host.folder / f"fetched-{self._fetches}"
        words = ["curl", "-sS", "--max-time", f"{timeout_s:g}", "-o", str(path), *node.curl_words()]
        form = "%{http_code} %{size_download} %{time_total}"
        started = time.monotonic()
        done = node.host.run(*words, "-w", form, *options, url, check=False, timeout_s=timeout_s + 10)
        status, size, _ = (done.stdout.split() + ["0", "0", "0"])[:3]
        seconds = time.monotonic() - started
        return Fetched(done.returncode, int(status), path, int(size), seconds, done.stderr.strip())

    def expect_hello(self, node: Node, url_host: str, greeter: str, *options: str, port: int = 80) -> None:
        """Fetch hello.txt and require the greeter's own words."""
        where = f"[{url_host}]" if ":" in url_host else url_host
        got = self.curl(node, f"http://{where}:{port}/hello.txt", *options)
        if got.status != 200:
            raise LabError(f"{node.host.name} → {url_host}:{port}: curl {got.exit_code} {got.status} {got.note}")
        assert got.text == f"hello from {greeter}\n"

    def expect_refused(self, node: Node, url_host: str, port: int, *, timeout_s: float = 4.0) -> Fetched:
        """Fetch and require that not one byte came: refused, unreachable or silent."""
        where = f"[{url_host}]" if ":" in url_host else url_host
        got = self.curl(node, f"http://{where}:{port}/hello.txt", timeout_s=timeout_s)
        assert got.exit_code != 0 and got.status == 0, f"{url_host}:{port} answered {got.status}"
        return got


def make_bed(lab: Lab, relay: RelayKind = "derper", *, tuned: bool = True, options: Sequence[str] = ("--open",)) -> Bed:
    """Start relay and control on the hub of `lab`. options: of a relay of ours."""
    authority = None
    if relay not in ("pinned", "ours-pinned"):
        authority = Authority.create(lab.folder / "ca")
        lab.environment["SSL_CERT_FILE"] = str(authority.ca)
    if relay == "embedded":
        headscale = Headscale(lab.hub, tuned=tuned, embedded_relay=True, authority=authority)
        return Bed(lab, headscale.start(), relay, authority)
    if relay in ("ours", "ours-pinned"):
        ours = OurRelay(lab.hub, authority=authority, options=options).start()
        headscale = Headscale(lab.hub, tuned=tuned, relay_map=ours.relay_map)
        return Bed(lab, headscale.start(), relay, authority, relay=ours)
    derper = Derper(lab.hub, authority).start()
    headscale = Headscale(lab.hub, tuned=tuned, relay_map=derper.relay_map)
    return Bed(lab, headscale.start(), relay, authority, derper)


def random_file(path: Path, size: int) -> str:
    """Write `size` random bytes to `path`; returns their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        left = size
        while left:
            block = os.urandom(min(MIB, left))
            out.write(block)
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
