"""Engine: the packet engine on an event loop.

Owns one native engine (a thread of its own) and its place in the loop: methods become commands, the
event fd is a reader of the loop, events become results of awaits or calls of the `on_` callables that
`node/wiring.py` sets. Several engines share a loop. Nothing here runs per packet on a direct path.
Rules: every method is called from the loop's thread; callbacks must not block; what a callback
raises goes to the loop's exception handler and the next event is still served.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from meshnode.base.addr import IP, Endpoint, Prefix, from_packed
from meshnode.base.errors import AccessDenied, DialError, ListenError, PeerOffline, Refused, TimedOut
from meshnode.base.keys import DiscoPublic, NodePrivate, NodePublic
from meshnode.engine import _native
from meshnode.engine._native import (
    GSO_AUTO,
    GSO_NEVER_EQUAL,
    GSO_OFF,
    KEYS_CLOCK_BEHIND,
    KEYS_GONE,
    PATH_BOTH,
    PATH_DIRECT,
    PATH_DOUBTED,
    PATH_NONE,
    PATH_RELAY,
)
from meshnode.engine.flow import TunnelSocket
from meshnode.engine.link import RelayStream, adopt
from meshnode.engine.listener import Datagram, Datagrams, Listener, Received

__all__ = ["GSO_AUTO", "GSO_NEVER_EQUAL", "GSO_OFF", "KEYS_CLOCK_BEHIND", "KEYS_GONE", "PATH_BOTH", "PATH_DIRECT",
           "PATH_DOUBTED", "PATH_NONE", "PATH_RELAY", "Engine"]  # fmt: skip

BATCH = 256
CLOSE_TIMEOUT_S = 2.0
DRAIN_TIMEOUT_S = 0.5
DRAIN_POLL_S = 0.005
PING_BYTES = 56
BACKLOG_MAX = 65535
TAKEN_AGAIN_S = 0.05
NOWHERE = Endpoint(IPv4Address(0), 0)
_live: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads of engines nobody closed end before the interpreter does."""
    for engine in list(_live):
        engine.stop()


_FAILURES: dict[int, tuple[type[DialError], str]] = {
    errno.ECONNREFUSED: (Refused, "refused the connection; nothing listens on that port"),
    errno.ETIMEDOUT: (TimedOut, "did not answer in time; is it online, and does its policy allow this port?"),
    errno.EHOSTUNREACH: (PeerOffline, "cannot be reached; is it online?"),
    errno.ENETUNREACH: (PeerOffline, "belongs to no node of this tailnet"),
    errno.EACCES: (AccessDenied, "is closed to us by the tailnet's policy"),
    errno.ENETDOWN: (DialError, "was not reached; this node is shutting down"),
}


def _sixteen(ip: IP) -> bytes:
    """An address as the engine keeps it: IPv4 mapped into IPv6."""
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


def dial_error(number: int, target: Endpoint) -> DialError:
    """The exception of a failed connect, its errno set as OSError's would be."""
    kind, text = _FAILURES.get(number, (DialError, f"could not be reached: {os.strerror(number)}"))
    error = kind(f"{target} {text}")
    error.errno = number
    return error


def _ping_error(number: int, ip: IP) -> DialError:
    """The exception of an echo request that did not leave."""
    kind, text = _FAILURES.get(number, (DialError, f"could not be pinged: {os.strerror(number)}"))
    error = kind(f"{ip} {text}")
    error.errno = number
    return error


class Engine:
    """One node's packet engine. Made by `start`, ended by `aclose`."""

    def __init__(self, native: _native.Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._native = native
        self._loop = loop
        self._closed = False
        self._next_req = 0
        self._connects: dict[int, tuple[asyncio.Future[TunnelSocket], Endpoint]] = {}
        self._starts: dict[int, asyncio.Future[int]] = {}
        self._pings: dict[int, tuple[asyncio.Future[int], IP]] = {}
        self._listeners: dict[int, Listener] = {}
        self._datagrams: dict[int, Datagrams] = {}
        self._streams: dict[int, RelayStream] = {}
        self._flows: weakref.WeakValueDictionary[int, TunnelSocket] = weakref.WeakValueDictionary()
        self._ended: dict[int, int] = {}
        self._pending: deque[tuple[Any, ...]] = deque()
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
        self._handlers: dict[int, Callable[..., None]] = {
            _native.EV_ACCEPTED: self._on_accepted,
            _native.EV_CONNECTED: self._on_connected,
            _native.EV_CONNECT_FAILED: self._on_connect_failed,
            _native.EV_FLOW_ENDED: self._on_flow_ended,
            _native.EV_LISTENING: self._on_listening,
            _native.EV_RELAY_SEND: self._on_relay_send,
            _native.EV_DISCO: self._on_disco,
            _native.EV_DISCO_KEY: self._on_disco_key,
            _native.EV_STUN: self._on_stun,
            _native.EV_PEER_SEND: self._on_peer_send,
            _native.EV_PEER_RECV: self._on_peer_recv,
            _native.EV_SEND_ERROR: self._on_send_error,
            _native.EV_HANDSHAKE: self._on_handshake,
            _native.EV_PING: self._on_ping,
            _native.EV_UDP: self._on_udp,
            _native.EV_UDP_ERROR: self._on_udp_error,
            _native.EV_LOST: self._on_lost,
            _native.EV_TUN_LOST: self._on_tun_lost,
            _native.EV_REBOUND: self._on_rebound,
            _native.EV_KEYS: self._on_keys,
            _native.EV_LINK_READY: self._on_link_ready,
            _native.EV_LINK_DATA: self._on_link_data,
            _native.EV_LINK_FRAME: self._on_link_frame,
            _native.EV_LINK_PULSE: self._on_link_pulse,
            _native.EV_LINK_ENDED: self._on_link_ended,
        }

    @classmethod
    async def start(
        cls,
        private: NodePrivate,
        *,
        port: int = 0,
        mtu: int = 1280,
        bind4: IPv4Address | None = None,
        bind6: IPv6Address | None = None,
        timestamp_floor: bytes = b"",
        congestion: str | None = None,
        gso: int = GSO_AUTO,
        gro: bool = True,
        tcp_memory: int = 0,
        tcp_ecn: str = "accept",
    ) -> Engine:
        """Bind the UDP sockets and start the thread. OSError if no socket binds (EADDRINUSE: port taken).

        timestamp_floor: the last handshake timestamp of an earlier run, from `last_timestamp`.
        congestion: how TCP shares a path: "forbearing" (the default: CUBIC that bears losses too sparse to be a full
        queue's), "cubic" (RFC 9438) or "newreno" (RFC 5681), to compare with; ValueError for any other.
        gso, gro: as in `set_offloads`.
        tcp_memory: bytes that all TCP connections together may hold, at least 1 MiB; 0: 256 MiB or an eighth of the
        machine's memory, whichever is less. Beyond three quarters of it windows shrink and no peer gets more than an
        eighth; at the bound new bytes wait. ValueError below 1 MiB.
        tcp_ecn: congestion marks (RFC 3168) on connections of the tunnel: "accept" agrees when a peer asks, "ask" asks
        as well, "off" does neither; ValueError for any other.
        """
        native = _native.Engine(
            private_key=private.reveal(),
            port=port,
            mtu=mtu,
            bind4=bind4.packed if bind4 else None,
            bind6=bind6.packed if bind6 else None,
            timestamp_floor=timestamp_floor,
            congestion=congestion,
            gso=gso,
            gro=gro,
            tcp_memory=tcp_memory,
            tcp_ecn=tcp_ecn,
        )
        loop = asyncio.get_running_loop()
        engine = cls(native, loop)
        _live.add(engine)
        loop.add_reader(native.event_fd, engine._on_readable)
        return engine

    @property
    def port4(self) -> int:
        """UDP port on IPv4; 0: none."""
        return self._native.port4

    @property
    def port6(self) -> int:
        """UDP port on IPv6; 0: none."""
        return self._native.port6

    # --- what this node is, whom it knows ---

    def set_private_key(self, private: NodePrivate) -> None:
        """Use another node key; every session ends."""
        self._native.set_private_key(private.reveal())

    def set_addresses(self, addresses: Iterable[IP]) -> None:
        """Our tailnet addresses, all of them."""
        self._native.set_addresses([a.packed for a in addresses])

    def upsert_peer(
        self,
        key: NodePublic,
        prefixes: Iterable[Prefix],
        psk: bytes = b"",
        keepalive_s: int = 0,
        roams: bool = False,
    ) -> None:
        """Add a peer or replace what is known of it; its prefixes are exactly these.

        psk: 32 bytes, or none. keepalive_s: seconds of silence after which a keepalive leaves; 0: never.
        roams: plain WireGuard: the peer is wherever its last authentic packet came from; `set_path` says
        where it is before that, and moves it. ValueError: psk or keepalive_s out of range.
        """
        self._keys[key.raw] = key
        wanted = [(p.network_address.packed, p.prefixlen) for p in prefixes]
        self._native.upsert_peer(key.raw, wanted, psk, keepalive_s, roams)

    def remove_peer(self, key: NodePublic) -> None:
        """Forget a peer; its connections end with ECONNABORTED."""
        self._keys.pop(key.raw, None)
        self._native.remove_peer(key.raw)

    def set_path(
        self,
        key: NodePublic,
        direct: Endpoint | None,
        region: int,
        mode: int,
        limit: int = 0,
        others: Sequence[Endpoint] = (),
    ) -> None:
        """Where this peer's packets go: PATH_DIRECT, PATH_RELAY, PATH_BOTH, PATH_DOUBTED or PATH_NONE.

        direct: its own address, or the leg of a peer relay (`vni`); spoken to by an extra socket, if it names one.
        limit: bytes of the longest IP packet that `direct` carries, 0 = any; longer ones go by the relay if a
        region is given, whatever the mode, and TCP connections make segments that fit. others: two more endpoints
        at most, which get copies of data; not by extra sockets.
        """
        to = direct or NOWHERE
        copies = b"".join(_sixteen(e.ip) + e.port.to_bytes(2, "big") for e in others if not e.socket)
        self._native.set_path(key.raw, to.ip.packed, to.port, to.vni, to.socket, region, mode, limit, copies)

    def set_filter(self, blob: bytes) -> None:
        """Replace the packet filter (netmap.rules compiles it). ValueError: malformed, the old one stays."""
        self._native.set_filter(blob)

    # --- a kernel interface ---

    def open_tun(self, name: str = "", *, fd: int = -1) -> str:
        """Make the kernel interface `name`, or use `fd`, a TUN that somebody else opened; returns its name.

        From then on the kernel has our addresses too: it gets what no listener, connection or flow of this engine
        owns. It vanishes when the engine ends. Who wants to reach anything through it sets it up (tunnel/interface).
        ValueError: no name for an interface. OSError: see _native.pyi.
        """
        return self._native.open_tun(name, fd)

    def set_tun_merge(self, *, tcp: bool, udp: bool) -> None:
        """Whether packets for the interface may be merged (on by default where the kernel can)."""
        self._native.set_tun_merge((_native.TUN_TCP if tcp else 0) | (_native.TUN_UDP if udp else 0))

    # --- packets that Python carries ---

    def inject(self, region: int, sender: NodePublic, data: bytes) -> None:
        """WireGuard bytes that came by relay."""
        self._native.inject(region, sender.raw, data)

    async def adopt_relay(
        self, sock: socket.socket, protocol: Any, tls: object | None, host: str, verified: str
    ) -> RelayStream:
        """Serve a connection to a relay: `sock` is connected and given up by its owner.

        tls: of `_native.tls_context`, None: plain. host: the server name; verified: the name its certificate must
        have, if `tls` verifies; '' is host. RelayError if TLS fails; the caller bounds the wait.
        """
        return await adopt(self._native, self._streams, self._request(), sock, protocol, tls, host, verified)

    def send_raw(self, ip: IP, port: int, data: bytes) -> None:
        """A datagram (DISCO, STUN) from the WireGuard port."""
        self._native.send_raw(ip.packed, port, data)

    def nudge(self, key: NodePublic) -> None:
        """There is a way to the peer again: what its connections wait to repeat is repeated at once."""
        self._native.nudge(key.raw)

    def set_extra(self, first: int, count: int, *, is_open: bool) -> None:
        """Open (anew) or close UDP sockets beside the WireGuard port, by number: `first` and those after it.

        Numbers are 1 to 256 and the caller's to choose. One that cannot be opened stays closed: what is sent by it
        is dropped and told by `on_send_error`. All are closed by `rebind`.
        """
        self._native.set_extra(first, count, int(is_open))

    def send_extra(self, to: Endpoint, data: bytes) -> None:
        """A datagram from the extra socket that `to` names."""
        self._native.send_extra(to.socket, to.ip.packed, to.port, data)

    def kick(self, key: NodePublic) -> None:
        """Request a WireGuard handshake with this peer now."""
        self._native.kick(key.raw)

    def tell_disco_key(self, ip: IP, key: DiscoPublic) -> None:
        """Say inside the tunnel, to the peer at this tailnet address, what our DISCO key is: proven by WireGuard."""
        self._native.tell_disco_key(ip.packed, key.raw)

    def rebind(self) -> None:
        """New UDP sockets after a change of the network; sessions and connections live on.

        On the same port if it is still to be had. `on_rebound` is called when it is done.
        """
        self._native.rebind()

    def set_offloads(self, gso: int, gro: bool) -> None:
        """Whether the kernel segments what we send (GSO_AUTO, GSO_OFF, GSO_NEVER_EQUAL) and coalesces what we read.

        ValueError: gso is none of the three. Source: docs/protocol/dataplane.md 2.3.
        """
        self._native.set_offloads(gso, gro)

    # --- connections ---

    async def connect(self, ip: IP, port: int) -> TunnelSocket:
        """A TCP connection inside the tunnel. DialError says why not; cancelling leaves nothing behind."""
        req = self._request()
        future: asyncio.Future[TunnelSocket] = self._loop.create_future()
        self._connects[req] = (future, Endpoint(ip, port))
        try:
            self._native.connect(req, ip.packed, port)
            return await future
        except asyncio.CancelledError:
            if self._connects.pop(req, None) is not None:
                if not self._closed:
                    self._native.abort(req)
            elif future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
            raise
        finally:
            self._connects.pop(req, None)

    async def listen(self, ip: IP | None, port: int, backlog: int = 128) -> Listener:
        """Take TCP connections on `port` of `ip`, or of every own address. ListenError: taken already.

        backlog: connections that nobody has taken yet, 1 to 65535; with so many, peers' last word of the handshake
        goes unheard, and they try again.
        """
        req = self._request()
        backlog = min(max(1, backlog), BACKLOG_MAX)
        listener = Listener(self._unlisten, self._taken, req, Endpoint(ip, port) if ip else None, port, backlog)
        self._listeners[req] = listener
        try:
            self._native.listen(req, ip.packed if ip else b"", port, backlog)
            number = await self._started(req)
        except BaseException:
            listener.close()
            raise
        if number:
            self._listeners.pop(req, None)
            text = os.strerror(number)
            error = ListenError(f"tailnet port {port} cannot be listened on: {text}; try another port")
            error.errno = number
            raise error
        return listener

    async def open_datagrams(
        self, ip: IP | None, port: int, received: Received, failed: Callable[[Endpoint, int], None] | None = None
    ) -> Datagrams:
        """UDP inside the tunnel from `port` (0: any one) of `ip`, or of every own address.

        received: called with each datagram that arrives. failed: called with a target and the errno that a
        datagram to it met, here or there. ListenError: the port is taken, or the address is not ours.
        """
        req = self._request()
        flow = Datagrams(self._native, self._forget_datagrams, req, received, failed)
        self._datagrams[req] = flow
        try:
            self._native.udp_open(req, ip.packed if ip else b"", port)
            number = await self._started(req)
        except BaseException:
            flow.close()
            raise
        if number:
            self._datagrams.pop(req, None)
            text = os.strerror(number)
            error = ListenError(f"tailnet UDP port {port} cannot be opened: {text}; try another port, or 0 for any")
            error.errno = number
            raise error
        return flow

    async def ping(self, ip: IP, *, size: int = PING_BYTES, timeout_s: float = 5.0) -> float:
        """Round-trip seconds of an ICMP echo of `size` bytes inside the tunnel.

        TimedOut: no answer. DialError with its errno: the request could not leave (EMSGSIZE, no such peer).
        """
        req = self._request()
        future: asyncio.Future[int] = self._loop.create_future()
        self._pings[req] = (future, ip)
        try:
            self._native.ping(req, ip.packed, size)
            async with asyncio.timeout(timeout_s):
                return await future / 1e9
        except TimeoutError:
            raise TimedOut(f"{ip} did not answer {size} bytes of ping within {timeout_s:g} s") from None
        finally:
            self._pings.pop(req, None)

    # --- facts ---

    def stats(self) -> dict[str, int]:
        """Counters of the whole engine."""
        return self._native.stats()

    def peer_stats(self, key: NodePublic) -> dict[str, int]:
        """Counters of one peer. KeyError: not known."""
        return self._native.peer_stats(key.raw)

    def last_timestamp(self) -> bytes:
        """The newest handshake timestamp sent: keep it for the next run's `timestamp_floor`."""
        return self._native.last_timestamp()

    async def drain(self, timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
        """Let the last bytes of connections their applications have closed leave; False: some did not in time.

        A program that writes, closes and ends expects what a kernel would do: its bytes still arrive.
        """
        limit = self._loop.time() + timeout_s
        while self._native.stats()["flows_ending"]:
            if self._loop.time() >= limit:
                return False
            await asyncio.sleep(DRAIN_POLL_S)
        return True

    def stop(self) -> None:
        """Stop the thread without the loop's help: for the end of the process. Idempotent."""
        self._closed = True
        self._native.close(CLOSE_TIMEOUT_S)

    async def aclose(self) -> None:
        """End every connection, stop the thread, forget the keys. Idempotent.

        Connections their applications have closed get a moment to deliver their last bytes.
        """
        if self._closed:
            return
        await self.drain()
        self._closed = True
        self._loop.remove_reader(self._native.event_fd)
        self._native.close(CLOSE_TIMEOUT_S)
        while self._serve(self._native.poll_events(BATCH)):
            pass
        for future, target in list(self._connects.values()):
            if not future.done():
                future.set_exception(dial_error(errno.ENETDOWN, target))
        for waiting in [*self._starts.values(), *(future for future, _ in self._pings.values())]:
            waiting.cancel()
        for listener in list(self._listeners.values()):
            listener.close()
        for flow in list(self._datagrams.values()):
            flow.close()
        for stream in list(self._streams.values()):
            stream.on_ended("the engine stopped")
        self._connects.clear()
        self._native.release()

    # --- events ---

    def _request(self) -> int:
        if self._closed:
            raise DialError("this node's engine is closed")
        self._next_req += 1
        return self._next_req

    async def _started(self, req: int) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        self._starts[req] = future
        try:
            return await future
        finally:
            self._starts.pop(req, None)

    def _unlisten(self, req: int) -> None:
        if self._listeners.pop(req, None) is not None and not self._closed:
            self._native.unlisten(req)

    def _taken(self, req: int, count: int) -> None:
        if self._closed or req not in self._listeners:
            return
        try:
            self._native.taken(req, count)
        except RuntimeError:  # too many commands wait
            self._loop.call_later(TAKEN_AGAIN_S, self._taken, req, count)

    def _forget_datagrams(self, req: int) -> None:
        if self._datagrams.pop(req, None) is not None and not self._closed:
            self._native.udp_close(req)

    def _on_readable(self) -> None:
        while self._pending:
            self._serve([self._pending.popleft()])
        self._serve(self._native.poll_events(BATCH))

    def _serve(self, events: Sequence[tuple[Any, ...]]) -> int:
        handlers = self._handlers
        for event in events:
            try:
                handlers[event[0]](*event[1:])
            except Exception as error:
                context = {"message": f"engine event {event[0]} could not be served", "exception": error}
                self._loop.call_exception_handler(context)
        return len(events)

    def _ask(self) -> None:
        """A socket reached its end: see now whether the engine has said why. Any thread."""
        held = False
        for event in self._native.poll_events(BATCH):
            if event[0] == _native.EV_FLOW_ENDED:
                self._on_flow_ended(event[1], event[2])
            else:
                self._pending.append(event)
                held = True
        if held and not self._closed:
            self._loop.call_soon_threadsafe(self._on_readable)

    def _key(self, raw: bytes) -> NodePublic:
        return self._keys.get(raw) or NodePublic(raw)

    def _socket(self, flow: int, fd: int, lip: bytes, lport: int, rip: bytes, rport: int, key: bytes) -> TunnelSocket:
        sock = TunnelSocket(
            fd,
            local=Endpoint(from_packed(lip), lport),
            remote=Endpoint(from_packed(rip), rport),
            peer_key=self._key(key),
            flow_id=flow,
            ask=self._ask,
        )
        sock.error = self._ended.pop(flow, 0)
        self._flows[flow] = sock
        return sock

    def _on_accepted(self, req: int, flow: int, fd: int, *names: Any) -> None:
        sock = self._socket(flow, fd, *names)
        listener = self._listeners.get(req)
        if listener is None or not listener.offer(sock):
            sock.close()

    def _on_connected(self, req: int, flow: int, fd: int, *names: Any) -> None:
        sock = self._socket(flow, fd, *names)
        future, _ = self._connects.pop(req, (None, None))
        if future is None or future.done():
            sock.close()
        else:
            future.set_result(sock)

    def _on_connect_failed(self, req: int, number: int) -> None:
        future, target = self._connects.pop(req, (None, None))
        if future is not None and target is not None and not future.done():
            future.set_exception(dial_error(number, target))

    def _on_flow_ended(self, flow: int, number: int) -> None:
        sock = self._flows.get(flow)
        if sock is not None:
            sock.error = number
        elif number and self._pending:
            self._ended[flow] = number

    def _on_listening(self, req: int, number: int, port: int) -> None:
        future = self._starts.get(req)
        flow = self._datagrams.get(req)
        if flow is not None and not number:
            flow.port = port
        if future is not None and not future.done():
            future.set_result(number)

    def _on_relay_send(self, key: bytes, region: int, data: bytes) -> None:
        if self.on_relay_send is not None:
            self.on_relay_send(region, self._key(key), data)

    def _on_disco(self, ip: bytes, port: int, data: bytes, extra: int) -> None:
        if extra:
            if self.on_extra is not None:
                self.on_extra(Endpoint(from_packed(ip), port, 0, extra), data)
        elif self.on_disco is not None:
            self.on_disco(from_packed(ip), port, data)

    def _on_disco_key(self, peer: bytes, key: bytes) -> None:
        if self.on_disco_key is not None:
            self.on_disco_key(self._key(peer), DiscoPublic(key))

    def _on_stun(self, ip: bytes, port: int, data: bytes, extra: int) -> None:
        if extra:
            if self.on_extra_stun is not None:
                self.on_extra_stun(Endpoint(from_packed(ip), port, 0, extra), data)
        elif self.on_stun is not None:
            self.on_stun(from_packed(ip), port, data)

    def _on_peer_send(self, key: bytes, wanted: int) -> None:
        if self.on_peer_send is not None:
            self.on_peer_send(self._key(key), bool(wanted))

    def _on_peer_recv(self, key: bytes, ip: bytes, port: int, vni: int, extra: int, region: int, what: int) -> None:
        if self.on_peer_recv is not None:
            direct = Endpoint(from_packed(ip), port, vni, extra) if port else None
            self.on_peer_recv(self._key(key), direct, region, what)

    def _on_send_error(self, ip: bytes, port: int, vni: int, extra: int, number: int) -> None:
        if self.on_send_error is not None:
            self.on_send_error(Endpoint(from_packed(ip), port, vni, extra), number)

    def _on_handshake(self, key: bytes, ok: int) -> None:
        if self.on_handshake is not None:
            self.on_handshake(self._key(key), bool(ok))

    def _on_keys(self, key: bytes, what: int) -> None:
        if self.on_keys is not None:
            self.on_keys(self._key(key), what)

    def _on_rebound(self, number: int) -> None:
        if self.on_rebound is not None:
            self.on_rebound(number)

    def _on_link_ready(self, req: int, certificate: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_ready(certificate)

    def _on_link_data(self, req: int, data: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_data(data)

    def _on_link_frame(self, req: int, kind: int, payload: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_frame(kind, payload)

    def _on_link_pulse(self, req: int, heard: int, counts: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_pulse(heard, counts)

    def _on_link_ended(self, req: int, was_open: int, why: bytes) -> None:
        if (stream := self._streams.get(req)) is not None:
            stream.on_ended(why.decode("utf-8", "replace"))

    def _on_ping(self, req: int, rtt_ns: int, number: int) -> None:
        future, ip = self._pings.get(req, (None, None))
        if future is None or ip is None or future.done():
            return
        if number:
            future.set_exception(_ping_error(number, ip))
        else:
            future.set_result(rtt_ns)

    def _on_udp(self, req: int, ip: bytes, port: int, to: bytes, key: bytes, data: bytes) -> None:
        flow = self._datagrams.get(req)
        if flow is not None:
            flow.received(Datagram(data, Endpoint(from_packed(ip), port), from_packed(to), self._key(key)))

    def _on_udp_error(self, req: int, ip: bytes, port: int, number: int) -> None:
        flow = self._datagrams.get(req)
        if flow is not None and flow.failed is not None:
            flow.failed(Endpoint(from_packed(ip), port), number)

    def _on_lost(self, count: int) -> None:
        self.lost_count += count

    def _on_tun_lost(self, number: int) -> None:
        if self.on_tun_lost:
            self.on_tun_lost(number)
