"""OurRelay: `meshnode derp` on a host of the lab; its certificate an authority's, or its own with the pin it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interop.certs import Authority
from interop.lab import Host, Process
from interop.peers.meshnode import command

REGION = 900
PORT = 3340
STUN_PORT = 3478
READY_S = 15.0


@dataclass
class OurRelay:
    """One relay on `host`; `relay_map` is what control hands out about it."""

    host: Host
    options: Sequence[str] = ("--open",)
    label: str = "relay"
    port: int = PORT
    stun_port: int = STUN_PORT
    authority: Authority | None = None
    """Whose certificate it shows; None: one of its own, pinned."""
    process: Process | None = None

    def start(self) -> OurRelay:
        argv = [*command(), "derp", "--listen", f"{self.host.v4}:{self.port}", "--host", self.host.v4]
        argv += ["--stun", f"{self.host.v4}:{self.stun_port}" if self.stun_port else "off"]
        argv += ["--dir", str(self.host.folder / self.label), "--metrics", f"{self.host.v4}:{self.metrics_port}"]
        if self.authority is None:
            argv += ["--self-signed"]
        else:
            certificate, key = self.authority.issue(self.label, self.host.v4)
            argv += ["--cert", str(certificate), "--key", str(key)]
        process = self.process = self.host.start(self.label, [*argv, *self.options])
        process.wait_until(lambda: process.out().endswith("\n"), READY_S, "our relay is ready")
        return self

    @property
    def metrics_port(self) -> int:
        return self.port + 1000

    @property
    def relay_map(self) -> dict[str, Any]:
        """For Headscale: the printed region, its keys as YAML has them."""
        node: dict[str, Any] = {
            "name": f"{REGION}a",
            "regionid": REGION,
            "hostname": self.host.v4,
            "ipv4": self.host.v4,
            "derpport": self.port,
            "stunport": self.stun_port or -1,
            "canport80": "--http" in self.options,
        }
        if self.authority is None:
            assert self.process is not None
            lines = self.process.out().splitlines()
            printed = json.loads(next(line for line in lines if line.startswith("{")))[str(REGION)]
            node = {name.lower(): value for name, value in printed["Nodes"][0].items()}
        region = {"regionid": REGION, "regioncode": "lab", "regionname": "lab", "nodes": [node]}
        return {"regions": {REGION: region}}

    @property
    def printed_yaml(self) -> str:
        """What it prints for Headscale, as an operator pastes it: from `regions:` to the end."""
        assert self.process is not None
        return "regions:" + self.process.out().partition("\nregions:")[2]

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        page = self.host.run("curl", "-s", f"http://{self.host.v4}:{self.metrics_port}/metrics").stdout
        return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop(20.0)
