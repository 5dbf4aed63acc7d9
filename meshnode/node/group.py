"""Group: the networks of one process, a tailnet or none and any number of plain WireGuard ones.

It decides which of them a target belongs to. `HOST.NETWORK` names a network, as `10.0.0.2.office` or, for IPv6 with
hyphens for colons, `fd00--2.office`. A name without one is the tailnet's. An address alone goes to the network whose
range around it is the longest; if several have equal ones it is nobody's, and the error lists them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from meshnode.base.addr import IP, parse_ip
from meshnode.base.errors import ConfigError, DialError, EngineError, MeshError, NameNotFound
from meshnode.run.scope import Scope
from meshnode.tunnel.network import CONNECT_TIMEOUT_S, PING_TIMEOUT_S, Network

if TYPE_CHECKING:
    from meshnode.core.report import NetReport
    from meshnode.engine.flow import TunnelSocket
    from meshnode.node.netview import NetView
    from meshnode.node.node import Node
    from meshnode.node.wgnet import WireGuardNetwork
    from meshnode.tunnel.streams import TunnelWriter


class Target(NamedTuple):
    """A network, and the host as that network calls it."""

    network: Network
    host: str


class EchoAnswer(NamedTuple):
    """A ping in a plain network, in the words of `Pong`."""

    network: str
    ip: IP
    latency_s: float

    def to_json(self) -> dict[str, Any]:
        """As Pong.to_json."""
        return {
            "IP": str(self.ip), "NodeIP": str(self.ip), "NodeName": self.network, "Err": "",
            "LatencySeconds": self.latency_s, "Endpoint": "", "DERPRegionID": 0, "DERPRegionCode": "",
            "IsLocalIP": False, "Kind": "icmp",
        }  # fmt: skip


class GroupStatus(NamedTuple):
    """Every network at one moment."""

    tailnet: Mapping[str, Any] | None
    networks: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object `meshnode status --json` prints."""
        if self.tailnet is not None:
            return {**self.tailnet, "Networks": dict(self.networks)}
        from meshnode import __version__

        return {"Version": __version__, "BackendState": "Running", "Reason": "", "Self": None, "Peer": {}, "Health": [],
                "Networks": dict(self.networks)}  # fmt: skip


class Group:
    """The networks of one process. Enter it to start them, leave it to stop them."""

    def __init__(self, node: Node | None, plain: Sequence[WireGuardNetwork]) -> None:
        """node: the tailnet's, if there is one. Names of plain networks are all different."""
        self.node = node
        self.plain = {network.name: network for network in plain}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self.node is not None:
                self.node.group = self
                await stack.enter_async_context(self.node)
            for network in self.plain.values():
                network.group = self
                await stack.enter_async_context(network)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ready(self, timeout: float | None) -> None:
        """Wait for the tailnet; plain networks are ready from the start. Raises as Node.ready."""
        if self.node is not None:
            await self.node.ready(timeout=timeout)

    async def wait_failed(self) -> MeshError:
        """Wait for what ends the process: a refusal by control, or a bug of ours."""
        async with Scope("failures") as scope:
            waits: list[Any] = [scope.spawn(network.wait_failed(), name) for name, network in self.plain.items()]
            if self.node is not None:
                waits.append(scope.spawn(self.node.wait_failed(), "node"))
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            error: BaseException = done.pop().result()
        if isinstance(error, MeshError):
            return error
        failure = EngineError(f"a part of a network failed: {type(error).__name__}: {error}; please report this")
        failure.__cause__ = error
        return failure

    # --- which network ---

    def leads_to(self, host: str) -> bool:
        """Whether the host names one of the plain networks: HOST.NETWORK."""
        return self._named(host) is not None

    def _named(self, host: str) -> Target | None:
        inner, dot, name = host.rstrip(".").rpartition(".")
        network = next((n for known, n in self.plain.items() if known.lower() == name.lower()), None)
        if not dot or network is None:
            return None
        if "-" in inner and "." not in inner:
            inner = inner.replace("-", ":")
        try:
            return Target(network, str(parse_ip(inner)))
        except ValueError:
            return None

    def target(self, host: str) -> Target:
        """Where a host is. NameNotFound: nowhere, or in several networks."""
        named = self._named(host)
        if named is not None:
            return named
        try:
            ip = parse_ip(host.strip("[]"))
        except ValueError:
            if self.node is not None:
                return Target(self.node, host)
            names = ", ".join(self.plain)
            raise NameNotFound(f"{host}: there are no names in {names}; use an address, or ADDRESS.NETWORK") from None
        return self._by_address(ip, host)

    def _by_address(self, ip: IP, host: str) -> Target:
        found = [(range_.prefixlen, name) for name, network in self.plain.items() if (range_ := network.route(ip))]
        if self._is_tailnet(ip):
            found.append((ip_network(ip).prefixlen, ""))
        if not found:
            if self.node is not None:
                return Target(self.node, host)  # which says it best
            raise NameNotFound(f"{ip} is in no peer's AllowedIPs of {', '.join(self.plain)}")
        longest = max(found)[0]
        names = [name for length, name in found if length == longest]
        if len(names) > 1:
            ways = " or ".join(f"{str(ip).replace(':', '-')}.{name}" for name in names if name)
            tailnet = " and the tailnet" if "" in names else ""
            where = ", ".join(name for name in names if name)
            raise NameNotFound(f"{ip} is in several networks ({where}{tailnet}); say which: {ways}")
        return Target(self.plain[names[0]] if names[0] else self._tailnet(), str(ip))

    def _is_tailnet(self, ip: IP) -> bool:
        return self.node is not None and self.node.netmap is not None and self.node.names().owner(ip) is not None

    def _tailnet(self) -> Node:
        if self.node is None:
            raise DialError("there is no tailnet here, only plain WireGuard networks")
        return self.node

    # --- what doors and commands ask, as of a Node ---

    async def connect(self, host: str | IP, port: int, *, timeout: float | None = CONNECT_TIMEOUT_S) -> TunnelSocket:
        """A connected TunnelSocket in whichever network the host is. DialError says why not."""
        network, inner = self.target(str(host))
        return await network.connect(inner, port, timeout=timeout)

    async def open_connection(
        self, host: str, port: int, *, timeout: float | None = CONNECT_TIMEOUT_S
    ) -> tuple[asyncio.StreamReader, TunnelWriter]:
        """As Node.open_connection."""
        network, inner = self.target(host)
        return await network.open_connection(inner, port, timeout=timeout)

    async def ping(
        self, host: str, *, timeout: float = PING_TIMEOUT_S, kind: str = "disco", size: int | None = None
    ) -> Any:
        """A Pong of the tailnet, or an ICMP echo in a plain network."""
        network, inner = self.target(host)
        if network is self.node:
            return await self._tailnet().ping(inner, timeout=timeout, kind=kind, size=size)
        plain = next(n for n in self.plain.values() if n is network)
        return EchoAnswer(plain.name, *await plain.ping(inner, timeout=timeout, size=56 if size is None else size))

    def resolve(self, host: str) -> tuple[IP, ...]:
        """Addresses of a name. NameNotFound."""
        network, inner = self.target(host)
        return network.resolve(inner)

    def whois(self, address: str) -> Any:
        """Who a tailnet address belongs to; plain networks know nobody."""
        return self.node.whois(address) if self.node is not None else None

    def status(self) -> GroupStatus:
        """Every network at this moment; no I/O."""
        tailnet = self.node.status().to_json() if self.node is not None else None
        return GroupStatus(tailnet, {name: network.status().to_json() for name, network in self.plain.items()})

    async def netcheck(self, *, timeout: float) -> NetReport:
        """As Node.netcheck."""
        return await self._only_tailnet("netcheck").netcheck(timeout=timeout)

    def network(self) -> NetView:
        """As Node.network."""
        return self._only_tailnet("netcheck").network()

    def metrics(self) -> str:
        """As Node.metrics; plain networks have no page of their own."""
        return self._only_tailnet("metrics").metrics()

    @property
    def is_healthy(self) -> bool:
        """As Node.is_healthy; without a tailnet there is nothing that could be ill."""
        return self.node is None or self.node.is_healthy

    def set_paths(self, paths: str) -> None:
        """As Node.set_paths."""
        self._only_tailnet("paths").set_paths(paths)

    @property
    def paths(self) -> str:
        """As Node.paths."""
        return self._only_tailnet("paths").paths

    async def logout(self) -> None:
        """As Node.logout."""
        await self._only_tailnet("logout").logout()

    @property
    def state_dir(self) -> str:
        """The tailnet node's; '' for none."""
        return self.node.state_dir if self.node is not None else ""

    def _only_tailnet(self, what: str) -> Node:
        if self.node is None:
            raise ConfigError(f"{what}: only a tailnet has it, and there is none here")
        return self.node
