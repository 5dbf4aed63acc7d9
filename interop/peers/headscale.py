"""Headscale: an unmodified control server on the hub of a lab.

Configuration as docs/protocol says for tests: sqlite, policy in the database, only our relays in the
DERP map. `tuned` shortens its two batching delays; without it they are as shipped, which is what a
join time is measured against. With an `authority` it serves TLS. `embedded_relay` adds its own DERP
region; it needs TLS, because stock clients speak to a relay over nothing else.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop.build import binary
from interop.certs import Authority
from interop.lab import Host, Process

BASE_DOMAIN = "mesh.test"
READY_S = 15.0
EMBEDDED_REGION = 999
NOISE_KEY_FILE = "noise.key"


@dataclass
class Headscale:
    """One server. `start()` returns when it answers; `stop()` and `start()` again keep its database."""

    host: Host
    tuned: bool = True
    embedded_relay: bool = False
    relay_map: dict[str, Any] | str | None = None
    """Text: a file of derp.paths as it is."""
    port: int = 8080
    authority: Authority | None = None
    process: Process | None = None
    _users: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        scheme = "https" if self.authority else "http"
        return f"{scheme}://{self.host.v4}:{self.port}"

    @property
    def folder(self) -> Path:
        return self.host.folder / f"headscale-{self.port}"

    @property
    def config_path(self) -> Path:
        return self.folder / "config.json"

    def start(self) -> Headscale:
        self.folder.mkdir(exist_ok=True)
        # JSON is YAML: no writer of our own needed.
        self.config_path.write_text(json.dumps(self._config(), indent=1))
        argv = [str(binary("headscale", "headscale")), "-c", str(self.config_path), "serve"]
        self.process = self.host.start(f"headscale-{self.port}", argv)
        self.process.wait_until(self._answers, READY_S, "headscale answers on its socket")
        return self

    def stop(self) -> None:
        """End it now; it would wait for open map streams, so it gets no grace."""
        assert self.process is not None
        self.process.signal(signal.SIGTERM)
        self.process.kill()

    def _answers(self) -> bool:
        # The command waits long for a socket that is not there yet.
        if not Path(self._socket_path()).exists():
            return False
        return bool(self._run("users", "list", check=False).returncode == 0)

    def _config(self) -> dict[str, Any]:
        folder = str(self.folder)
        config: dict[str, Any] = {
            "server_url": self.url,
            "listen_addr": f"[::]:{self.port}",
            "metrics_listen_addr": "",
            "grpc_listen_addr": f"127.0.0.1:{self.port + 1}",
            "grpc_allow_insecure": True,
            "noise": {"private_key_path": f"{folder}/{NOISE_KEY_FILE}"},
            "prefixes": {
                "v4": "100.64.0.0/10",
                "v6": "fd7a:115c:a1e0::/48",
                "allocation": "sequential",
            },
            "database": {"type": "sqlite", "sqlite": {"path": f"{folder}/db.sqlite"}},
            "dns": {"magic_dns": True, "base_domain": BASE_DOMAIN, "override_local_dns": False},
            "derp": self._relays(),
            "unix_socket": self._socket_path(),
            "unix_socket_permission": "0700",
            "policy": {"mode": "database"},
            "node": {"ephemeral": {"inactivity_timeout": "66s"}},
            "disable_check_updates": True,
            "logtail": {"enabled": False},
            "log": {"level": "debug", "format": "text"},
        }
        if self.tuned:
            config["tuning"] = {"batch_change_delay": "50ms", "node_store_batch_timeout": "10ms"}
        if self.authority:
            certificate, key = self.authority.issue("headscale", self.host.v4, self.host.v6)
            config |= {"tls_cert_path": str(certificate), "tls_key_path": str(key)}
        return config

    def _relays(self) -> dict[str, Any]:
        relays: dict[str, Any] = {"urls": [], "auto_update_enabled": False, "paths": []}
        if self.relay_map is not None:
            path = self.folder / "derp.yaml"
            written = self.relay_map
            if not isinstance(written, str):
                # YAML wants its region numbers bare, JSON cannot write them so.
                written = re.sub(r'"(\d+)":', r"\1:", json.dumps(written))
            path.write_text(written)
            relays["paths"] = [str(path)]
        if self.embedded_relay:
            relays["server"] = {
                "enabled": True,
                "region_id": EMBEDDED_REGION,
                "region_code": "embedded",
                "region_name": "embedded",
                "stun_listen_addr": "0.0.0.0:3479",
                "private_key_path": f"{self.folder}/derp.key",
                "verify_clients": True,
                "automatically_add_embedded_derp_region": True,
                "ipv4": self.host.v4,
            }
        return relays

    def _socket_path(self) -> str:
        return str(self.host.lab.sockets / f"headscale-{self.port}.sock")

    def key_words(self) -> list[str]:
        """The command line that makes another reusable key, for use by hand."""
        argv = [str(binary("headscale", "headscale")), "-c", str(self.config_path)]
        return [*argv, "preauthkeys", "create", "-u", self.user(), "--reusable", "-e", "1h"]

    def _run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [str(binary("headscale", "headscale")), "-c", str(self.config_path), *words]
        return self.host.run(*argv, "-o", "json", "--force", check=check)

    def _command(self, *words: str) -> Any:
        said = self._run(*words).stdout
        return json.loads(said) if said.strip() else None

    # --- administration ---------------------------------------------------------------------------

    def user(self, name: str = "lab") -> str:
        """The numeric id of a user, made on first use."""
        if name not in self._users:
            self._users[name] = str(self._command("users", "create", name)["id"])
        return self._users[name]

    def key(
        self,
        user: str = "lab",
        *,
        reusable: bool = True,
        ephemeral: bool = False,
        expires: str = "1h",
        tags: str = "",
    ) -> str:
        """A pre-auth key of this kind."""
        words = ["preauthkeys", "create", "-u", self.user(user), "-e", expires]
        words += ["--reusable"] if reusable else []
        words += ["--ephemeral"] if ephemeral else []
        words += ["--tags", tags] if tags else []
        return str(self._command(*words)["key"])

    def expired_key(self, user: str = "lab") -> str:
        """A key that was good once and is expired now."""
        key = self._command("preauthkeys", "create", "-u", self.user(user), "-e", "1h")
        self._run("preauthkeys", "expire", "-i", str(key["id"]))
        return str(key["key"])

    def nodes(self) -> list[dict[str, Any]]:
        return list(self._command("nodes", "list") or [])

    def node(self, name: str) -> dict[str, Any] | None:
        """The node of this given name, or None."""
        return next((node for node in self.nodes() if node.get("given_name") == name), None)

    def set_policy(self, policy: dict[str, Any]) -> None:
        path = self.folder / "policy.json"
        path.write_text(json.dumps(policy))
        self._run("policy", "set", "-f", str(path))

    def delete_node(self, name: str) -> None:
        node = self.node(name)
        assert node is not None, f"no node {name}"
        self._run("nodes", "delete", "-i", str(node["id"]))


def addresses_of(node: dict[str, Any]) -> list[str]:
    """IPv4 first, IPv6 second, of a `nodes list` entry."""
    return sorted(node["ip_addresses"], key=lambda text: re.search(":", text) is not None)
