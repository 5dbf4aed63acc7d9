"""A home router that maps ports: a symmetric NAT of the lab with Debian's miniupnpd on it, and one host behind.

The lab's own addresses are private, which miniupnpd refuses to map to; so a router also has 11.77.0.N, as if
that were public.
"""

from __future__ import annotations

from interop.lab import Host, Lab, until
from interop.process import Process
from tests.lab.rules import Nat
from tests.lab.site import Site

NETWORK = "11.77.0."
CHAINS = """
table inet upnpd {
 chain through { }
 chain pre { }
 chain post { }
 chain forward {
  type filter hook forward priority 0
  jump through
 }
 chain prerouting {
  type nat hook prerouting priority -100
  jump pre
 }
 chain postrouting {
  type nat hook postrouting priority 90
  jump post
 }
}
"""
CONFIG = """ext_ifname=wan
ext_ip={ip}
listening_ip=br-lan
http_port=5000
ipv6_disable=yes
enable_natpmp={pmp}
enable_upnp={upnp}
min_lifetime=5
max_lifetime={lifetime}
secure_mode=yes
system_uptime=no
upnp_table_name=upnpd
upnp_nat_table_name=upnpd
upnp_forward_chain=through
upnp_nat_chain=pre
upnp_nat_postrouting_chain=post
uuid=7b3c5a46-4d36-4d8e-9c39-0a0d2e3f4a5b
"""


class Router:
    """One router and the host behind it. Use inside a Lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._site = Site(lab, name, Nat.SYMMETRIC).build()
        self.host: Host = self._site.router
        self.inside: Host = self._site.host(name)
        self.public = f"{NETWORK}{self.host.number}"
        self._upnpd: Process | None = None
        lab.hub.ip("address", "replace", f"{NETWORK}1/24", "dev", "br0")
        self.host.ip("address", "add", f"{self.public}/24", "dev", "wan")
        self.host.nft(CHAINS)

    def start_upnpd(self, *, pmp: bool = True, upnp: bool = True, lifetime: int = 7200) -> None:
        """Let the router map ports; it grants at most `lifetime` seconds by NAT-PMP and PCP."""
        yes = {True: "yes", False: "no"}
        config, pid = self.host.folder / "miniupnpd.conf", self.host.folder / "miniupnpd.pid"
        config.write_text(CONFIG.format(ip=self.public, pmp=yes[pmp], upnp=yes[upnp], lifetime=lifetime))
        pid.unlink(missing_ok=True)
        process = self.host.start("miniupnpd", ["miniupnpd", "-d", "-f", str(config), "-P", str(pid)])
        sign = "NAT-PMP/PCP traffic" if pmp else "HTTP listening on port"
        process.wait_until(lambda: sign in process.out() + process.err(), 10.0, "miniupnpd listens")
        self._upnpd = process

    def stop_upnpd(self) -> None:
        """As if the power had gone: every mapping is forgotten."""
        assert self._upnpd is not None
        self._upnpd.kill()
        self.host.nft("\n".join(f"flush chain inet upnpd {chain}" for chain in ("pre", "post", "through")))

    def mappings(self) -> list[str]:
        """The rules that lead from outside to the host behind."""
        listed = self.host.run("nft", "list", "chain", "inet", "upnpd", "pre").stdout
        return [line.strip() for line in listed.splitlines() if "dnat" in line]

    def wait_mapped(self, count: int, timeout_s: float = 10.0) -> None:
        """Until that many mappings stand."""
        until(lambda: len(self.mappings()) == count, timeout_s, f"{count} mappings on {self.host.name}")
