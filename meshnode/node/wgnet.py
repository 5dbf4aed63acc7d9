"""WireGuardNetwork: a plain WireGuard network inside this process, from a file as wg-quick reads it.

    async with WireGuardNetwork.from_file("wg.conf") as net:
        reader, writer = await net.open_connection("10.0.0.1", 80)

It has an engine of its own: its own keys, UDP port, addresses and routes, so that any number of networks live in
one process even if their address ranges overlap. Peers are looked for at their endpoints (core/whereabouts) and
roam as WireGuard's do. There is no control server and no policy: what a peer sends from its AllowedIPs may enter,
and meets only what this program listens on. Nothing of the machine is changed and no command is run.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from meshnode.base.addr import IP, Endpoint, Prefix, parse_ip
from meshnode.base.bounds import WGCONF_MAX
from meshnode.base.errors import ConfigError, DialError, ListenError, NameNotFound, PeerOffline
from meshnode.base.keys import NodePublic
from meshnode.config.load import check_tcp_ecn, check_tcp_memory
from meshnode.config.wgconf import WgConfig, WgPeer, parse_wgconf
from meshnode.core.whereabouts import Action, Resolve, Whereabouts
from meshnode.netmap.rules import allow_all
from meshnode.node.wgstatus import WgPeerStatus, WgStatus
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.tunnel.dialer import Dialer
from meshnode.tunnel.network import CONNECT_TIMEOUT_S, PING_BYTES, PING_TIMEOUT_S, Inside, Network

if TYPE_CHECKING:
    from meshnode.engine.engine import Engine
    from meshnode.engine.flow import TunnelSocket

CHECK_S: Final = 2.0
"""How often peers that are being written to are asked whether they answer."""
CHECKED_MAX: Final = 256
"""Peers asked per round."""

LookUp = Callable[[str, int], Awaitable[list[IP]]]
"""Name and port → addresses of the underlay, best first; OSError if there are none."""

_log = get_logger("wireguard")


class Echo(NamedTuple):
    """The answer to `WireGuardNetwork.ping`."""

    ip: IP
    latency_s: float


class WireGuardNetwork(Network):
    """A plain WireGuard network. Enter it to start, leave it to stop."""

    def __init__(
        self,
        config: WgConfig,
        *,
        name: str = "wireguard",
        look_up: LookUp | None = None,
        tcp_memory: int = 0,
        tcp_ecn: str = "accept",
        clock: Clock | None = None,
    ) -> None:
        """name: for logs and status. look_up: how names of endpoints become addresses; the system's if None.

        tcp_memory, tcp_ecn: as of `Node`. Raises ConfigError.
        """
        super().__init__()
        problem, self.tcp_memory = check_tcp_memory(tcp_memory)
        if problem:
            raise ConfigError(f"tcp_memory: {problem}")
        problem, self.tcp_ecn = check_tcp_ecn(tcp_ecn)
        if problem:
            raise ConfigError(f"tcp_ecn: {problem}")
        self.name = name
        self.config = config
        self.mtu = config.mtu
        self.clock = clock or Clock()
        self._look_up = look_up or look_up_by_system
        self._engine: Engine | None = None
        self._scope: Scope | None = None
        self._dialer: Dialer | None = None
        self._where: dict[NodePublic, Whereabouts] = {}
        self._heard: dict[NodePublic, Endpoint] = {}
        """Where each peer's last authentic packet came from."""
        self._busy: dict[NodePublic, None] = {}
        """Peers that are written to and may not answer, the one longest unasked first."""
        self._constant: set[NodePublic] = set()
        """Peers with keepalives: always written to."""
        self._is_closed = False

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, name: str = "", **options: Any) -> Self:
        """A network as the file says. What has no effect here is in `config.warnings`, and logged with its line.

        name: the file's own without `.conf`, if empty. ConfigError: it cannot be read, or is wrong.
        """
        source = Path(path).expanduser()
        config = read_wgconf(source)
        return cls(config, name=name or source.name.removesuffix(".conf"), **options)

    # --- life ---

    async def __aenter__(self) -> Self:
        from meshnode.engine.engine import Engine

        if self._engine is not None or self._is_closed:
            raise RuntimeError("a WireGuardNetwork is entered once; make another one")
        config = self.config
        try:
            engine = await Engine.start(
                config.private, port=config.port, mtu=config.mtu, tcp_memory=self.tcp_memory, tcp_ecn=self.tcp_ecn
            )
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            tip = "another program has it; choose another ListenPort, or leave it out" if taken else "check its limits"
            raise ListenError(f"{self.name}: UDP port {config.port} cannot be used: {tip}") from None
        self._engine = engine
        self._dialer = Dialer(engine.connect, self.resolve)
        self._scope = Scope(f"wireguard:{self.name}")
        engine.on_peer_recv = self._on_heard
        engine.on_peer_send = self._on_sent
        engine.on_handshake = self._on_handshake
        engine.set_filter(allow_all())
        engine.set_addresses(config.addresses)
        for peer in config.peers:
            self._add(peer)
        self._scope.spawn(self._watch(), "endpoints")
        addresses = ",".join(map(str, config.addresses))
        _log.info("network up", network=self.name, addresses=addresses, port=self.port, peers=len(config.peers))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what was opened here and stop. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._close_doors()
        if self._scope is not None:
            await self._scope.aclose()
        if self._engine is not None:
            await self._engine.aclose()

    async def wait_failed(self) -> BaseException:
        """Wait for a bug of ours that ends this network."""
        assert self._scope is not None
        return await asyncio.shield(self._scope.failed)

    def reconfigure(self, config: WgConfig) -> None:
        """Change peers, addresses and private key while it runs, as `wg syncconf` does; connections of peers that
        stay go on. ConfigError: the port or the MTU differ, which only a new start can change."""
        engine = self._inside().engine
        if (config.port, config.mtu) != (self.config.port, self.config.mtu):
            raise ConfigError(f"{self.name}: ListenPort and MTU cannot change while the network runs; start it anew")
        before = {peer.key: peer for peer in self.config.peers}
        wanted = {peer.key: peer for peer in config.peers}
        for key in before.keys() - wanted.keys():
            engine.remove_peer(key)
            self._forget(key)
        if config.private != self.config.private:
            engine.set_private_key(config.private)
        engine.set_addresses(config.addresses)
        self.config = config
        for key, peer in wanted.items():
            if peer != before.get(key):
                self._add(peer)

    # --- what Network asks ---

    def _inside(self) -> Inside:
        if self._engine is None or self._dialer is None or self._is_closed:
            raise DialError(f"network {self.name} is not running; use it inside its `async with`")
        return Inside(self._engine, self._dialer)

    @property
    def addresses(self) -> tuple[IP, ...]:
        """Ours in this network."""
        return self.config.addresses

    def resolve(self, host: str) -> tuple[IP, ...]:
        """The address in the text, if a peer has it or we do. NameNotFound."""
        try:
            ip = parse_ip(host.strip("[]"))
        except ValueError:
            raise NameNotFound(f"{host}: network {self.name} has no names; use an IP address") from None
        if self.route(ip) is None:
            raise NameNotFound(f"{ip} is in no peer's AllowedIPs of network {self.name}")
        return (ip,)

    async def connect(self, host: str | IP, port: int, *, timeout: float | None = CONNECT_TIMEOUT_S) -> TunnelSocket:
        """A connected TunnelSocket to an address of this network. DialError says why not."""
        self._inside()
        peer = self.peer_of(str(host))
        if peer is not None and not peer.host and peer.key not in self._heard:
            why = "has no Endpoint in the file and has not spoken yet: nobody knows where it is"
            error = PeerOffline(f"the peer of {host} in network {self.name} {why}")
            error.errno = errno.EHOSTUNREACH
            raise error
        return await super().connect(host, port, timeout=timeout)

    async def ping(
        self, host: str | IP, *, timeout: float = PING_TIMEOUT_S, kind: str = "icmp", size: int = PING_BYTES
    ) -> Echo:
        """An ICMP echo of `size` bytes inside the network. TimedOut if none comes back within `timeout` seconds."""
        if kind != "icmp":
            raise ConfigError(f"ping: plain WireGuard has no {kind!r} ping; use icmp")
        return Echo(*await self._echo(str(host), timeout, size))

    # --- knowledge ---

    @property
    def port(self) -> int:
        """Our UDP port."""
        engine = self._inside().engine
        return engine.port4 or engine.port6

    def route(self, ip: IP) -> Prefix | None:
        """The range of this network that `ip` is in, the longest; our own address is one. None: not in here."""
        if ip in self.config.addresses:
            return _host_prefix(ip)
        found = [p for peer in self.config.peers for p in peer.allowed if p.version == ip.version and ip in p]
        return max(found, key=lambda prefix: prefix.prefixlen, default=None)

    def peer_of(self, address: str | IP) -> WgPeer | None:
        """The peer that an address belongs to. None: none, or it is ours."""
        try:
            ip = parse_ip(address.strip("[]")) if isinstance(address, str) else address
        except ValueError:
            return None
        prefix = self.route(ip)
        return next((peer for peer in self.config.peers if prefix in peer.allowed), None)

    def whois(self, _: Any) -> None:
        """Plain WireGuard knows keys, not people: nobody has a name here. `peer_of` tells the key."""

    def status(self) -> WgStatus:
        """Everything at this moment; no I/O."""
        engine = self._inside().engine
        return WgStatus(
            name=self.name,
            public_key=self.config.private.public(),
            addresses=self.config.addresses,
            port=self.port,
            mtu=self.mtu,
            peers=tuple(self._status_of(engine, peer) for peer in self.config.peers),
        )

    def _status_of(self, engine: Engine, peer: WgPeer) -> WgPeerStatus:
        where = self._where.get(peer.key)
        status = WgPeerStatus(
            key=peer.key,
            allowed=peer.allowed,
            endpoint=self._heard.get(peer.key) or (where.endpoint if where else None),
            host=f"{peer.host}:{peer.port}" if where is not None and where.is_name else "",
            keepalive_s=peer.keepalive_s,
        )
        with contextlib.suppress(KeyError):
            stats = engine.peer_stats(peer.key)
            done_ns = stats["last_handshake_ns"]
            age = (self.clock.boot_ns() - done_ns) / 1e9
            status = replace(
                status,
                last_handshake=self.clock.wall() - age if done_ns else None,
                rx_bytes=stats["rx_bytes"],
                tx_bytes=stats["tx_bytes"],
            )
        return status

    # --- peers ---

    def _add(self, peer: WgPeer) -> None:
        engine = self._inside().engine
        psk = peer.psk.reveal() if peer.psk is not None else b""
        engine.upsert_peer(peer.key, peer.allowed, psk, peer.keepalive_s, roams=True)
        self._constant.discard(peer.key)
        if peer.keepalive_s:
            self._constant.add(peer.key)
            self._busy[peer.key] = None
        known = self._where.get(peer.key)
        if not peer.host:
            self._where.pop(peer.key, None)
        elif known is None or (known.host, known.port) != (peer.host, peer.port):
            where = self._where[peer.key] = Whereabouts(peer.host, peer.port)
            self._do(peer.key, where, where.start())

    def _forget(self, key: NodePublic) -> None:
        self._where.pop(key, None)
        self._heard.pop(key, None)
        self._constant.discard(key)
        self._busy.pop(key, None)

    def _do(self, key: NodePublic, where: Whereabouts, actions: Iterable[Action]) -> None:
        from meshnode.engine.engine import PATH_DIRECT

        engine, scope = self._inside().engine, self._scope
        assert scope is not None
        for action in actions:
            if isinstance(action, Resolve):
                scope.spawn(self._find(key, where), "resolve")
            else:
                engine.set_path(key, action.endpoint, 0, PATH_DIRECT)
                if key in self._busy:
                    engine.kick(key)

    async def _find(self, key: NodePublic, where: Whereabouts) -> None:
        """Resolve a peer's endpoint and use what comes of it."""
        try:
            addresses = self._usable(await self._look_up(where.host, where.port))
        except OSError as error:
            where.on_unresolved(self.clock.now())
            reason = (error.strerror or str(error)).lower()
            _log.warning("endpoint does not resolve", network=self.name, peer=key.base64, host=where.host, error=reason)
            return
        if self._where.get(key) is where:
            actions = where.on_resolved(addresses)
            _log.info("endpoint resolved", network=self.name, peer=key.base64, host=where.host, to=str(where.endpoint))
            self._do(key, where, actions)

    def _usable(self, addresses: Iterable[IP]) -> list[IP]:
        """Those of a family that we have a socket of. OSError: none."""
        engine = self._inside().engine
        found = [ip for ip in addresses if (engine.port4 if ip.version == 4 else engine.port6)]
        if not found:
            raise OSError(errno.EAFNOSUPPORT, "no address of a family that this machine has")
        return found

    async def _watch(self) -> None:
        """Look elsewhere for peers that do not answer."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.check()

    def check(self) -> None:
        """One round of looking after the endpoints; `_watch` does it every CHECK_S."""
        engine, now = self._inside().engine, self.clock.now()
        for key, where in self._where.items():
            if where.retry_at is not None:
                self._do(key, where, where.on_time(now))
        for key in list(self._busy)[:CHECKED_MAX]:
            del self._busy[key]
            asked = self._where.get(key)
            if asked is None:
                continue
            try:
                stats = engine.peer_stats(key)
            except KeyError:
                continue
            if not stats["session"] or key in self._constant:
                self._busy[key] = None
            self._do(key, asked, asked.on_count(stats["handshakes"], stats["initiations_sent"]))

    # --- what the engine says ---

    def _on_heard(self, key: NodePublic, direct: Endpoint | None, region: int, what: int) -> None:
        before = self._heard.get(key)
        if direct is None or direct == before:
            return
        self._heard[key] = direct
        if before is not None:
            _log.info("peer roamed", network=self.name, peer=key.base64, to=str(direct), was=str(before))

    def _on_sent(self, key: NodePublic, wanted: bool) -> None:
        self._busy[key] = None

    def _on_handshake(self, key: NodePublic, is_up: bool) -> None:
        if not is_up:
            self._busy[key] = None
            _log.warning("peer does not answer", network=self.name, peer=key.base64)


def read_wgconf(path: Path) -> WgConfig:
    """Read and check a file; its warnings are logged. ConfigError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(WGCONF_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "not text").lower()
        raise ConfigError(f"cannot read the WireGuard configuration {path}: {reason}") from None
    config = parse_wgconf(text, str(path))
    if mode & 0o077:
        _log.warning(f"{path} holds a private key and others can read it (mode {mode:04o}); chmod 600 {path}")
    for warning in config.warnings:
        _log.warning(str(warning))
    return config


async def look_up_by_system(host: str, port: int) -> list[IP]:
    """The system's resolver. OSError: no address."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return [parse_ip(str(address[0]).partition("%")[0]) for *_, address in found]


def _host_prefix(ip: IP) -> Prefix:
    from ipaddress import ip_network

    return ip_network(ip)
