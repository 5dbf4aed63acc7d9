"""Discovery: routes DISCO and keeps one path machine per peer.

Feeds `core.path` with what the engine, the relays, the netmap and the link say; `paths` performs what it returns,
`speaker` seals and opens. Pings are always answered. CallMeMaybe and pongs are limited per peer and in all, so that
nobody can make us a lever against a third party.
Source: docs/protocol/paths.md 6.3 to 6.7, 8.7.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePublic
from meshnode.base.units import Seconds
from meshnode.core.path import PeerPath
from meshnode.core.path_values import Mode, PathStatus, State, Tuning, What
from meshnode.netmap.model import Node
from meshnode.run.clock import Clock
from meshnode.underlay.deadlines import CallLater
from meshnode.underlay.paths import Paths
from meshnode.underlay.peers import Known
from meshnode.underlay.pings import PingResult, Pings
from meshnode.underlay.speaker import resolve
from meshnode.wire import disco as wire
from meshnode.wire import geneve

__all__ = ["Discovery", "PingResult"]

PASSING: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EPERM})
"""Told by the engine when there were ten within a second."""
UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.EHOSTDOWN}
)


class Discovery(Paths):
    """Every peer's path. Made inside a running loop; ended by `close`. All methods are of the loop's thread."""

    def __init__(
        self,
        private: DiscoPrivate,
        node: NodePublic,
        *,
        clock: Clock | None = None,
        loopback_ok: bool = False,
        tuning: Tuning | None = None,
        call_later: CallLater | None = None,
    ) -> None:
        """call_later: how to be woken; the running loop's unless a simulator brings its own."""
        super().__init__(private, node, clock=clock, loopback_ok=loopback_ok, tuning=tuning, call_later=call_later)
        self._pings = Pings(self._clock)

    # --- what the netmap says ---

    def on_netmap_peer(self, peer: Node) -> None:
        """Add a peer or take what changed of it. The engine must know it already."""
        now = self._clock.now()
        known = self._peers.get(peer.key)
        if known is None:
            known = self._peers[peer.key] = Known(peer.key, now)
        is_news, known.announced = peer.disco != known.announced, peer.disco
        is_restarted = is_news and self._take_key(known, peer.disco)
        known.regions.note_home(peer.home)
        has_new, known.endpoints = peer.endpoints != known.endpoints, peer.endpoints
        if peer.wireguard_only:
            direct = peer.endpoints[0] if peer.endpoints else None
            self.set_path(peer.key, direct, RegionId(0), Mode.DIRECT if direct else Mode.NONE)
        elif known.path is not None:
            self._choose_region(known)
            self._update(known, known.path, is_restarted, has_new)
        elif self._choose_region(known):
            self._set_asleep(known)

    def _update(self, known: Known, path: PeerPath, is_restarted: bool, has_new: bool) -> None:
        now = self._clock.now()
        if has_new:
            self._perform(known, path.on_endpoints(known.endpoints, now))
        if is_restarted:
            self._perform(known, path.on_disco_key(now))

    def _take_key(self, known: Known, disco: DiscoPublic | None) -> bool:
        """The peer's key is this; True if it had another, and so has restarted."""
        had = known.disco
        if disco == had:
            return False
        self._keys.assign(known, disco, self._clock.now())
        known.is_told = False
        self._meetings.forget(known)
        return had is not None

    def on_disco_key(self, peer: NodePublic, disco: DiscoPublic) -> None:
        """A peer says inside the tunnel, where nobody else can, what its key is: before control does, perhaps."""
        now, known = self._clock.now(), self._peers.get(peer)
        if known is None or disco.is_zero or not known.calls.take(now):
            return
        self._counters["disco_keys_confirmed" if disco == known.disco else "disco_keys_told"] += 1
        if self._take_key(known, disco) and known.path is not None:
            self._perform(known, known.path.on_disco_key(now))

    def on_netmap_removed(self, key: NodePublic) -> None:
        """Forget a peer (removed, expired, or its node key changed)."""
        known = self._peers.pop(key, None)
        if known is not None:
            self._keys.forget(known)
            self._meetings.forget(known)
            if self.prediction is not None:
                self.prediction.forget(known)
            known.path = None
            known.armed_at = None

    def set_relay_servers(self, servers: Iterable[NodePublic]) -> None:
        """The members that may relay between us and others, best first."""
        self._meetings.set_servers(servers)

    def allow_peer_relays(self, is_allowed: bool) -> None:
        """Whether members may relay by UDP between us and others: they are neither a relay region nor the peer."""
        self._meetings.allow(is_allowed)

    def set_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Our own endpoints, best first."""
        if not self._own.replace(tuple(endpoints), self._clock.now()):
            return
        for known, path in self._awake():
            self._perform(known, path.on_own_endpoints(self._clock.now()))

    def forget_own(self, vanished: Iterable[IP]) -> None:
        """These addresses are ours no longer; who was told of them is not told again."""
        self._own.forget(set(vanished))

    # --- what the engine says ---

    def on_send(self, peer: NodePublic, wanted: bool) -> None:
        """Data was sent, or is wanted to be and has no way."""
        known = self._peers.get(peer)
        if known is None:
            return
        self.roaming.look_for_sleep()
        path = self._path(known)
        self._perform(known, path.on_send(self._clock.now(), wanted=wanted))
        if wanted and path.last_path.mode is not Mode.NONE:
            self.kick(peer)

    def on_recv(self, peer: NodePublic, direct: Endpoint | None, region: int, what: int) -> None:
        """An authenticated packet arrived."""
        known = self._peers.get(peer)
        if known is None:
            return
        if region:
            self._note_route(known, RegionId(region))
        if direct is not None and self.prediction is not None:
            self.prediction.heard(direct)
        self._perform(known, self._path(known).on_recv(direct, What(what), self._clock.now()))

    def on_send_error(self, endpoint: Endpoint, number: int) -> None:
        """The system refused a datagram, or somebody on the way says that one did not arrive, who knows of no legs."""
        self._counters["send_errors"] += 1
        now = self._clock.now()
        for known, path in self._awake():
            for hit in [e for e in path.candidates if e == endpoint or (e.vni and e._replace(vni=0) == endpoint)]:
                if number == errno.EMSGSIZE:
                    self._perform(known, path.on_too_big(hit, now))
                elif number in PASSING:
                    self._perform(known, path.on_full_buffers(hit, now))
                else:
                    self._perform(known, path.on_send_error(hit, number in UNREACHABLE, now))

    def on_handshake(self, peer: NodePublic, ok: bool) -> None:
        """WireGuard has a session, or gave up asking for one: on a path that answers pings, that is a stall."""
        known = self._peers.get(peer)
        if known is None or known.path is None:
            return
        if ok:
            self._tell_key(known, known.path)
        elif known.path.is_relay_up:
            self._perform(known, known.path.on_wireguard_stall(self._clock.now()))

    def _tell_key(self, known: Known, path: PeerPath) -> None:
        """Once per peer, and only beside its data: it must not keep idle peers awake (#20081)."""
        if not known.is_told and path.is_wanted(self._clock.now()):
            known.is_told = True
            self.tell_key(known.key)

    def on_disco(self, ip: IP, port: int, data: bytes) -> None:
        """A DISCO packet arrived by UDP, from the peer itself or by a peer relay."""
        self.on_extra(Endpoint(ip, port), data)

    def on_extra(self, source: Endpoint, data: bytes) -> None:
        """The same, at the socket that `source` names."""
        now = self._clock.now()
        if geneve.is_geneve(data):
            relayed = geneve.parse(data)
            if relayed is None or relayed.is_control:
                self._take_control(source, relayed)
                return
            source, data = source._replace(vni=relayed.vni), relayed.packet
        owners, message = self._open(data, now, source)
        if message is not None and self.prediction is not None:
            self.prediction.heard(source)
        if isinstance(message, wire.Ping):
            known = resolve(owners, message.node)
            if known is not None and known.path is not None and known.path.is_hushed(source, now):
                self._counters["disco_pings_hushed"] += 1
            else:
                self._answer(known, owners, message, data, source)
            if known is not None:
                self._perform(known, self._path(known).on_ping(source, now))
        elif isinstance(message, wire.Pong):
            self._take_pong(owners, message, now)
        elif message is not None:
            self._counters["disco_wrong_way"] += 1

    def _take_control(self, source: Endpoint, relayed: geneve.Relayed | None) -> None:
        """What a peer relay itself says."""
        if relayed is None or not self._meetings.on_control(source, relayed):
            self._counters["disco_bad_relay"] += 1

    # --- what the relay pool says ---

    def on_relay_disco(self, region: RegionId, sender: NodePublic, data: bytes) -> None:
        """A DISCO packet arrived by relay. The relay names the node, the box proves it."""
        now = self._clock.now()
        owners, message = self._open(data, now)
        known = next((o for o in owners if o.key == sender), None)
        if known is None or message is None:
            if message is not None:
                self._counters["disco_wrong_sender"] += 1
            return
        self._note_route(known, region)
        if known.path is not None:
            self._perform(known, known.path.on_peer_seen(now))
            if known.path.last_path.mode is not Mode.DIRECT:
                self.nudge(known.key)  # it is there again, perhaps
        if isinstance(message, wire.Ping):
            self._answer_by_relay(known, message, data, region)
        elif isinstance(message, wire.Pong):
            self._pings.answer(message.txid, now)
        elif isinstance(message, wire.CallMeMaybe):
            self._take_call(known, message, now)
        elif isinstance(message, wire.CallMeMaybeVia):
            self._path(known)
            self._meetings.on_via(known, message)
        elif isinstance(message, wire.AllocateResponse):
            self._meetings.on_response(known, message)
        else:
            self._counters["disco_wrong_way"] += 1

    def on_peer_gone(self, region: RegionId, peer: NodePublic, reason: int) -> None:
        """A relay says the peer is not connected to it."""
        known, now = self._peers.get(peer), self._clock.now()
        if known is None:
            return
        was = known.region
        known.regions.note_gone(region, now)
        self._choose_region(known)
        if known.path is not None and region == was and known.regions.is_gone(known.region, now):
            self._perform(known, known.path.on_peer_gone(now))

    def set_home(self, region: RegionId) -> None:
        """Our own home: the last place to look for a peer that is not where it should be."""
        self._own_home = region
        for known, _ in self._awake():
            self._choose_region(known)

    def relay_up(self, region: RegionId) -> None:
        """Our connection to that region stands."""
        self._down.discard(region)
        self._tell_relay(region)

    def relay_down(self, region: RegionId) -> None:
        """Our connection to that region is lost, and not back within a moment."""
        self._down.add(region)
        self._tell_relay(region)

    def _tell_relay(self, region: RegionId) -> None:
        for known, path in self._awake():
            if not self._choose_region(known) and known.region == region:
                self._perform(known, path.on_relay(region, self._is_up(region), self._clock.now()))
                if self._is_up(region) and path.last_path.mode is not Mode.DIRECT:
                    self.nudge(known.key)

    # --- what the link says ---

    def on_link_change(self, gone: Collection[IP] = ()) -> None:
        """Local addresses vanished, or (empty) everything may have changed, as after sleep."""
        if gone:
            self.roaming.on_network([e for e in self._own.current if e.ip not in gone], gone, None)
        else:
            self.roaming.on_everything()

    # --- questions ---

    def status(self, peer: NodePublic) -> PathStatus | None:
        """A peer's path now; None for a stranger."""
        known = self._peers.get(peer)
        if known is None:
            return None
        if known.path is not None:
            return known.path.status()
        up, mode = self._is_up(known.region), Mode.RELAY if known.region else Mode.NONE
        nothing = (known.region, up, mode, (), (), 0, 0, ())
        return PathStatus(State.UNKNOWN, Seconds(known.since), "no traffic yet", None, None, *nothing)

    async def ping(self, peer: NodePublic, timeout_s: float = 5.0, size: int = 0) -> PingResult:
        """One DISCO ping by the best way. TimedOut, or PeerOffline when there is no way at all.

        size: bytes of the IP packet that carries it by UDP, as if by IPv4; 0: as small as it is.
        """
        known = self._peers.get(peer)
        padding = wire.ping_padding(size, is_v6=False)
        return await self._pings.ask(known, lambda k, is_first: self._ask_once(k, is_first, padding), timeout_s)

    def _ask_once(self, known: Known, is_first: bool, padding: int) -> bool:
        """Send what one attempt sends; False if there is no way. The path is woken, so a direct one is sought."""
        path, now = self._path(known), self._clock.now()
        if is_first:
            self._perform(known, path.on_send(now))
        direct = path.act.endpoint if path.act is not None else None
        box = self._keys.box(known.disco.raw) if known.disco is not None else None
        if box is None:
            return False
        if direct is not None:
            txid = self._pings.begin(known, direct, RegionId(0))
            self._send_to(direct, self._seal(box, wire.Ping(txid, self._node, padding)))
        if (direct is None or not is_first) and known.region:
            txid = self._pings.begin(known, None, known.region)
            return self.send_relay(known.region, known.key, self._seal(box, wire.Ping(txid, self._node, padding)))
        return direct is not None

    def counters(self) -> dict[str, int]:
        """What was dropped and why."""
        limits = {
            "disco_pings_suppressed": self._ping_budget.refused,
            "disco_calls_suppressed": self._call_budget.refused,
            "disco_pongs_suppressed": self._pong_budget.refused,
            "disco_binds_suppressed": self._meetings.suppressed,
        }
        roaming = {"wakes": self.roaming.wakes, "ways_changed": self.roaming.touched}
        return dict(self._counters) | limits | roaming | (self.prediction.counts if self.prediction else {})

    def close(self) -> None:
        """Cancel every timer and forget the peers."""
        self._deadlines.close()
        self._meetings.close()
        if self.prediction is not None:
            self.prediction.close()
        self._peers.clear()
        self._pings.close()

    # --- DISCO in ---

    def _take_pong(self, owners: Sequence[Known], pong: wire.Pong, now: Seconds) -> None:
        if self._pings.answer(pong.txid, now):
            return
        for known in owners:
            if known.path is not None and pong.txid in known.path.probes:
                self._meetings.on_pong(known, known.path.probes[pong.txid].candidate.endpoint)
                self._perform(known, known.path.on_pong(pong.txid, pong.source, now))
                return
        self._counters["disco_stray_pongs"] += 1

    def _take_call(self, known: Known, call: wire.CallMeMaybe, now: Seconds) -> None:
        path = self._path(known)
        if known.calls.take(now):
            self._perform(known, path.on_call(call.endpoints, now))
        else:
            self._perform(known, path.on_more_endpoints(call.endpoints, now))
