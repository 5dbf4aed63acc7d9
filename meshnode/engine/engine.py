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
import socket
import weakref
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from meshnode.base.addr import IP, Endpoint, Prefix
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
from meshnode.engine.flows import Flows
from meshnode.engine.hints import Hints
from meshnode.engine.inbox import Inbox
from meshnode.engine.link import RelayStream, Streams
from meshnode.engine.listener import Datagrams, Listener, Received

__all__ = ["GSO_AUTO", "GSO_NEVER_EQUAL", "GSO_OFF", "KEYS_CLOCK_BEHIND", "KEYS_GONE", "PATH_BOTH", "PATH_DIRECT",
           "PATH_DOUBTED", "PATH_NONE", "PATH_RELAY", "Engine"]  # fmt: skip

CLOSE_TIMEOUT_S = 2.0
DRAIN_TIMEOUT_S = 0.5
DRAIN_POLL_S = 0.005
PING_BYTES = 56
NOWHERE = Endpoint(IPv4Address(0), 0)
_live: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads of engines nobody closed end before the interpreter does."""
    for engine in list(_live):
        engine.stop()


def _sixteen(ip: IP) -> bytes:
    """An address as the engine keeps it: IPv4 mapped into IPv6."""
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


class Engine(Hints):
    """One node's packet engine. Made by `start`, ended by `aclose`."""

    def __init__(self, native: _native.Engine, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._native = native
        self._loop = loop
        self._closed = False
        self._inbox = Inbox(native, loop)
        self._flows = Flows(native, self._inbox, self.key_of)
        self._streams = Streams(native)
        self._inbox.serve(self.hints())
        self._inbox.serve(self._streams.handlers())

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
        engine._inbox.start()
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
        return await self._streams.adopt(self._flows.request(), sock, protocol, tls, host, verified)

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
        return await self._flows.connect(ip, port)

    async def listen(self, ip: IP | None, port: int, backlog: int = 128) -> Listener:
        """Take TCP connections on `port` of `ip`, or of every own address. ListenError: taken already.

        backlog: connections that nobody has taken yet, 1 to 65535; with so many, peers' last word of the handshake
        goes unheard, and they try again.
        """
        return await self._flows.listen(ip, port, backlog)

    async def open_datagrams(
        self, ip: IP | None, port: int, received: Received, failed: Callable[[Endpoint, int], None] | None = None
    ) -> Datagrams:
        """UDP inside the tunnel from `port` (0: any one) of `ip`, or of every own address.

        received: called with each datagram that arrives. failed: called with a target and the errno that a
        datagram to it met, here or there. ListenError: the port is taken, or the address is not ours.
        """
        return await self._flows.open_datagrams(ip, port, received, failed)

    async def ping(self, ip: IP, *, size: int = PING_BYTES, timeout_s: float = 5.0) -> float:
        """Round-trip seconds of an ICMP echo of `size` bytes inside the tunnel.

        TimedOut: no answer. DialError with its errno: the request could not leave (EMSGSIZE, no such peer).
        """
        return await self._flows.ping(ip, size, timeout_s)

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
        self._flows.refuse()
        self._native.close(CLOSE_TIMEOUT_S)

    async def aclose(self) -> None:
        """End every connection, stop the thread, forget the keys. Idempotent.

        Connections their applications have closed get a moment to deliver their last bytes.
        """
        if self._closed:
            return
        await self.drain()
        self._closed = True
        self._flows.refuse()
        self._native.close(CLOSE_TIMEOUT_S)
        self._inbox.finish()
        self._flows.close()
        self._streams.close()
        self._native.release()
