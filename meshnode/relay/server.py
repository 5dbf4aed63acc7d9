"""RelayServer: the relay of `meshnode derp`, `meshnode demo` and the tests.

The C core accepts, speaks TLS and moves frames on a thread of its own; here is what is rare: the HTTP request and the
login of each client, the question who may come in, and who is to leave. Nothing is open before its login: HTTP and
login together have LOGIN_S.
Source: docs/protocol/paths.md 1.4 to 1.11, 10.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from meshnode.base.addr import RegionId
from meshnode.base.errors import ListenError, ProtocolError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.core.recheck import EVERY_S, Rechecks
from meshnode.engine import _native
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay.admit import Admit, Gate, allow_everybody
from meshnode.relay.identity import meta_certificate
from meshnode.relay.mesh import Mesh
from meshnode.relay.options import DialOptions
from meshnode.relay.recheck import keep_asking
from meshnode.relay.session import Pages, Role, Session, Want
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.wire import derp

LOGIN_S: Final = 10.0
RECHECK_S: Final = EVERY_S
KEEP_ALIVE_S: Final = 60.0
WRITE_STALL_S: Final = 5.0
CLIENTS_MAX: Final = 65536
PENDING_MAX: Final = 4096
MEMORY_MAX: Final = 256 << 20
BACKLOG: Final = 4096
FILES_KEPT: Final = 64
"""Descriptors that clients never get: those of the verifier, of metrics, of files read again."""

PROBER: Final = 1
MESH: Final = 2
NOT_IDEAL: Final = 4
ACKS_PINGS: Final = 8
WEBSOCKET: Final = 16
NEIGHBOUR: Final = 32
_LISTEN_MENDS: Final = {
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE, which docs/deploy/meshnode-derp.service gives",
    errno.EADDRNOTAVAIL: "give an address of this machine, or none for all",
}
_log = get_logger("relay-server")


class Limits(NamedTuple):
    """What clients may ask of a relay; 0: no limit."""

    clients: int = CLIENTS_MAX
    pending: int = PENDING_MAX
    """Connections that are not logged in yet; beyond, the oldest of them goes."""
    per_ip: int = 0
    per_ip_rate: int = 0
    """New connections a second from one address (IPv6: one /64)."""
    client_rate: int = 0
    """Bytes a second read from one client."""
    memory: int = MEMORY_MAX
    """Bytes that wait for all clients together."""


class Client(NamedTuple):
    """One open connection, as the C core sees it."""

    conn: int
    key: NodePublic
    source: str
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    dropped: int
    waiting_bytes: int
    age_s: int
    is_home: bool
    is_live: bool
    is_mesh: bool


class RelayServer:
    """One relay. `start` binds, `aclose` ends every connection."""

    def __init__(
        self,
        *,
        private: NodePrivate | None = None,
        admit: Admit = allow_everybody,
        tls: bytes | None = None,
        clock: Clock | None = None,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        mesh_key: str = "",
        pages: Pages = lambda request, role: None,
    ) -> None:
        """private: the relay's own key, fresh if None. tls: chain and key as PEM; None: plain HTTP.

        admit: a Gate is asked again while its members stay. mesh_key: other relays of the region show it.
        """
        self.clock = clock or Clock()
        self.private = private or NodePrivate.generate(self.clock.entropy)
        self.public: NodePublic = self.private.public()
        self.admit = admit
        self.counters: Counter[str] = Counter()
        self.limits = limits
        self.mesh: Mesh | None = None
        self._mesh_key = mesh_key
        self._pages = pages
        self._tls = tls
        self._is_draining = False
        self._sessions: dict[int, Session] = {}
        self._native: _native.Relay | None = None
        self._loop: asyncio.AbstractEventLoop
        self.scope: Scope
        self.port = 0
        """The port listened on, once started."""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. ListenError if the address cannot be had, ValueError if the certificate is of no use."""
        listening = listen_on(host, port)
        self.port = listening.getsockname()[1]
        self.run()
        try:
            self.set_certificate(self._tls)
        except BaseException:
            listening.close()
            await self.aclose()
            raise
        self.take(listening, tls=self._tls is not None)

    def run(self) -> None:
        """Start the C core; sockets follow by `take`."""
        self.scope = Scope("relay-server")
        self._loop = asyncio.get_running_loop()
        self._native = _native.Relay(
            memory_max=self.limits.memory,
            conns_max=_conns_max(self.limits.clients),
            pending_max=self.limits.pending,
            per_ip_max=self.limits.per_ip,
            per_ip_rate=self.limits.per_ip_rate,
            client_rate=self.limits.client_rate,
            login_ms=int(LOGIN_S * 1000),
            keep_alive_ms=int(KEEP_ALIVE_S * 1000),
            write_stall_ms=int(WRITE_STALL_S * 1000),
        )
        self._loop.add_reader(self._native.event_fd, self._on_events)
        if isinstance(self.admit, Gate):
            asking = keep_asking(
                self.admit,
                Rechecks(RECHECK_S),
                members=self._members,
                cut_off=self._revoke,
                clock=self.clock,
                scope=self.scope,
            )
            self.scope.spawn(asking, "recheck")

    def set_certificate(self, pem: bytes | None, challenge: bytes = b"") -> None:
        """Of connections from now on; None: none. ValueError if it is of no use.

        challenge: certificate and key for an ACME server that asks by TLS (RFC 8737); everybody else meets `pem`.
        """
        if pem is not None and self._native is not None:
            self._native.set_tls(pem, meta_certificate(self.public), challenge)

    def take(self, listening: socket.socket, *, tls: bool, role: Role = Role.RELAY) -> None:
        """Accept on a listening socket, which is given up by its owner. role: what is served there."""
        assert self._native is not None
        self._native.listen(listening.detach(), tls, role)

    def join_mesh(self, neighbours: list[RelayNode], options: DialOptions) -> None:
        """Watch the other relays of the region."""
        assert self._native is not None and self._mesh_key
        self.mesh = Mesh(self._native, self.private, self._mesh_key, neighbours, options=options, clock=self.clock)
        self.mesh.start(self.scope)

    @property
    def client_count(self) -> int:
        """Logged-in connections."""
        return self._native.stats()["clients"] if self._native is not None else 0

    def stats(self) -> dict[str, int]:
        """Every number of the C core; empty once closed."""
        return self._native.stats() if self._native is not None else {}

    def clients(self) -> list[Client]:
        """Every open connection."""
        if self._native is None:
            return []
        return [
            Client(
                conn,
                NodePublic(key),
                _text(source),
                rp,
                rb,
                tp,
                tb,
                dropped,
                waits,
                age,
                home,
                live,
                bool(flags & MESH),
            )  # fmt: skip
            for conn, key, source, rp, rb, tp, tb, dropped, waits, age, flags, home, live in self._native.clients()
        ]

    def find(self, key: NodePublic) -> list[Client]:
        """The open connections of one key."""
        return [client for client in self.clients() if client.key == key]

    def region(self, host: str, *, number: int = 900, code: str = "own", insecure: bool = False) -> RelayRegion:
        """This relay as an entry of a relay map."""
        node = RelayNode(
            name=f"{number}a",
            region=RegionId(number),
            host=host,
            ipv4=host if host.count(".") == 3 else "",
            port=self.port,
            stun_port=-1,
            insecure=insecure,
        )
        return RelayRegion(RegionId(number), code, code, (node,))

    def relay_map(self, host: str = "127.0.0.1", **about: Any) -> RelayMap:
        """A map of this relay alone."""
        region = self.region(host, **about)
        return RelayMap({region.id: region})

    async def aclose(self) -> None:
        """Stop listening and end every connection. Idempotent."""
        native, self._native = self._native, None
        if native is None:
            return
        self._loop.remove_reader(native.event_fd)
        await self.scope.aclose()
        self._sessions.clear()
        native.close()

    async def drain(self, over_s: float = 10.0) -> None:
        """Take no more clients, tell each when to come back, and let them go spread over `over_s`, idle ones first."""
        native = self._native
        if native is None or self._is_draining:
            return
        self._is_draining = True
        native.unlisten()
        clients = sorted(self.clients(), key=lambda client: client.rx_packets + client.tx_packets)
        for client in clients:
            wait_ms = int(self.clock.uniform(500.0, 1000.0 * max(1.0, over_s)))
            native.tell(client.conn, derp.RESTARTING, derp.emit_restarting(wait_ms, 60_000)[derp.HEADER_LEN :])
        for number, client in enumerate(clients):
            native.end(client.conn, False)
            if number % 16 == 15:
                await asyncio.sleep(16 * over_s / len(clients))

    def close_keys(self, keys: Sequence[NodePublic]) -> None:
        """Cut these keys off, every connection of theirs."""
        for key in keys:
            if self._native is not None:
                self._native.end_key(key.raw)

    # --- events of the C core ---

    def _on_events(self) -> None:
        assert self._native is not None
        for event in self._native.take():
            kind, conn = event[0], event[1]
            if kind == _native.RELAY_DATA:
                if self.mesh is None or not self.mesh.on_data(conn, event[5]):
                    self._on_data(conn, event[2], event[5], Role(event[6]))
            elif kind == _native.RELAY_DIALLED:
                if self.mesh is not None:
                    self.mesh.on_dialled(conn)
            elif kind == _native.RELAY_ENDED:
                self._sessions.pop(conn, None)
                if self.mesh is not None and self.mesh.on_ended(conn, _native.RELAY_WHY[event[2]]):
                    continue
                _log.debug("relay client ended", source=_text(event[5]), why=_native.RELAY_WHY[event[2]])

    def _on_data(self, conn: int, source: tuple[bytes, int], data: bytes, role: Role) -> None:
        native = self._native
        assert native is not None
        session = self._sessions.get(conn)
        if session is None:
            session = self._sessions[conn] = Session(self.private, self._pages, role, self.clock.wall)
        try:
            want = session.receive(data)
        except ProtocolError as error:
            self.counters["protocol_errors"] += 1
            _log.debug("relay client cut off", source=_text(source), reason=str(error))
            native.end(conn, True)
            return
        if session.out:
            native.write(conn, bytes(session.out))
            session.out.clear()
        if want is Want.READ:
            native.resume(conn)
        elif want is Want.CLOSE:
            native.end(conn, False)
        elif want is Want.WEBSOCKET:
            native.websocket(conn, session.rest)
            native.write(conn, session.greet())
        else:
            self.scope.spawn(self._admit(conn, session, _text(source)), f"admit {_text(source)}")

    def _knows_mesh_key(self, key: str) -> bool:
        return bool(self._mesh_key) and hmac.compare_digest(key.encode(), self._mesh_key.encode())

    def _members(self) -> dict[NodePublic, str]:
        return {client.key: client.source for client in self.clients() if not client.is_mesh}

    def _revoke(self, key: NodePublic, source: str) -> None:
        _log.info("no longer admitted", key=str(key), source=source)
        self.counters["revoked"] += 1
        self.close_keys([key])

    async def _admit(self, conn: int, session: Session, source: str) -> None:
        info = session.info
        assert info is not None
        is_mesh = self._knows_mesh_key(info.mesh_key)
        allowed = is_mesh
        if not info.mesh_key:
            try:
                async with asyncio.timeout(LOGIN_S):  # of a Gate, its own is shorter
                    allowed = await self.admit(session.client, source)
            except Exception as error:
                _log.warning("admission failed; the client is refused", error=f"{type(error).__name__}: {error}")
                allowed = False
        if self._native is None or self._sessions.pop(conn, None) is None:
            return
        if not allowed:
            if info.mesh_key:
                _log.warning("refused: a relay with another mesh key, or none is set here", source=source)
            self.counters["refused"] += 1
            self._native.end(conn, True)
            return
        self.counters["fast_starts"] += session.is_fast
        flags = (PROBER if info.is_prober else 0) | (ACKS_PINGS if info.can_ack_pings else 0)
        flags |= (MESH if is_mesh else 0) | (NOT_IDEAL if session.ideal_node else 0)
        rate = self.limits.client_rate
        greeting = session.create_server_info(
            self.clock.entropy(derp.NONCE_LEN), rate_bytes_per_s=rate, rate_burst_bytes=rate
        )
        self._native.open(conn, session.client.raw, flags, greeting, session.rest)


def _conns_max(wanted: int) -> int:
    """As many connections as there may be descriptors for."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - FILES_KEPT))


def listen_on(host: str, port: int, name: str = "listen") -> socket.socket:
    """A listening TCP socket; ListenError with the address and the reason. name: of the setting that asks for it."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise ListenError(f"relay: {host!r} is no address to listen on; give an IP address") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host != "::":
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = (error.strerror or str(error)).lower()
        mend = _LISTEN_MENDS.get(error.errno or 0, "choose another")
        raise ListenError(f"{name}: {where} cannot be listened on: {reason}; {mend}") from None
    return listening


def _text(source: tuple[bytes, int]) -> str:
    """The address of a client, as text."""
    return str(ipaddress.ip_address(source[0]))
