"""HTTP forward proxies as offices have them: tinyproxy and squid, with and without a password.

`tinyproxy_words` and `squid_words` write a configuration and return the command, for a lab's host or for loopback;
ForwardProxy runs one on a host.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from interop.lab import Host
from interop.process import Process, until

Kind = Literal["tinyproxy", "squid"]
PORT = 3128
USER = "clerk"
PASSWORDS: dict[Kind, str] = {"tinyproxy": "pass.word-1", "squid": "p@ss: wörd%"}
"""tinyproxy takes letters, digits and .-_ only."""
READY_S = 15.0
NCSA = "/usr/lib/squid/basic_ncsa_auth"


def credentials(kind: Kind) -> str:
    """USER:PASSWORD@ as it stands in a URL."""
    return f"{USER}:{quote(PASSWORDS[kind], safe='')}@"


def tinyproxy_words(folder: Path, address: str, port: int, *, guarded: bool) -> list[str]:
    """A tinyproxy for every client that reaches `address`; its log is `folder`/access."""
    lines = [f"Listen {address}", f"Port {port}", "Timeout 600", "MaxClients 100", "LogLevel Connect"]
    lines += [f'LogFile "{folder}/access"']
    lines += [f"BasicAuth {USER} {PASSWORDS['tinyproxy']}"] if guarded else []
    config = folder / "tinyproxy.conf"
    config.write_text("\n".join(lines) + "\n")
    return ["tinyproxy", "-d", "-c", str(config)]


def squid_words(folder: Path, address: str, port: int, *, guarded: bool, ports: tuple[int, ...] = ()) -> list[str]:
    """A squid for every client, in a folder that anybody may write to. ports: the only ones CONNECT may ask for."""
    lines = [
        f"http_port {address}:{port}", "pid_filename none", "cache deny all", "cache_mem 1 MB", "shutdown_lifetime 0",
        f"access_log stdio:{folder}/access", f"cache_log {folder}/cache.log", f"coredump_dir {folder}",
        "visible_hostname office", "pinger_enable off", "workers 1", "max_filedescriptors 1024",
    ]  # fmt: skip
    if ports:
        lines += ["acl allowed port " + " ".join(map(str, ports)), "http_access deny CONNECT !allowed"]
    if guarded:
        lines += [f"auth_param basic program {NCSA} {folder}/users", "auth_param basic children 1"]
        lines += ["auth_param basic realm office", "acl known proxy_auth REQUIRED", "http_access allow known"]
        hashed = subprocess.run(
            ["openssl", "passwd", "-apr1", PASSWORDS["squid"]], capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip
        (folder / "users").write_text(f"{USER}:{hashed}\n")
    lines += [f"http_access {'deny' if guarded else 'allow'} all"]
    config = folder / "squid.conf"
    config.write_text("\n".join(lines) + "\n")
    return ["squid", "-N", "-f", str(config)]


@dataclass
class ForwardProxy:
    """One proxy on `host`."""

    host: Host
    kind: Kind = "tinyproxy"
    guarded: bool = False
    process: Process | None = None

    def start(self) -> ForwardProxy:
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o777)
        words = tinyproxy_words if self.kind == "tinyproxy" else squid_words
        self.process = self.host.start(self.kind, words(self._folder, self.host.v4, PORT, guarded=self.guarded))
        self.process.wait_until(self._answers, READY_S, f"{self.kind} listens")
        return self

    @property
    def _folder(self) -> Path:
        """Of its own: squid gives root up, and the lab's folder may be closed to others."""
        self.host.lab.sockets.chmod(0o711)
        return self.host.lab.sockets / f"{self.host.name}-{self.kind}"

    @property
    def url(self) -> str:
        """For HTTPS_PROXY, with user name and password if it wants them."""
        return f"http://{credentials(self.kind) if self.guarded else ''}{self.host.v4}:{PORT}"

    def requests(self) -> str:
        """Its access log so far."""
        path = self._folder / "access"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_request(self, words: str, timeout_s: float = 10.0) -> None:
        until(lambda: words in self.requests(), timeout_s, f"{self.kind} is asked for {words}")

    def _answers(self) -> bool:
        return (
            self.host.run("curl", "-s", "-o", "/dev/null", f"http://{self.host.v4}:{PORT}/", check=False).returncode
            == 0
        )
