"""Who a relay knows, as a model: one open connection, one node key.

The counterpart of struct mn_hub_client and struct mn_hub_key, for tests/sim/hub.py.
Source: docs/protocol/paths.md 1.2, 1.6, 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.hub_lane import Lane

URGENT_BYTES, DATA_BYTES, MESH_BYTES = 64 << 10, 256 << 10, 4 << 20
GONE_BURST = 3
REGULAR, MESH, PROBER, NOT_IDEAL = 1, 2, 4, 8
"""Of a PeerPresent frame."""
OPEN_PROBER, OPEN_MESH, OPEN_NOT_IDEAL, OPEN_ACKS_PINGS, OPEN_NEIGHBOUR = 1, 2, 4, 8, 32
"""How a connection was opened."""


@dataclass(eq=False)
class Client:
    """One open connection."""

    number: int
    key: bytes
    opened: int
    source: bytes
    urgent: Lane
    data: Lane
    opened_ms: int
    is_home: bool = False
    met: dict[bytes, None] = field(default_factory=dict)
    """Keys that packets were delivered from."""
    notices_left: int = GONE_BURST
    notices_at_ms: int = field(init=False)
    heard_ms: int = field(init=False)
    kept_alive_ms: int = field(init=False)
    was_pinged: bool = False
    kept: bytes = b""
    skip: int = 0
    skipped: int = 0
    received: int = 0
    sent: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self.notices_at_ms = self.heard_ms = self.kept_alive_ms = self.opened_ms

    @property
    def may_mesh(self) -> bool:
        return bool(self.opened & OPEN_MESH)

    @property
    def is_neighbour(self) -> bool:
        return bool(self.opened & OPEN_NEIGHBOUR)

    @property
    def urgent_most(self) -> int:
        """A watcher may hear of thousands at once, and a neighbour carries the packets of many."""
        return MESH_BYTES if self.may_mesh or self.is_neighbour else URGENT_BYTES

    @property
    def flags(self) -> int:
        kind = MESH if self.may_mesh else PROBER if self.opened & OPEN_PROBER else REGULAR
        return kind | (NOT_IDEAL if self.opened & OPEN_NOT_IDEAL else 0)


@dataclass(eq=False)
class Key:
    """A node key: its connections here, live one first, and the neighbours that have it, newest first."""

    key: bytes
    clients: list[Client] = field(default_factory=list)
    routes: list[Client] = field(default_factory=list)
    receivers: dict[Client, None] = field(default_factory=dict)
    changes: int = 0
    is_fighting: bool = False
