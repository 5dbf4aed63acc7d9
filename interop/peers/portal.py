"""A captive portal: nginx on a host's port 80 that sends every request to its login page, wherever it was meant for."""

from __future__ import annotations

from dataclasses import dataclass

from interop.lab import Host
from interop.peers.front import HEAD
from interop.process import Process

READY_S = 15.0
CONFIG = (
    HEAD
    + """    server {{
        listen {address}:80;
        return 302 http://login.portal.example/;
    }}
}}
"""
)


@dataclass
class CaptivePortal:
    """One portal on `host`; lead what is meant for others there with `Host.divert`."""

    host: Host
    process: Process | None = None

    def start(self) -> CaptivePortal:
        folder = self.host.folder / "portal"
        folder.mkdir()
        config = folder / "nginx.conf"
        config.write_text(CONFIG.format(folder=folder, address=self.host.v4))
        argv = ["nginx", "-c", str(config), "-e", str(folder / "error.log")]
        self.process = self.host.start("portal", argv)
        self.process.wait_until(self._answers, READY_S, "the portal answers")
        return self

    def _answers(self) -> bool:
        url = f"http://{self.host.v4}/"
        done = self.host.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)
        return done.stdout.strip() == "302"
