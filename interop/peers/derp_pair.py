"""DerpPair: two stock derphttp clients, each at a relay, in one program; what it says becomes values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from interop.build import binary
from interop.lab import Host, LabError, Process

SAY_S = 60.0


@dataclass
class DerpPair:
    """On `host`: the first client at relay `a`, the second at `b`, both HOST:PORT; '' is the same relay."""

    host: Host
    a: str
    b: str = ""
    options: tuple[str, ...] = ()
    """Of the program: -tls 1.2, -pin …, -stay, …"""
    variables: dict[str, str] = field(default_factory=dict)
    label: str = "derp-pair"
    process: Process | None = None

    def start(self) -> DerpPair:
        argv = [str(binary("derp_pair", "derp-pair")), "-a", self.a, "-b", self.b, *self.options]
        self.process = self.host.start(self.label, argv, **self.variables)
        return self

    def events(self) -> list[dict[str, Any]]:
        """Everything said so far."""
        assert self.process is not None
        return [json.loads(line) for line in self.process.out().splitlines(True) if line.endswith("\n")]

    def wait_for(self, event: str, timeout_s: float = SAY_S) -> dict[str, Any]:
        """This event; LabError with what failed instead."""
        process = self.process
        assert process is not None

        def said() -> dict[str, Any] | None:
            for each in self.events():
                if each["event"] == "failed":
                    raise LabError(f"{process.label}: {each['what']}: {each['error']}\n{process.log_tail()}")
                if each["event"] == event:
                    return each
            return None

        return process.wait_until(said, timeout_s, f"derp-pair says {event}")

    def failure(self, timeout_s: float = SAY_S) -> dict[str, Any]:
        """How it failed; it must."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        last = self.events()[-1]
        assert code != 0 and last["event"] == "failed", self.process.log_tail()
        return last
