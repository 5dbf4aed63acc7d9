"""Who owns which disco key, and how we seal to it.

One disco key may belong to several nodes (a machine that is shared in appears twice), and a peer that
restarted is known by its old key for two minutes more. A sender that nobody owns is dropped before any
cipher runs.
Source: docs/protocol/paths.md 6.4.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import LocalProtocolError
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePublic
from meshnode.core.bucket import Bucket
from meshnode.core.path import PeerPath
from meshnode.core.regions import Regions
from meshnode.wire.disco import Box

OLD_KEY_S: Final = 120.0
PONGS_PER_S: Final = 50.0
PONGS_BURST: Final = 100.0
CALLS_PER_S: Final = 1.0
CALLS_BURST: Final = 5.0


class Known:
    """A peer as the underlay knows it. `path` is made when something first happens."""

    __slots__ = (
        "announced", "armed_at", "calls", "disco", "endpoints", "is_told", "key", "path", "pongs", "region", "regions",
        "since",
    )  # fmt: skip

    def __init__(self, key: NodePublic, now: float) -> None:
        self.key = key
        self.disco: DiscoPublic | None = None
        self.announced: DiscoPublic | None = None
        """The key as control said it last; it may lag behind what the peer itself says."""
        self.is_told = False
        """It has heard our key inside the tunnel."""
        self.endpoints: tuple[Endpoint, ...] = ()
        self.regions = Regions()
        self.region = RegionId(0)
        """Where to reach it by relay, as `regions` last said; 0: nowhere."""
        self.path: PeerPath | None = None
        self.armed_at: float | None = None
        self.pongs = Bucket(PONGS_PER_S, PONGS_BURST)
        self.calls = Bucket(CALLS_PER_S, CALLS_BURST)
        self.since = now


class DiscoKeys:
    """Disco key → its owners and its box."""

    def __init__(self, private: DiscoPrivate) -> None:
        self._private = private
        self.public = private.public()
        self._owners: dict[bytes, dict[NodePublic, Known]] = {}
        self._old: dict[bytes, tuple[Known, float]] = {}
        self._boxes: dict[bytes, Box] = {}
        self.curve_count = 0
        """Curve operations spent; strangers must not be able to raise it."""

    def assign(self, peer: Known, disco: DiscoPublic | None, now: float) -> None:
        """The peer's key is this now. The one before is understood for a while."""
        if peer.disco is not None:
            self._leave(peer)
            if disco is not None:
                self._old[peer.disco.raw] = (peer, now + OLD_KEY_S)
        peer.disco = disco
        if disco is not None:
            self._owners.setdefault(disco.raw, {})[peer.key] = peer
        self._expire(now)

    def forget(self, peer: Known) -> None:
        """The peer is gone."""
        if peer.disco is not None:
            self._leave(peer)
        for raw in [r for r, (old, _) in self._old.items() if old is peer]:
            del self._old[raw]
            self._drop_box(raw)

    def owners(self, raw: bytes, now: float) -> Collection[Known]:
        """The peers that may have sealed with this key; empty for a stranger."""
        found = self._owners.get(raw)
        if found is not None:
            return found.values()
        old = self._old.get(raw)
        return (old[0],) if old is not None and now < old[1] else ()

    def box(self, raw: bytes) -> Box | None:
        """The box for a key that has owners; None if the key is no usable one."""
        box = self._boxes.get(raw)
        if box is None:
            self.curve_count += 1
            try:
                box = self._boxes[raw] = Box(self._private, self.public, DiscoPublic(raw))
            except LocalProtocolError:
                return None
        return box

    def box_of_relay(self, disco: DiscoPublic) -> Box | None:
        """A box for a peer relay, which has a key of its own; whoever asks keeps it."""
        self.curve_count += 1
        try:
            return Box(self._private, self.public, disco)
        except LocalProtocolError:
            return None

    def _leave(self, peer: Known) -> None:
        assert peer.disco is not None
        raw = peer.disco.raw
        owners = self._owners.get(raw, {})
        owners.pop(peer.key, None)
        if not owners:
            self._owners.pop(raw, None)
            self._drop_box(raw)

    def _expire(self, now: float) -> None:
        for raw in [r for r, (_, until) in self._old.items() if now >= until]:
            del self._old[raw]
            self._drop_box(raw)

    def _drop_box(self, raw: bytes) -> None:
        if raw not in self._owners and raw not in self._old:
            self._boxes.pop(raw, None)
