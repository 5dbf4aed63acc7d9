"""tailscaled: a stock node, in userspace mode or with a TUN, and its `tailscale` command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interop.build import binary
from interop.lab import Host, LabError, Process, until

SOCKS5 = "127.0.0.1:1055"
JOIN_S = 30.0


@dataclass
class Tailscaled:
    """One stock node on `host`. `release` picks the entry of versions.toml."""

    host: Host
    name: str
    tun: bool = False
    release: str = "tailscale"
    process: Process | None = None

    @property
    def folder(self) -> Path:
        return self.host.folder / f"ts-{self.name}"

    @property
    def socket(self) -> str:
        return str(self.host.lab.sockets / f"{self.name}.sock")

    def start(self) -> Tailscaled:
        """Start the daemon (not yet joined)."""
        self.folder.mkdir(exist_ok=True)
        argv = [str(binary(self.release, "tailscaled")), "--state", str(self.folder / "state")]
        argv += ["--statedir", str(self.folder), "--socket", self.socket, "--port", "0"]
        if self.tun:
            argv += ["--tun", "tailscale0"]
        else:
            argv += ["--tun", "userspace-networking", "--socks5-server", SOCKS5]
        self.process = self.host.start(f"tailscaled-{self.name}", argv, TS_NO_LOGS_NO_SUPPORT="true")
        self.process.wait_until(self._listening, 10.0, "tailscaled opens its socket")
        return self

    def _listening(self) -> bool:
        return bool(self.cli("status", "--json", check=False).returncode == 0)

    def words(self, *words: str) -> list[str]:
        """The `tailscale` command against this daemon."""
        return [str(binary(self.release, "tailscale")), "--socket", self.socket, *words]

    def cli(self, *words: str, check: bool = True, timeout_s: float = 40.0) -> Any:
        """Run `tailscale …` against this daemon."""
        return self.host.run(*self.words(*words), check=check, timeout_s=timeout_s)

    def up_words(self, url: str, key: str) -> list[str]:
        """The command line that joins."""
        words = ["up", "--login-server", url, "--auth-key", key, "--hostname", self.name]
        return self.words(*words, "--timeout", f"{JOIN_S:.0f}s", "--accept-dns=false")

    def up(self, url: str, key: str) -> Tailscaled:
        """Join; returns when the node is Running."""
        try:
            self.host.run(*self.up_words(url, key), timeout_s=JOIN_S + 10)
        except LabError as error:
            tail = self.process.log_tail() if self.process else ""
            raise LabError(f"{error}\n{tail}") from None
        return self

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.cli("status", "--json").stdout))

    @property
    def addresses(self) -> tuple[str, str]:
        """(IPv4, IPv6) in the tailnet."""
        v4, v6 = self.status()["Self"]["TailscaleIPs"]
        return v4, v6

    def peer(self, name: str) -> dict[str, Any] | None:
        """This peer's entry of `status --json`, or None while it is unknown."""
        peers = (self.status().get("Peer") or {}).values()
        return next((p for p in peers if p["DNSName"].split(".")[0] == name), None)

    def wait_for_peer(self, name: str, timeout_s: float = 10.0) -> None:
        """Until it knows the peer and its home relay: a first contact before that costs stock clients 5 s."""

        def reachable() -> bool:
            peer = self.peer(name)
            return bool(peer and peer["Relay"])

        until(reachable, timeout_s, f"{self.name} learns of {name} and its relay")

    def ping(self, target: str, *, timeout_s: float = 2.0) -> str:
        """One `tailscale ping`; returns its pong line, or "" if none came."""
        words = ["ping", "-c", "1", "--until-direct=false", "--timeout", f"{timeout_s:g}s", target]
        done = self.cli(*words, check=False, timeout_s=timeout_s + 10)
        return next((line for line in done.stdout.splitlines() if line.startswith("pong ")), "")

    def wait_until_direct(self, target: str, timeout_s: float = 15.0) -> str:
        return until(lambda: _direct(self.ping(target)), timeout_s, f"{self.name} reaches {target} directly")

    def wait_until_relayed(self, target: str, timeout_s: float = 30.0) -> str:
        return until(lambda: _relayed(self.ping(target)), timeout_s, f"{self.name} reaches {target} by relay")

    def curl_words(self) -> list[str]:
        """What curl needs on this host to reach the tailnet by name."""
        return [] if self.tun else ["--socks5-hostname", SOCKS5]

    def logout(self) -> None:
        self.cli("logout")

    def stop(self) -> None:
        assert self.process is not None
        self.process.stop()


def _direct(pong: str) -> str:
    return pong if pong and "via DERP" not in pong else ""


def _relayed(pong: str) -> str:
    return pong if "via DERP" in pong else ""
