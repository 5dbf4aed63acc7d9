"""Hints: what the engine tells of peers and paths, beside connections, as calls of what `node/wiring.py` sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshnode.base.addr import IP, Endpoint, from_packed
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.engine import _native


class Hints:
    """The `on_` callables, None until they are set, and the peers' keys as objects, so that none is made per event."""

    def __init__(self) -> None:
        self._keys: dict[bytes, NodePublic] = {}
        self.lost_count = 0
        """Packets and hints the engine dropped because this loop was too slow to take them."""
        self.on_disco: Callable[[IP, int, bytes], None] | None = None
        self.on_stun: Callable[[IP, int, bytes], None] | None = None
        self.on_extra: Callable[[Endpoint, bytes], None] | None = None
        """DISCO at an extra socket, which the endpoint names."""
        self.on_extra_stun: Callable[[Endpoint, bytes], None] | None = None
        self.on_relay_send: Callable[[int, NodePublic, bytes], Any] | None = None
        """(region, peer, data): the shape of RelayPool.send."""
        self.on_peer_send: Callable[[NodePublic, bool], None] | None = None
        """(peer, wanted): data was sent; wanted: there is no path at all."""
        self.on_peer_recv: Callable[[NodePublic, Endpoint | None, int, int], None] | None = None
        """(peer, direct endpoint or None, relay region or 0, what): an authenticated packet arrived."""
        self.on_send_error: Callable[[Endpoint, int], None] | None = None
        """(to, errno). ECONNREFUSED and EMSGSIZE: an ICMP error, a hint that anybody may forge. EAGAIN, ENOBUFS,
        EPERM: ten times within a second."""
        self.on_handshake: Callable[[NodePublic, bool], None] | None = None
        """(peer, session is up)"""
        self.on_disco_key: Callable[[NodePublic, DiscoPublic], None] | None = None
        """(peer, its DISCO key, as it says inside the tunnel)"""
        self.on_tun_lost: Callable[[int], None] | None = None
        """(errno): somebody removed the kernel interface; the engine goes on without."""
        self.on_keys: Callable[[NodePublic, int], None] | None = None
        """(peer, KEYS_GONE: no new session for nine minutes, its keys are wiped; KEYS_CLOCK_BEHIND: the wall clock is
        behind the timestamp of an earlier handshake, whose order we keep without it)"""
        self.on_rebound: Callable[[int], None] | None = None
        """(errno or 0): the UDP sockets are new; port4 and port6 may have changed. Not 0: there are none."""

    def hints(self) -> dict[int, Callable[..., None]]:
        """Handlers by kind of event, for an Inbox."""
        return {
            _native.EV_RELAY_SEND: self._on_relay_send,
            _native.EV_DISCO: self._on_disco,
            _native.EV_DISCO_KEY: self._on_disco_key,
            _native.EV_STUN: self._on_stun,
            _native.EV_PEER_SEND: self._on_peer_send,
            _native.EV_PEER_RECV: self._on_peer_recv,
            _native.EV_SEND_ERROR: self._on_send_error,
            _native.EV_HANDSHAKE: self._on_handshake,
            _native.EV_KEYS: self._on_keys,
            _native.EV_REBOUND: self._on_rebound,
            _native.EV_TUN_LOST: self._on_tun_lost,
            _native.EV_LOST: self._on_lost,
        }

    def key_of(self, raw: bytes) -> NodePublic:
        """The key of a peer we were told of, or a new object."""
        return self._keys.get(raw) or NodePublic(raw)

    def _on_relay_send(self, key: bytes, region: int, data: bytes) -> None:
        if self.on_relay_send is not None:
            self.on_relay_send(region, self.key_of(key), data)

    def _on_disco(self, ip: bytes, port: int, data: bytes, extra: int) -> None:
        if extra:
            if self.on_extra is not None:
                self.on_extra(Endpoint(from_packed(ip), port, 0, extra), data)
        elif self.on_disco is not None:
            self.on_disco(from_packed(ip), port, data)

    def _on_disco_key(self, peer: bytes, key: bytes) -> None:
        if self.on_disco_key is not None:
            self.on_disco_key(self.key_of(peer), DiscoPublic(key))

    def _on_stun(self, ip: bytes, port: int, data: bytes, extra: int) -> None:
        if extra:
            if self.on_extra_stun is not None:
                self.on_extra_stun(Endpoint(from_packed(ip), port, 0, extra), data)
        elif self.on_stun is not None:
            self.on_stun(from_packed(ip), port, data)

    def _on_peer_send(self, key: bytes, wanted: int) -> None:
        if self.on_peer_send is not None:
            self.on_peer_send(self.key_of(key), bool(wanted))

    def _on_peer_recv(self, key: bytes, ip: bytes, port: int, vni: int, extra: int, region: int, what: int) -> None:
        if self.on_peer_recv is not None:
            direct = Endpoint(from_packed(ip), port, vni, extra) if port else None
            self.on_peer_recv(self.key_of(key), direct, region, what)

    def _on_send_error(self, ip: bytes, port: int, vni: int, extra: int, number: int) -> None:
        if self.on_send_error is not None:
            self.on_send_error(Endpoint(from_packed(ip), port, vni, extra), number)

    def _on_handshake(self, key: bytes, ok: int) -> None:
        if self.on_handshake is not None:
            self.on_handshake(self.key_of(key), bool(ok))

    def _on_keys(self, key: bytes, what: int) -> None:
        if self.on_keys is not None:
            self.on_keys(self.key_of(key), what)

    def _on_rebound(self, number: int) -> None:
        if self.on_rebound is not None:
            self.on_rebound(number)

    def _on_lost(self, count: int) -> None:
        self.lost_count += count

    def _on_tun_lost(self, number: int) -> None:
        if self.on_tun_lost:
            self.on_tun_lost(number)
