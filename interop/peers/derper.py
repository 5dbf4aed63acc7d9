"""derper: the stock relay, over TLS for the hub's IP address.

With an authority its certificate is an ordinary one that every node verifies; without, derper signs
one itself, and the DERP map carries the pin that it prints.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interop.build import binary
from interop.certs import Authority
from interop.lab import Host, Process

REGION = 900
REGION_CODE = "lab"
PORT = 3340
STUN_PORT = 3478
READY_S = 15.0


@dataclass
class Derper:
    """One relay on `host`; `relay_map` is what control hands out about it."""

    host: Host
    authority: Authority | None = None
    mesh_key: Path | None = None
    """File with the key that the relays of a region share."""
    mesh_with: str = ""
    region: int = REGION
    port: int = PORT
    dual: bool = False
    """It listens on both families, and the map says so."""
    process: Process | None = None

    def start(self) -> Derper:
        folder = self.host.folder / "derper"
        folder.mkdir(exist_ok=True)
        if self.authority is not None:
            certificate, key = self.authority.issue("derper", self.host.v4)
            shutil.copy(certificate, folder / f"{self.host.v4}.crt")
            shutil.copy(key, folder / f"{self.host.v4}.key")
        listen = f":{self.port}" if self.dual else f"{self.host.v4}:{self.port}"
        argv = [str(binary("tailscale", "derper")), "-a", listen, "-http-port", "-1"]
        argv += ["-stun-port", str(STUN_PORT), "-c", str(folder / "derper.key")]
        argv += ["-certmode", "manual", "-certdir", str(folder), "-hostname", self.host.v4]
        if self.mesh_key is not None:
            argv += ["-mesh-psk-file", str(self.mesh_key), "-mesh-with", self.mesh_with]
        self.process = self.host.start("derper", argv)
        self.process.wait_until(self._answers, READY_S, "derper answers /generate_204")
        return self

    def _answers(self) -> bool:
        url = f"https://{self.host.v4}:{self.port}/generate_204"
        done = self.host.run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)
        return done.stdout.strip() == "204"

    @property
    def code(self) -> str:
        """Of its region."""
        return REGION_CODE if self.region == REGION else f"{REGION_CODE}{self.region}"

    @property
    def pin(self) -> str:
        """`sha256-raw:` and the digest of the certificate it made, as it says at start."""
        assert self.process is not None
        found = re.search(r"sha256-raw:[0-9a-f]{64}", self.process.err() + self.process.out())
        assert found, self.process.log_tail()
        return found.group()

    @property
    def relay_map(self) -> dict[str, Any]:
        node = {
            "name": f"{self.region}a",
            "regionid": self.region,
            "hostname": self.host.v4,
            "ipv4": self.host.v4,
            "derpport": self.port,
            "stunport": STUN_PORT,
        }
        if self.authority is None:
            node["certname"] = self.pin
        if self.dual:
            node["ipv6"] = self.host.v6
        region = {"regionid": self.region, "regioncode": self.code, "regionname": self.code, "nodes": [node]}
        return {"regions": {self.region: region}}
