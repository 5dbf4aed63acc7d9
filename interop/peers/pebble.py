"""Pebble: Let's Encrypt's small ACME server, and the DNS it asks, on a host of the lab."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from interop.build import binary
from interop.certs import Authority
from interop.lab import Host, Process

PORT = 14000
MANAGEMENT_PORT = 15000
DNS_PORT = 8053
DNS_MANAGEMENT_PORT = 8055
READY_S = 10.0


@dataclass
class Pebble:
    """An ACME server that checks ports 80 and 443, and knows every name as `names_at`."""

    host: Host
    authority: Authority
    names_at: str
    """Address that every host name has."""
    process: Process | None = None

    def start(self) -> Pebble:
        folder = self.host.folder / "pebble"
        folder.mkdir()
        certificate, key = self.authority.issue("pebble", self.host.v4)
        config = {
            "listenAddress": f"{self.host.v4}:{PORT}",
            "managementListenAddress": f"{self.host.v4}:{MANAGEMENT_PORT}",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "domainBlocklist": ["blocked.example"],
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {
                "default": {"description": "ninety days", "validityPeriod": 7776000},
                "shortlived": {"description": "moments", "validityPeriod": 12},
            },
        }
        path = folder / "config.json"
        path.write_text(json.dumps({"pebble": config}))
        words = ["-defaultIPv4", self.names_at, "-defaultIPv6", "", "-dns01", f"{self.host.v4}:{DNS_PORT}"]
        words += ["-management", f"{self.host.v4}:{DNS_MANAGEMENT_PORT}", "-doh", "", "-http01", "", "-https01", ""]
        dns = self.host.start("dns", [str(binary("pebble", "pebble-challtestsrv")), *words, "-tlsalpn01", ""])
        dns.wait_until(lambda: "Starting management server" in dns.out() + dns.err(), READY_S, "the lab's DNS is up")
        argv = [str(binary("pebble", "pebble")), "-config", str(path), "-dnsserver", f"{self.host.v4}:{DNS_PORT}"]
        process = self.process = self.host.start("pebble", argv, PEBBLE_VA_NOSLEEP="1", PEBBLE_AUTHZREUSE="0")
        process.wait_until(lambda: "ACME directory available" in process.out() + process.err(), READY_S, "pebble is up")
        return self

    @property
    def directory(self) -> str:
        return f"https://{self.host.v4}:{PORT}/dir"

    def root(self, path: Path) -> Path:
        """The authority that its certificates come from, saved as PEM."""
        url = f"https://{self.host.v4}:{MANAGEMENT_PORT}/roots/0"
        path.write_text(self.host.run("curl", "-s", "--cacert", str(self.authority.ca), url).stdout)
        return path

    def log(self) -> str:
        assert self.process is not None
        return self.process.out() + self.process.err()
