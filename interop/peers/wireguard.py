"""WireGuard in user space by others, with its TUN in a host of the lab: wireguard-go and boringtun."""

from __future__ import annotations

import base64
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from interop.build import binary
from interop.lab import Host, Process


def key_pair() -> tuple[bytes, bytes]:
    """(private, public), made by the `wg` command."""
    private = subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, check=True).stdout
    return base64.b64decode(private), base64.b64decode(public)


PROGRAMS = {
    "wireguard_go": ("wireguard-go", ["-f"]),
    "boringtun": ("boringtun-cli", ["-f", "--disable-drop-privileges"]),
}


@dataclass(frozen=True)
class Shown:
    """A peer as `wg show` tells of it."""

    endpoint: str
    handshake: int
    """Seconds since 1970; 0: never."""
    rx: int
    tx: int


@dataclass
class Wireguard:
    """One device on `host` with the addresses given."""

    host: Host
    private: bytes
    port: int
    addresses: tuple[str, ...]
    program: str = "wireguard_go"
    mtu: int = 1280
    process: Process | None = None

    def start(self) -> Wireguard:
        # Its control socket's place is fixed and shared by name, so the link is named per host.
        command, options = PROGRAMS[self.program]
        argv = [str(binary(self.program, command)), *options, self.link]
        self.process = self.host.start(command, argv, LOG_LEVEL="verbose")
        self.process.wait_until(self._listening, 10.0, f"{command} opens its control socket")
        key = self.host.folder / "wg.key"
        key.touch(mode=0o600)
        key.write_text(base64.b64encode(self.private).decode())
        self._wg("listen-port", str(self.port), "private-key", str(key))
        for address in self.addresses:
            self.host.run("ip", "address", "add", address, "dev", self.link)
        self.host.run("ip", "link", "set", self.link, "mtu", str(self.mtu), "up")
        return self

    @property
    def link(self) -> str:
        lab = self.host.lab
        return f"w{os.getpid()}x{lab.number}x{self.host.number}"

    def _listening(self) -> bool:
        return Path(f"/var/run/wireguard/{self.link}.sock").exists()

    def peer(self, public: bytes, allowed: str, *, endpoint: str = "", keepalive_s: int = 0, psk: bytes = b"") -> None:
        words = ["peer", base64.b64encode(public).decode(), "allowed-ips", allowed]
        words += ["endpoint", endpoint] if endpoint else []
        words += ["persistent-keepalive", str(keepalive_s)] if keepalive_s else []
        if psk:
            path = self.host.folder / "wg.psk"
            path.touch(mode=0o600)
            path.write_text(base64.b64encode(psk).decode())
            words += ["preshared-key", str(path)]
        self._wg(*words)
        for prefix in allowed.split(","):
            self.host.run("ip", "route", "replace", prefix, "dev", self.link)

    def _wg(self, *words: str) -> None:
        self.host.run("wg", "set", self.link, *words)

    def set_peer(self, public: bytes, *words: str) -> None:
        """Change something of a peer: `wg set … peer KEY WORDS`."""
        self._wg("peer", base64.b64encode(public).decode(), *words)

    def set_port(self, port: int) -> None:
        """Listen elsewhere from now on."""
        self._wg("listen-port", str(port))

    def of_peer(self, public: bytes) -> Shown:
        """What it says of a peer."""
        wanted = base64.b64encode(public).decode()
        line = next(line for line in self.show().splitlines()[1:] if line.startswith(wanted))
        _, _, endpoint, _, handshake, rx, tx, _ = line.split("\t")
        return Shown(endpoint, int(handshake), int(rx), int(tx))

    def show(self) -> str:
        return str(self.host.run("wg", "show", self.link, "dump").stdout)
