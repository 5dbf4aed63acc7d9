"""Portal: whether a captive portal stands between this node and its servers, and the sentence that says so.

Asked by the netcheck when UDP is silent, and while there is no netmap by control's failures: then nobody else asks. Off
in containers, where nobody sits before a browser, and behind an HTTP proxy, which is no portal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.base.addr import RegionId
from meshnode.control.client import ControlState
from meshnode.core.captive import Target, control_target, relay_targets, sum_up
from meshnode.core.report import NetReport
from meshnode.run.scope import Scope

if TYPE_CHECKING:
    from meshnode.node.house import House

GAP_S: Final = 10.0
"""Between two looks that failures of control lead to."""


class Portal:
    """Of one running House."""

    def __init__(self, house: House, scope: Scope) -> None:
        self._house = house
        self._scope = scope
        self._looked_at = -GAP_S
        self.text = ""
        """A sentence for people; '' if there is no portal, as far as we know."""

    async def look(self) -> bool | None:
        """Ask now; None: nobody answered, or nobody was asked."""
        from meshnode.underlay.captive import ask_all

        targets = self._targets()
        verdict, self.text = sum_up(await ask_all(targets)) if targets else (None, "")
        return verdict

    def on_control_state(self, state: ControlState) -> None:
        """Control cannot be reached, and there is no map of relays to ask: look for ourselves."""
        house = self._house
        now = house.clock.now()
        if state.error is None or house.netmap.value is not None or now - self._looked_at < GAP_S:
            return
        self._looked_at = now
        self._scope.spawn(self.look(), "captive")

    def on_report(self, report: NetReport) -> None:
        """A look of the netcheck's is the newest; one that found UDP needs none."""
        if report.captive_portal is None and report.udp:
            self.text = ""

    def _targets(self) -> list[Target]:
        from meshnode.underlay.gateway import is_in_container

        house, node = self._house, self._house.node
        control = control_target(node.control_url)
        if node.captive_portal == "off" or (node.captive_portal == "auto" and is_in_container()):
            return []
        if control is not None and node.proxies.choose("https", control.host, 443) is not None:
            return []
        netmap = house.netmap.value
        relays = relay_targets(netmap.relays, self._nearest()) if netmap is not None else []
        return ([control] if control is not None else []) + relays

    def _nearest(self) -> list[RegionId]:
        regions = self._house.reach.report.regions
        by_latency = sorted(regions, key=lambda region: regions[region].best_s or 0.0)
        return [self._house.home.region, *by_latency]
