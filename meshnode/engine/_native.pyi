"""Types of the C extension. Addresses are packed (4 or 16 bytes), keys 32 raw bytes, durations in the unit of the name.

Every method may raise RuntimeError: engine closed, used after fork, or its command ring full (4096
waiting). Events are tuples whose first item is an EV_ constant; the layouts are beside the constants.
"""

from typing import Any, Final

PATH_NONE: Final = 0
PATH_DIRECT: Final = 1
PATH_RELAY: Final = 2
PATH_BOTH: Final = 3
PATH_DOUBTED: Final = 7

WHAT_KEEPALIVE: Final = 0
WHAT_DATA: Final = 1
WHAT_HANDSHAKE: Final = 2

EV_ACCEPTED: Final = 1
"""(kind, listen_req, flow_id, fd, local_ip, local_port, remote_ip, remote_port, peer_key)"""
EV_CONNECTED: Final = 2
"""(kind, req, flow_id, fd, local_ip, local_port, remote_ip, remote_port, peer_key)"""
EV_CONNECT_FAILED: Final = 3
"""(kind, req, errno)"""
EV_FLOW_ENDED: Final = 4
"""(kind, flow_id, errno), 0 clean; posted before the engine closes its end"""
EV_LISTENING: Final = 5
"""(kind, req, errno, port)"""
EV_RELAY_SEND: Final = 6
"""(kind, peer_key, region, data)"""
EV_DISCO: Final = 7
"""(kind, ip, port, data, socket): socket 0 is the WireGuard port, else an extra one"""
EV_STUN: Final = 8
"""(kind, ip, port, data, socket)"""
EV_PEER_SEND: Final = 9
"""(kind, peer_key, wanted): data was sent; wanted 1: there is no path at all"""
EV_PEER_RECV: Final = 10
"""(kind, peer_key, ip, port, vni, socket, region, what): an authenticated packet; what: WHAT_*"""
EV_SEND_ERROR: Final = 11
"""(kind, ip, port, vni, socket, errno)"""
EV_HANDSHAKE: Final = 12
"""(kind, peer_key, ok): 1 session up, 0 gave up"""
EV_PING: Final = 13
"""(kind, req, rtt_ns, errno): errno: it did not leave"""
EV_UDP: Final = 14
"""(kind, req, from_ip, from_port, to_ip, peer_key, data)"""
EV_LOST: Final = 15
"""(kind, n): n packets or hints were dropped; never a connection's event"""
EV_UDP_ERROR: Final = 16
EV_REBOUND: Final = 18
EV_KEYS: Final = 19
KEYS_GONE: Final = 1
KEYS_CLOCK_BEHIND: Final = 2
GSO_AUTO: Final = 0
GSO_OFF: Final = 1
GSO_NEVER_EQUAL: Final = 2
"""(kind, req, to_ip, to_port, errno): a datagram could not leave, or the other side refused it"""
EV_DISCO_KEY: Final = 25
"""(kind, peer_key, disco_key): as the peer says inside the tunnel"""
EV_TUN_LOST: Final = 17
"""(kind, errno): the kernel interface is gone"""

TUN_TCP: Final = 1
TUN_UDP: Final = 2

class Engine:
    event_fd: int
    port4: int
    port6: int
    def __init__(
        self,
        *,
        private_key: bytes,
        port: int = 0,
        mtu: int = 1280,
        bind4: bytes | None = None,
        bind6: bytes | None = None,
        timestamp_floor: bytes = b"",
        congestion: str | None = None,
        gso: int = 0,
        gro: bool = True,
        tcp_memory: int = 0,
        tcp_ecn: str = "accept",
    ) -> None: ...
    def poll_events(self, limit: int = 256) -> list[tuple[Any, ...]]: ...
    def set_private_key(self, key: bytes, /) -> None: ...
    def set_addresses(self, addresses: list[bytes], /) -> None: ...
    def upsert_peer(
        self,
        key: bytes,
        prefixes: list[tuple[bytes, int]],
        psk: bytes = b"",
        keepalive_s: int = 0,
        roams: bool = False,
    ) -> None: ...
    def remove_peer(self, key: bytes, /) -> None: ...
    def set_path(
        self,
        key: bytes,
        ip: bytes,
        port: int,
        vni: int,
        socket: int,
        region: int,
        mode: int,
        limit: int,
        others: bytes,
        /,
    ) -> None: ...
    def set_filter(self, blob: bytes, /) -> None:
        """Raises ValueError when the blob is not well formed; the filter in force stays."""

    def inject(self, region: int, sender: bytes, data: bytes, /) -> None: ...
    def send_raw(self, ip: bytes, port: int, data: bytes, /) -> None: ...
    def send_extra(self, socket: int, ip: bytes, port: int, data: bytes, /) -> None: ...
    def set_extra(self, first: int, count: int, wanted: int, /) -> None: ...
    def kick(self, key: bytes, /) -> None: ...
    def tell_disco_key(self, ip: bytes, key: bytes, /) -> None: ...
    def nudge(self, key: bytes, /) -> None: ...
    def rebind(self) -> None: ...
    def set_offloads(self, gso: int, gro: bool, /) -> None: ...
    def connect(self, req: int, ip: bytes, port: int, /) -> None: ...
    def abort(self, req: int, /) -> None: ...
    def listen(self, req: int, ip: bytes, port: int, backlog: int, /) -> None: ...
    def taken(self, req: int, count: int, /) -> None: ...
    def unlisten(self, req: int, /) -> None: ...
    def ping(self, req: int, ip: bytes, size: int, /) -> None: ...
    def udp_open(self, req: int, ip: bytes, port: int, /) -> None: ...
    def udp_send(self, req: int, ip: bytes, port: int, source: bytes, data: bytes, /) -> bool:
        """source: one of our addresses, or empty. False: dropped, too much waits for the engine."""

    def udp_close(self, req: int, /) -> None: ...
    def open_tun(self, name: str = "", fd: int = -1) -> str:
        """Make the kernel interface `name`, or use a duplicate of `fd`, a TUN opened elsewhere; returns its name.

        ValueError: no name for an interface. OSError: filename is /dev/net/tun if that could not be opened, else the
        name (EPERM: no CAP_NET_ADMIN, EBUSY: taken, or this engine has an interface).
        """

    def set_tun_merge(self, which: int, /) -> None:
        """Which offloads of the interface are used: TUN_TCP | TUN_UDP."""

    def link_adopt(self, req: int, fd: int, tls: object | None, host: str, verified: str, /) -> None: ...
    def link_write(self, req: int, data: bytes, /) -> None: ...
    def link_open(self, req: int, region: int, rest: bytes, /) -> None: ...
    def link_websocket(self, req: int, rest: bytes, /) -> None: ...
    def link_close(self, req: int, /) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def peer_stats(self, key: bytes, /) -> dict[str, int]:
        """Raises KeyError when no such peer is known."""

    def last_timestamp(self) -> bytes:
        """The newest TAI64N stamp sent, 12 bytes: persist it and pass it as timestamp_floor."""

    def close(self, timeout_s: float, /) -> None: ...
    def release(self) -> None: ...

RELAY_DATA: Final = 1
"""(kind, conn, (packed ip, port), has_tls, tls_version, data): a raw connection said something; it waits for us"""
RELAY_ENDED: Final = 2
"""(kind, conn, why, was_open, key, (packed ip, port))"""
RELAY_DIALLED: Final = 3
"""(kind, conn): an adopted connection is ready for our first words"""
RELAY_NOTICE: Final = 4
"""(kind, conn, frame kind, payload): a neighbour said something of itself"""
RELAY_WHY: tuple[str, ...]
"""Texts for the why of RELAY_ENDED."""

class Relay:
    """A relay: a thread, its connections, the routes between them. 0 in an argument: the default."""

    event_fd: int
    def __init__(
        self,
        *,
        memory_max: int = 0,
        conns_max: int = 0,
        pending_max: int = 0,
        per_ip_max: int = 0,
        per_ip_rate: int = 0,
        per_ip_burst: int = 0,
        login_ms: int = 0,
        keep_alive_ms: int = 0,
        write_stall_ms: int = 0,
        client_rate: int = 0,
        client_burst: int = 0,
    ) -> None: ...
    def take(self) -> list[tuple[Any, ...]]: ...
    def set_tls(self, pem: bytes, extra_der: bytes, challenge_pem: bytes = b"", /) -> None: ...
    def listen(self, fd: int, has_tls: bool, role: int, /) -> None: ...
    def unlisten(self) -> None: ...
    def adopt(self, fd: int, tls: object | None, host: str, /) -> int: ...
    def write(self, conn: int, data: bytes, /) -> None: ...
    def resume(self, conn: int, /) -> None: ...
    def websocket(self, conn: int, rest: bytes, /) -> None: ...
    def open(self, conn: int, key: bytes, flags: int, greeting: bytes, rest: bytes, /) -> None: ...
    def end(self, conn: int, at_once: bool, /) -> None: ...
    def end_key(self, key: bytes, /) -> None: ...
    def tell(self, conn: int, kind: int, payload: bytes, /) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def clients(self) -> list[tuple[Any, ...]]: ...
    def close(self) -> None: ...

EV_LINK_READY: Final = 20
"""(kind, req, certificate as DER or b'', relay's key or b''): connected; say the first words"""
EV_LINK_DATA: Final = 21
"""(kind, req, data): before it is open"""
EV_LINK_FRAME: Final = 22
"""(kind, req, frame kind, payload): once it is open; no WireGuard packets"""
EV_LINK_PULSE: Final = 23
"""(kind, req, heard, counts): bytes came (1) or left (0), told now and then; both totals as native uint64"""
EV_LINK_ENDED: Final = 24
"""(kind, req, was_open, why): why is UTF-8, b'': the other side closed it"""

def tls_context(ca_file: str | None, verifies: bool, /) -> object:
    """How relays we dial prove who they are: the system's roots and those of ca_file, or not at all."""

def relay_key_of(der: bytes, /) -> bytes:
    """The relay's key that a meta-certificate tells; b'': it is none."""
