"""What we tell control about ourselves: Hostinfo, endpoints, disco key, home relay.

One Announcement per client. `change` takes news, `changed` is awaited by the updater; `generation`
counts what is worth telling, so that latency alone never causes a message (Headscale pays for each
with a full update to every peer).
Source: docs/protocol/control.md 4.1, 4.2, 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.bounds import OWN_ENDPOINTS_MAX
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.netmap import tailcfg
from meshnode.netmap.tailcfg import EndpointKind

VOLATILE = frozenset({"DERPLatency"})
"""Parts of NetInfo that change all the time and are nobody's business."""


class Announcement:
    """The newest of everything, complete."""

    def __init__(self, hostinfo: Mapping[str, Any], disco: DiscoPublic) -> None:
        self._hostinfo = dict(hostinfo)
        self._net_info: Mapping[str, Any] = {}
        self._endpoints: tuple[tuple[Endpoint, EndpointKind], ...] = ()
        self._disco = disco
        self._home = RegionId(0)
        self.generation = 0
        self.acknowledged = -1
        """The last generation the server confirmed."""
        self.changed = asyncio.Event()

    def change(
        self,
        *,
        endpoints: Sequence[tuple[Endpoint, EndpointKind]] | None,
        home_region: RegionId | None,
        disco: DiscoPublic | None,
        net_info: Mapping[str, Any] | None,
        hostinfo: Mapping[str, Any] | None,
    ) -> None:
        """Take news; wakes the updater only if they matter."""
        before = self._material()
        if endpoints is not None:
            self._endpoints = tuple(dict.fromkeys(endpoints))[:OWN_ENDPOINTS_MAX]
        if home_region is not None:
            self._home = home_region
        self._disco = disco or self._disco
        if hostinfo is not None:
            self._hostinfo = dict(hostinfo)
        if net_info is not None and (not self._net_info or _steady(net_info) != _steady(self._net_info)):
            # Otherwise the one sent before is sent again, latencies and all.
            self._net_info = dict(net_info)
        if self._material() != before:
            self.generation += 1
            self.changed.set()

    @property
    def home(self) -> RegionId:
        """The home relay we announce; 0 while we have none."""
        return self._home

    def _material(self) -> tuple[object, ...]:
        return self._hostinfo, _steady(self._net_info), self._endpoints, self._disco, self._home

    def hostinfo(self) -> dict[str, Any]:
        """The complete Hostinfo."""
        return tailcfg.with_net_info(self._hostinfo, self._home, self._net_info)

    def request(self, node_key: NodePublic, version: int, *, stream: bool, compress: bool = False) -> bytes:
        """A MapRequest that carries all of it."""
        return tailcfg.emit_map_request(
            version=version,
            node_key=node_key,
            disco_key=self._disco,
            hostinfo=self.hostinfo(),
            endpoints=self._endpoints,
            stream=stream,
            compress=compress,
        )


def _steady(net_info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in net_info.items() if name not in VOLATILE}
