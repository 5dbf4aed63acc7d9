"""Node: one member of a tailnet inside this process.

    async with Node(control_url=…, auth_key=…, hostname="gpu-1", state_dir=…) as node:
        await node.ready(timeout=30)
        reader, writer = await node.open_connection("db-1", 5432)

Entering starts it, leaving ends everything it started; nothing is global, several live in one loop.
States: new → starting → ready → closed; a refusal by the control server ends it with that error,
which `ready` and every later call raise. An ephemeral node logs out when it is left.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.base.addr import IP, Endpoint, parse_ip, split_host_port
from meshnode.base.errors import ConfigError, DialError, MeshError, NameNotFound, NotReady, TimedOut
from meshnode.config.load import (
    check_advertise,
    check_control_url,
    check_disco,
    check_hostname,
    check_tcp_ecn,
    check_tcp_memory,
    check_tun,
)
from meshnode.config.model import CAPTIVE_PORTAL, DEFAULT_CONTROL_URL, DEFAULT_MTU, MEMORY, PATHS, Config, Disco, Secret
from meshnode.core.proxies import Proxies
from meshnode.netmap.model import Netmap
from meshnode.netmap.names import Names
from meshnode.netmap.rules import caps_towards_us
from meshnode.node.events import Broadcast, Subscription
from meshnode.node.status import Identity, Pong, Status
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.tunnel.network import PING_BYTES, PING_TIMEOUT_S, Inside, Network

if TYPE_CHECKING:
    from meshnode.core.report import NetReport
    from meshnode.node.house import House
    from meshnode.node.netview import NetView

_log = get_logger("node")
READY_TIMEOUT_S: Final = 60.0
PING_SIZE_MAX: Final = 1400
"""Of a DISCO ping: what a tunnel packet of the largest MTU makes on the wire is less."""
NETCHECK_TIMEOUT_S: Final = 15.0
LOGOUT_S: Final = 3.0
"""What an ephemeral node spends on saying good-bye; then control's own timeout removes it."""


class Node(Network):
    """A node of a tailnet. Enter it to start, leave it to stop.

    What can be done inside the tailnet (connect, listen, datagrams) is `Network`'s.
    """

    def __init__(
        self,
        *,
        control_url: str = DEFAULT_CONTROL_URL,
        auth_key: str | Secret = "",
        hostname: str = "",
        state_dir: str | os.PathLike[str] = "",
        ephemeral: bool = False,
        ca_file: str = "",
        proxy: str | Secret = "",
        captive_portal: str = "auto",
        port: int = 0,
        advertise: Sequence[str] = (),
        home_region: int = 0,
        mtu: int = DEFAULT_MTU,
        plain_relays: bool = False,
        insecure_relays: bool = False,
        use_loopback: bool = False,
        paths: str = "auto",
        udp_gso: str = "auto",
        udp_gro: str = "auto",
        tun: str = "",
        tcp_memory: int = 0,
        tcp_ecn: str = "accept",
        disco: Disco | None = None,
        clock: Clock | None = None,
    ) -> None:
        """state_dir: '' = the user's default directory, 'mem:' = keep nothing (implied by `ephemeral`
        without a directory). auth_key: needed when the state knows no identity that is still good.
        proxy: URL of an HTTP proxy for control and relays; '' = as the environment says, 'off' = none.
        captive_portal: whether to look for one when no UDP passes: 'auto' = outside containers, 'on', 'off'.
        port: UDP port, 0 = any. advertise: addresses with ports at which peers reach this node from outside, beside
        those it finds. home_region: relay region to live in while it can be reached, 0 = the nearest.
        paths: see `set_paths`.
        udp_gso: "auto", "off" or "never-equal-tail"; udp_gro: "auto" or "off": see docs/reference/configuration.md.
        tun: name of a kernel interface to make, for every program of this machine; needs CAP_NET_ADMIN.
        tcp_memory: bytes that all TCP connections together may hold, 0 = the engine's choice; tcp_ecn: congestion
        marks, "accept", "ask" or "off": see docs/reference/configuration.md.
        disco: how direct paths are looked for and watched, as the section `[disco]`; None = its defaults.
        plain_relays, insecure_relays, use_loopback: for tests on one machine.
        Raises ConfigError.
        """
        super().__init__()
        problem, self.control_url = check_control_url(control_url)
        if problem:
            raise ConfigError(f"control_url: {problem}")
        problem, self.hostname = check_hostname(hostname)
        if problem:
            raise ConfigError(f"hostname: {problem}")
        problem, self.tun = check_tun(tun)
        if problem:
            raise ConfigError(f"tun: {problem}")
        problem, self.tcp_memory = check_tcp_memory(tcp_memory)
        if problem:
            raise ConfigError(f"tcp_memory: {problem}")
        problem, self.tcp_ecn = check_tcp_ecn(tcp_ecn)
        if problem:
            raise ConfigError(f"tcp_ecn: {problem}")
        self.disco = disco or Disco()
        if problem := check_disco(self.disco):
            raise ConfigError(problem)
        self.auth_key = auth_key if isinstance(auth_key, Secret) else Secret(auth_key)
        directory = os.fspath(state_dir)
        self.state_dir = "" if directory == MEMORY or (ephemeral and not directory) else directory or _usual()
        """'' for a node that keeps nothing."""
        self.ephemeral = ephemeral or not self.state_dir
        self.ca_file = ca_file
        if captive_portal not in CAPTIVE_PORTAL:
            raise ConfigError(f"captive_portal: {captive_portal!r} is none of {', '.join(CAPTIVE_PORTAL)}")
        self.captive_portal = captive_portal
        self.proxies = Proxies(proxy.reveal() if isinstance(proxy, Secret) else proxy, os.environ)
        self.port = port
        self.home_region = home_region
        problem, texts = check_advertise(advertise)
        if problem:
            raise ConfigError(f"advertise: {problem}")
        self.advertise = tuple(map(Endpoint.parse, texts))
        self.mtu = mtu
        self.plain_relays = plain_relays
        self.insecure_relays = insecure_relays
        self.use_loopback = use_loopback
        self.paths = paths
        self.udp_gso = udp_gso
        self.udp_gro = udp_gro
        self.clock = clock or Clock()
        self._house: House | None = None
        self._scope: Scope | None = None
        self._broadcast = Broadcast()
        self._names: Names | None = None
        self._failure: asyncio.Future[MeshError] | None = None
        self._is_closed = False
        self._is_logged_out = False

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """A node with the settings of a Config."""
        tailscale = config.tailscale
        directory = tailscale.state_dir
        if not directory and not tailscale.ephemeral:
            directory = _usual(config.network)
        return cls(
            control_url=tailscale.control_url,
            auth_key=tailscale.auth_key,
            hostname=tailscale.hostname,
            state_dir=directory,
            ephemeral=tailscale.ephemeral,
            ca_file=tailscale.ca_file,
            proxy=tailscale.proxy,
            captive_portal=tailscale.captive_portal,
            port=tailscale.port,
            home_region=tailscale.home_region,
            advertise=tailscale.advertise,
            mtu=tailscale.mtu,
            plain_relays=tailscale.plain_relays,
            insecure_relays=tailscale.insecure_relays,
            use_loopback=tailscale.use_loopback,
            paths=tailscale.paths,
            udp_gso=tailscale.udp_gso,
            udp_gro=tailscale.udp_gro,
            tun=config.tunnel.tun,
            tcp_memory=config.tunnel.tcp_memory,
            tcp_ecn=config.tunnel.tcp_ecn,
            disco=config.disco,
        )

    # --- life ---

    async def __aenter__(self) -> Self:
        if self._house is not None or self._is_closed:
            raise RuntimeError("a Node is entered once; make another one")
        from meshnode.node.house import House

        self._failure = asyncio.get_running_loop().create_future()
        self._scope = Scope("node")
        self._house = House(self, self._scope, self._broadcast, on_failure=self.fail)
        try:
            await self._house.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop: doors, then the good-bye of an ephemeral node, then every room. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._close_doors()
        house, scope = self._house, self._scope
        if house is not None:
            await house.drain()
            if self.ephemeral and not self._is_logged_out:
                await house.say_goodbye(LOGOUT_S)
            await house.remember()
        if scope is not None:
            await scope.aclose()
        if house is not None:
            await house.stop()
        self._broadcast.close()
        if self._failure is not None and not self._failure.done():
            self._failure.cancel()

    async def ready(self, timeout: float | None = READY_TIMEOUT_S) -> None:
        """Wait until the netmap is in use and peers can reach us.

        Raises what the control server refused us with, or NotReady after `timeout` seconds (its
        `__cause__` is what stood in the way, if anything did).
        """
        house = self._running()
        try:
            async with asyncio.timeout(timeout):
                await self._or_failure(house.wait_ready())
        except TimeoutError as error:
            if isinstance(error, MeshError):
                raise
            reason, cause = house.what_it_waits_for()
            raise NotReady(f"not ready after {timeout:g} s: {reason}") from cause

    async def wait_failed(self) -> MeshError:
        """Wait for the error that ends this node: a refusal by control, or a bug of ours."""
        assert self._failure is not None
        return await asyncio.shield(self._failure)

    def fail(self, error: MeshError) -> None:
        """The node cannot go on; `ready` and `wait_failed` tell."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    async def logout(self, timeout: float = LOGOUT_S) -> None:
        """Leave the tailnet: control forgets an ephemeral node and expires another; our keys are erased."""
        self._is_logged_out = True
        await self._running().logout(timeout)

    def set_paths(self, paths: str) -> None:
        """'auto': by the best way there is. 'relay': by relays only, to see how that is, or in doubt of UDP."""
        if paths not in PATHS:
            raise ConfigError(f"paths: {paths!r} is none of {', '.join(PATHS)}")
        self._running().wiring.set_paths(paths)
        self.paths = paths

    # --- knowledge ---

    @property
    def netmap(self) -> Netmap | None:
        """The newest snapshot; None before the first."""
        return self._house.netmap.value if self._house else None

    @property
    def name(self) -> str:
        """Our name as control gave it; the one we ask for before that."""
        netmap = self.netmap
        return netmap.self_node.name if netmap else self.hostname

    @property
    def addresses(self) -> tuple[IP, ...]:
        """Our tailnet addresses, IPv4 first; empty before the first netmap."""
        netmap = self.netmap
        return netmap.self_node.ips if netmap else ()

    def status(self) -> Status:
        """Everything at this moment; no I/O."""
        from meshnode.node.view import status_of

        return status_of(self._running())

    def whois(self, address: str | IP | tuple[Any, ...]) -> Identity | None:
        """Who an address belongs to: an IP, `ip:port` text, or a peername tuple. None: nobody we see."""
        netmap = self.netmap
        if netmap is None:
            return None
        try:
            ip = _address_in(address)
        except ValueError:
            raise NameNotFound(f"{address!r} is no address; whois wants an IP, with or without port") from None
        owner = self.names().owner(ip)
        if owner is None:
            return None
        return Identity(owner, netmap.users.get(owner.user_id), caps_towards_us(netmap, ip))

    def names(self) -> Names:
        """Look-ups over the newest netmap. DialError before the first."""
        if self._names is None:
            if self.netmap is None:
                raise DialError("this node has no netmap yet; wait for ready()")
            self._names = Names(self.netmap)
        return self._names

    def resolve(self, host: str) -> tuple[IP, ...]:
        """Addresses of a name of the tailnet, or of an address in text. NameNotFound with the nearest names."""
        names = self.names()
        found = names.addresses(host)
        if len(found) == 1 and names.owner(found[0]) is None and str(found[0]) == host.strip("[]").lower():
            raise NameNotFound(f"{host} belongs to no node this one sees")
        return found

    async def ping(
        self, host: str | IP, *, timeout: float = PING_TIMEOUT_S, kind: str = "disco", size: int | None = None
    ) -> Pong:
        """Reach a peer. TimedOut if no pong comes within `timeout` seconds.

        kind: "disco" by the path of the moment, without the tunnel; size: bytes of the IP packet, at most 1400, to
        see whether the path carries it. "icmp" an echo of `size` bytes (56) inside the tunnel, which the peer's
        rules must allow.
        """
        if kind == "disco":
            if not 0 <= (size or 0) <= PING_SIZE_MAX:
                raise ConfigError(f"ping: {size} is no size of a DISCO ping; use 0 to {PING_SIZE_MAX}")
            return await self._running().ping(str(host), timeout, size or 0)
        if kind != "icmp":
            raise ConfigError(f"ping: {kind!r} is none of disco, icmp")
        ip, seconds = await self._echo(str(host), timeout, PING_BYTES if size is None else size)
        owner = self.names().owner(ip)
        if owner is None:
            raise NameNotFound(f"{host} belongs to no node this one sees")
        return Pong(owner, ip, seconds, None, is_self=ip in self.addresses, kind=kind)

    async def netcheck(self, *, timeout: float = NETCHECK_TIMEOUT_S) -> NetReport:
        """Look at the network now, all regions asked: takes a moment, at most five seconds or twice that.

        TimedOut if no report is made within `timeout` seconds, as before the first relay map.
        """
        house = self._running()
        try:
            async with asyncio.timeout(timeout):
                await self._or_failure(house.reach.check())
        except TimeoutError as error:
            if isinstance(error, MeshError):
                raise
            raise TimedOut(f"no report of the network within {timeout:g} s; is there a relay map yet?") from None
        return house.reach.report

    def network(self) -> NetView:
        """The last report of the network, and what it means for this node; no I/O."""
        from meshnode.node.netview import view_of

        return view_of(self._running())

    def metrics(self) -> str:
        """Everything countable at this moment, in Prometheus' text form; no I/O."""
        from meshnode.node.metrics import render
        from meshnode.node.view import status_of

        house = self._running()
        return render(status_of(house), house.reach.report, house.wiring.transitions)

    @property
    def is_healthy(self) -> bool:
        """Running, with addresses of its own, and control content with it."""
        try:
            return self.status().backend_state == "Running"
        except MeshError:
            return False

    def events(self) -> Subscription:
        """What happens from now on; bounded, a slow reader is told what it missed."""
        return self._broadcast.subscribe()

    # --- inside ---

    def _inside(self) -> Inside:
        house = self._running()
        return Inside(house.engine, house.dialer)

    def _running(self) -> House:
        if self._house is None or self._is_closed:
            raise DialError("this node is not running; use it inside its `async with`")
        if self._failure is not None and self._failure.done() and not self._failure.cancelled():
            raise self._failure.result()
        return self._house

    def on_netmap(self, _: Netmap) -> None:
        """For the wiring: look-ups are built anew when next asked for."""
        self._names = None

    async def _or_failure(self, work: Any) -> None:
        assert self._failure is not None
        async with Scope("ready") as scope:
            waiting = scope.spawn(work, "wait")
            await asyncio.wait({waiting, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                raise self._failure.result()
            waiting.result()


def _usual(network: str = "default") -> str:
    from meshnode.state.file import default_state_dir

    return str(default_state_dir(os.environ, network))


def _address_in(address: str | IP | tuple[Any, ...]) -> IP:
    if isinstance(address, tuple):
        return parse_ip(str(address[0]))
    if not isinstance(address, str):
        return address
    try:
        return parse_ip(address.strip("[]"))
    except ValueError:
        return parse_ip(split_host_port(address)[0])
