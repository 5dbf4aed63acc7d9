"""Seals and sends DISCO, opens what arrives, and answers pings.

Speaker is the half of Discovery that knows boxes: who may have sealed a packet, what goes out to whom, and how
much of it. It decides nothing about paths.
Source: docs/protocol/paths.md 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any, Final

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePublic
from meshnode.core.bucket import Bucket
from meshnode.core.path_values import SendPing, State
from meshnode.run.clock import Clock
from meshnode.underlay.own import OwnEndpoints
from meshnode.underlay.peers import DiscoKeys, Known
from meshnode.wire import disco as wire
from meshnode.wire import geneve

PONGS_PER_S: Final = 500.0
RELAY_SOURCE: Final = IPv4Address("127.3.3.40")
"""What a pong by relay says its ping came from; the port is the region. Never an address of a socket."""


def ignore(*_: Any) -> None:
    """Until wiring sets the callable."""


def refuse(*_: Any) -> bool:
    return False


class Speaker:
    """Our voice in DISCO."""

    def __init__(self, private: DiscoPrivate, node: NodePublic, clock: Clock, *, loopback_ok: bool) -> None:
        self._clock = clock
        self._node = node
        self._keys = DiscoKeys(private)
        self._own = OwnEndpoints(loopback_ok)
        self._pong_budget = Bucket(PONGS_PER_S, PONGS_PER_S)
        self._counters: Counter[str] = Counter()
        self.send_udp: Callable[[IP, int, bytes], Any] = ignore
        """Engine.send_raw"""
        self.send_extra: Callable[[Endpoint, bytes], Any] = ignore
        """Engine.send_extra"""
        self.send_relay: Callable[[RegionId, NodePublic, bytes], bool] = refuse
        """RelayPool.send"""
        self.has_leg: Callable[[NodePublic, Endpoint], bool] = refuse
        """Whether a peer may be heard by that leg of a peer relay."""
        self.restun: Callable[[], Any] = ignore
        """Our endpoints are wanted fresh; for a STUN client."""
        self.restun_now: Callable[[], Any] = ignore
        """A direct path is in doubt: a NAT may have given us another address, however fresh what we know is."""

    @property
    def public(self) -> DiscoPublic:
        """Our disco key, for control."""
        return self._keys.public

    def set_node_key(self, node: NodePublic) -> None:
        """Our own node key changed; it is named in our pings."""
        self._node = node

    # --- in ---

    def _open(
        self, data: bytes, now: float, source: Endpoint | None = None
    ) -> tuple[Sequence[Known], wire.Message | None]:
        """(who may have sealed it, what it says). Strangers cost no cipher, nor do legs that are not the sender's."""
        raw = wire.sender_of(data)
        owners = tuple(self._keys.owners(raw, now)) if len(data) >= wire.MESSAGE_MIN else ()
        if not owners:
            self._counters["disco_bad_peer"] += 1
            return (), None
        if source is not None and source.vni:
            owners = tuple(known for known in owners if self.has_leg(known.key, source))
            if not owners:
                self._counters["disco_bad_leg"] += 1
                return (), None
        box = self._keys.box(raw)
        message = box.open(data) if box is not None else None
        if message is None:
            self._counters["disco_unread"] += 1
        return owners, message

    def _answer(
        self, known: Known | None, owners: Sequence[Known], ping: wire.Ping, data: bytes, source: Endpoint
    ) -> None:
        """Pong to exactly where the ping came from, whoever of the owners it was."""
        now = self._clock.now()
        box = self._keys.box(wire.sender_of(data))
        limit = (known or owners[0]).pongs
        if box is not None and limit.take(now) and self._pong_budget.take(now):
            self._send_to(source, self._seal(box, wire.Pong(ping.txid, source)))

    def _answer_by_relay(self, known: Known, ping: wire.Ping, data: bytes, region: RegionId) -> None:
        box = self._keys.box(wire.sender_of(data))
        if box is not None and known.pongs.take(self._clock.now()):
            pong = wire.Pong(ping.txid, Endpoint(RELAY_SOURCE, region))
            self.send_relay(region, known.key, self._seal(box, pong))

    # --- out ---

    def _send_ping(self, known: Known, ping: SendPing) -> None:
        box = self._keys.box(known.disco.raw) if known.disco is not None else None
        if box is None:
            return
        header = geneve.HEADER_LEN if ping.endpoint.vni else 0
        padding = wire.ping_padding(ping.wire - header, is_v6=ping.endpoint.ip.version == 6)
        self._send_to(ping.endpoint, self._seal(box, wire.Ping(ping.txid, self._node, padding)))

    def _send_to(self, to: Endpoint, packet: bytes, *, is_control: bool = False) -> None:
        """By UDP, from the socket it names; by a leg of a peer relay, with its header. is_control: to the relay."""
        if to.vni:
            packet = geneve.emit(geneve.Relayed(to.vni, is_control, packet))
        if to.socket:
            self.send_extra(to, packet)
        else:
            self.send_udp(to.ip, to.port, packet)

    def _send_by_relay(self, known: Known, message: wire.Message) -> None:
        """By the peer's relay region, if it and the peer's key are known."""
        box = self._keys.box(known.disco.raw) if known.disco is not None else None
        if box is not None and known.region:
            self.send_relay(known.region, known.key, self._seal(box, message))

    def _send_call(self, known: Known, *first: Endpoint) -> None:
        """first: endpoints of ours for this peer alone, before all others."""
        box = self._keys.box(known.disco.raw) if known.disco is not None else None
        if box is None or known.path is None:
            return
        if known.path.state is State.DEGRADED:
            self.restun_now()
        elif not self._own.is_fresh(self._clock.now()):
            self.restun()
        own = self._own.to_announce(known.path.seen_as, self._clock.now())
        self.send_relay(known.region, known.key, self._seal(box, wire.CallMeMaybe((*first, *own))))

    def _seal(self, box: wire.Box, message: wire.Message) -> bytes:
        return box.seal(message, self._clock.entropy(wire.NONCE_LEN))


def resolve(owners: Sequence[Known], hint: NodePublic | None) -> Known | None:
    """Which owner of a disco key pinged by UDP; None: it cannot be told."""
    for known in owners:
        if known.key == hint:
            return known
    return owners[0] if len(owners) == 1 else None
