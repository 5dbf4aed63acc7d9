"""A peer that behaves as tailscaled does, as far as the other end can tell.

Trust of 6.5 s after each pong of the best address, copies by relay when it has run out, a floor of 5 s between pings of
one address, heartbeats of 3 s for 45 s after data was sent, calls with every round of pings, and addresses of a call
that the next one lacks are forgotten.
Source: docs/protocol/paths.md 7.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, NodePublic
from meshnode.core.path_values import Mode
from meshnode.netmap.model import Node
from meshnode.underlay.peers import DiscoKeys, Known
from meshnode.wire import disco as wire

if TYPE_CHECKING:
    from tests.sim.node import SimNode

TRUST_S: Final = 6.5
PING_GAP_S: Final = 5.0
HEARTBEAT_S: Final = 3.0
ACTIVE_S: Final = 45.0
TIMEOUT_S: Final = 5.0


class StockPath:
    """What a stock node knows of one peer's addresses."""

    def __init__(self) -> None:
        self.home = RegionId(0)
        self.netmap: tuple[Endpoint, ...] = ()
        self.called: tuple[Endpoint, ...] = ()
        self.seen: dict[Endpoint, None] = {}
        self.pinged_at: dict[Endpoint, float] = {}
        self.waiting: dict[bytes, tuple[Endpoint, float]] = {}
        self.best: Endpoint | None = None
        self.latency_s = 0.0
        self.trust_until = -1e9
        self.sent_at = -1e9
        self.is_beating = False

    def candidates(self) -> list[Endpoint]:
        """All of them, once."""
        return list(dict.fromkeys((*self.netmap, *self.called, *self.seen)))


class _Roaming:
    """Any change of addresses clears every path."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock

    def judge_by(self, look: Callable[[IP], IP | None]) -> None:
        """It does not judge."""

    def on_network(self, endpoints: Iterable[Endpoint], gone: Collection[IP], usable: Collection[IP]) -> None:
        """A rebind."""
        self._stock.own = tuple(endpoints)
        if gone:
            for known, path in self._stock.paths.items():
                path.best, path.pinged_at = None, {}
                self._stock.tell(known)


class Stock:
    """Stands where Discovery stands in a node of ours."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self._keys = DiscoKeys(DiscoPrivate.generate(node.world.dice.randbytes))
        self._peers: dict[NodePublic, Known] = {}
        self.paths: dict[Known, StockPath] = {}
        self.own: tuple[Endpoint, ...] = ()
        self.roaming = _Roaming(self)
        self.send_udp: Callable[..., Any]
        self.send_relay: Callable[..., Any]
        self.set_path: Callable[..., Any]
        self.kick = self.restun = self.notify = lambda *_: None

    @property
    def public(self) -> Any:
        """Our disco key."""
        return self._keys.public

    def _awake(self) -> list[Any]:
        """No machine of ours is in here to be watched."""
        return []

    def is_direct(self, peer: NodePublic) -> bool:
        """Whether the best address is trusted now."""
        path = self.paths[self._peers[peer]]
        return path.best is not None and self.node.now < path.trust_until

    # what the netmap, the engine and the relays say

    def on_netmap_peer(self, peer: Node) -> None:
        """Added or changed."""
        known = self._peers.setdefault(peer.key, Known(peer.key, self.node.now))
        path = self.paths.setdefault(known, StockPath())
        if peer.disco != known.disco:
            self._keys.assign(known, peer.disco, self.node.now)
            path.best, path.pinged_at = None, {}
        path.home, path.netmap = peer.home, peer.endpoints
        self.tell(known)

    def set_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Our own."""
        self.own = tuple(endpoints)

    def on_send(self, peer: NodePublic, wanted: bool) -> None:
        """Data went out: without a trusted address, every address is pinged and the peer called."""
        known = self._peers[peer]
        path = self.paths[known]
        path.sent_at = self.node.now
        if not self.is_direct(peer):
            self._ping_all(known, path)
        if not path.is_beating:
            path.is_beating = True
            self.node.call_later(HEARTBEAT_S, lambda: self._beat(known, path))

    def on_recv(self, peer: NodePublic, direct: Endpoint | None, region: int, what: int) -> None:
        """Data is no evidence."""

    on_send_error = on_handshake = on_peer_gone = relay_up = relay_down = on_link_change = lambda *_: None

    def close(self) -> None:
        """Nothing is held."""

    # DISCO

    def on_disco(self, ip: IP, port: int, data: bytes) -> None:
        """By UDP."""
        known, message = self._open(data)
        source = Endpoint(ip, port)
        if known is None:
            return
        path = self.paths[known]
        if isinstance(message, wire.Ping):
            path.seen[source] = None
            self._seal(known, wire.Pong(message.txid, source), source)
        elif isinstance(message, wire.Pong) and message.txid in path.waiting:
            self._take_pong(known, path, *path.waiting.pop(message.txid))

    def on_relay_disco(self, region: RegionId, sender: NodePublic, data: bytes) -> None:
        """By relay."""
        known, message = self._open(data)
        if known is not None and isinstance(message, wire.CallMeMaybe):
            path = self.paths[known]
            gone = set(path.called) - set(message.endpoints) - set(path.netmap)
            path.called = message.endpoints
            if path.best in gone:
                path.best = None
            path.pinged_at = {}
            self._ping_all(known, path, call=False)

    def _take_pong(self, known: Known, path: StockPath, endpoint: Endpoint, sent_at: float) -> None:
        now = self.node.now
        if now - sent_at >= TIMEOUT_S:
            return
        is_trusted = path.best is not None and now < path.trust_until
        if endpoint == path.best or not is_trusted or now - sent_at < 0.9 * path.latency_s:
            path.best, path.latency_s, path.trust_until = endpoint, now - sent_at, now + TRUST_S
            self.node.call_later(TRUST_S + 0.001, lambda: self.tell(known))
            self.tell(known)

    def _ping_all(self, known: Known, path: StockPath, *, call: bool = True) -> None:
        sent = [e for e in path.candidates() if self.node.now - path.pinged_at.get(e, -1e9) >= PING_GAP_S]
        for endpoint in sent:
            self._ping(known, path, endpoint)
        if sent and call and known.disco is not None:
            packet = self._box(known).seal(wire.CallMeMaybe(self.own), self._random(wire.NONCE_LEN))
            self.send_relay(path.home, known.key, packet)

    def _beat(self, known: Known, path: StockPath) -> None:
        path.is_beating = self.node.now - path.sent_at < ACTIVE_S
        if path.is_beating:
            if path.best is not None:
                self._ping(known, path, path.best)
            self.node.call_later(HEARTBEAT_S, lambda: self._beat(known, path))

    def _ping(self, known: Known, path: StockPath, endpoint: Endpoint) -> None:
        if known.disco is None:
            return
        txid = self._random(wire.TXID_LEN)
        path.pinged_at[endpoint], path.waiting[txid] = self.node.now, (endpoint, self.node.now)
        self._seal(known, wire.Ping(txid, self.node.key), endpoint)

        def lost() -> None:
            is_untrusted = self.node.now >= path.trust_until
            if path.waiting.pop(txid, None) is not None and endpoint == path.best and is_untrusted:
                path.best = None
                self.tell(known)

        self.node.call_later(TIMEOUT_S, lost)

    def tell(self, known: Known) -> None:
        """The engine sends where addrForSend would."""
        path = self.paths[known]
        mode = Mode.RELAY if path.best is None else Mode.DIRECT if self.is_direct(known.key) else Mode.BOTH
        self.set_path(known.key, path.best, path.home, mode)

    def _open(self, data: bytes) -> tuple[Known | None, wire.Message | None]:
        owners = tuple(self._keys.owners(wire.sender_of(data), self.node.now))
        return (owners[0], self._box(owners[0]).open(data)) if owners else (None, None)

    def _seal(self, known: Known, message: wire.Message, target: Endpoint) -> None:
        self.send_udp(target.ip, target.port, self._box(known).seal(message, self._random(wire.NONCE_LEN)))

    def _box(self, known: Known) -> wire.Box:
        assert known.disco is not None
        box = self._keys.box(known.disco.raw)
        assert box is not None
        return box

    def _random(self, count: int) -> bytes:
        return self.node.world.dice.randbytes(count)
