"""derper: the stock relay with a certificate it signs itself for the hub's IP address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interop.build import binary
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
    process: Process | None = None

    def start(self) -> Derper:
        folder = self.host.folder / "derper"
        folder.mkdir(exist_ok=True)
        argv = [str(binary("tailscale", "derper")), "-a", f"{self.host.v4}:{PORT}", "-http-port", "-1"]
        argv += ["-stun-port", str(STUN_PORT), "-c", str(folder / "derper.key")]
        argv += ["-certmode", "manual", "-certdir", str(folder), "-hostname", self.host.v4]
        self.process = self.host.start("derper", argv)
        self.process.wait_until(self._answers, READY_S, "derper answers /generate_204")
        return self

    def _answers(self) -> bool:
        url = f"https://{self.host.v4}:{PORT}/generate_204"
        done = self.host.run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)
        return done.stdout.strip() == "204"

    @property
    def relay_map(self) -> dict[str, Any]:
        node = {
            "name": f"{REGION}a",
            "regionid": REGION,
            "hostname": self.host.v4,
            "ipv4": self.host.v4,
            "derpport": PORT,
            "stunport": STUN_PORT,
            "insecurefortests": True,
        }
        region = {"regionid": REGION, "regioncode": REGION_CODE, "regionname": "lab", "nodes": [node]}
        return {"regions": {REGION: region}}
