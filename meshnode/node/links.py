"""LinkKeeper: what this node does when the machine's network changes, when it wakes, and when its sockets fail.

One look finds what differs. Relays and control hear of it first, so that no word is lost with a connection that is
over; then paths, and peers of our new endpoints. Sockets are made anew only where they fail: new ones may lose their
port.
Source: docs/protocol/paths.md 4.6, 7.6, 8.7.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meshnode.base.addr import IP, Endpoint
from meshnode.core.network import Change, Network, compare
from meshnode.core.rebinding import Rebinding
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.run.log import get_logger

if TYPE_CHECKING:
    from meshnode.node.house import House
    from meshnode.underlay.linkwatch import LinkWatch

AGAIN_S: Final = 5.0
"""Until sockets that could not be had are tried again."""

_log = get_logger("links")


class LinkKeeper:
    """Of one running House, which owns it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._network = Network()
        self._rebinding = Rebinding()
        self._watch: LinkWatch | None = None
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look for the first time, then whenever something changed."""
        from meshnode.underlay.interfaces import read_network, source_towards
        from meshnode.underlay.linkwatch import LinkWatch

        house = self._house
        roaming = house.discovery.roaming
        roaming.judge_by(source_towards)
        roaming.on_wake = self.on_wake
        self._network = read_network()
        house.reach.put(EndpointKind.EXPLICIT, house.node.advertise)
        house.reach.put(EndpointKind.LOCAL, self._local_endpoints())
        self._watch = LinkWatch(house.clock, on_change=self.refresh, on_tick=roaming.look_for_sleep)
        self._watch.start()

    def close(self) -> None:
        """Idempotent."""
        if self._again is not None:
            self._again.cancel()
        if self._watch is not None:
            self._watch.close()

    def counters(self) -> dict[str, int]:
        """What was noticed."""
        watched = self._watch.counters if self._watch is not None else {}
        return {**watched, "socket_renewals": self._rebinding.count}

    def refresh(self) -> None:
        """Look at the machine's network now."""
        from meshnode.underlay.interfaces import read_network

        before, self._network = self._network, read_network()
        change = compare(before, self._network)
        if change is None:
            self._house.discovery.roaming.on_routes(self._usable())
            return
        house = self._house
        _tell(change)
        if not change.is_minor:
            house.pool.on_network(change.gone)
            house.control.on_network({str(ip) for ip in change.gone})
        house.reach.on_network(self._local_endpoints(), change, self._usable())

    def _usable(self) -> frozenset[IP] | None:
        return self._network.ips if self._network.is_complete else None

    def _local_endpoints(self) -> tuple[Endpoint, ...]:
        from meshnode.underlay.endpoints import local_endpoints

        house = self._house
        ports = house.engine.port4, house.engine.port6
        return tuple(local_endpoints(self._network, *ports, loopback_ok=house.node.use_loopback))

    # --- waking, and failing sockets ---

    def on_wake(self) -> None:
        """The machine slept, or this process was stopped: what others knew of us may be over."""
        _log.info("woke up; asking every connection whether it lives")
        self.refresh()
        self._house.reach.on_link_change()
        self._house.pool.on_network()
        self._house.control.on_network(())

    def on_send_error(self, ip: IP, number: int) -> None:
        """The system refused a datagram to there."""
        from meshnode.underlay.interfaces import source_towards

        now = self._house.clock.now()
        if self._rebinding.suspects(number, now) and source_towards(ip) is not None:
            self._rebinding.note(now)
            _log.warning("UDP sockets fail where the system has a way; renewing them", errno=number)
            self._house.engine.rebind()

    def on_rebound(self, number: int) -> None:
        """The UDP sockets are new, perhaps on another port; or (an errno) there are none."""
        if number:
            self._again = asyncio.get_running_loop().call_later(AGAIN_S, self._house.engine.rebind)
        else:
            self._house.reach.on_new_sockets(self._local_endpoints())


def _tell(change: Change) -> None:
    about = {"gone": change.gone, "new": change.came}
    texts = {name: ",".join(sorted(map(str, ips))) for name, ips in about.items() if ips}
    log = _log.debug if change.is_minor else _log.info
    log("the network changed", **texts, ways_out=",".join(f"IPv{family}" for family in sorted(change.moved)) or "same")
