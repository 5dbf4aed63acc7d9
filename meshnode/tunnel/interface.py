"""Interface: the kernel interface of an engine: opened, addressed, its routes kept in step with the peers.

Each peer's own addresses are routed, not the whole range: a machine whose provider uses 100.64.0.0/10 keeps its
gateway, and the tunnel's own UDP packets never lead into the tunnel, since no peer's endpoint is a tailnet address.
Nothing is taken down at the end: address and routes vanish with the interface, and that with the engine, be it killed.
Source: docs/protocol/dataplane.md 8.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from meshnode.base.addr import IP, Prefix
from meshnode.base.errors import ConfigError
from meshnode.run.log import get_logger
from meshnode.tunnel import netlink
from meshnode.tunnel.netlink import Message

_log = get_logger("tun")

DISABLE_TCP: Final = "disable-tun-tcp-gro"
DISABLE_UDP: Final = "disable-tun-udp-gro"
"""Node attributes by which a tailnet's owner turns the interface's offloads off."""
UDP_MAX: Final = 65507
SEALING: Final = 32
"""What WireGuard adds to a packet. A super-packet of no more pieces than fit one UDP send leaves as one; where the
kernel does not take the bound, as two."""
WITHOUT: Final = "a node needs no interface otherwise: leave --tun out"
Run = Callable[[Sequence[Message]], list[int]]


class TunEngine(Protocol):
    """What an interface needs of its engine."""

    def open_tun(self, name: str = "", *, fd: int = -1) -> str: ...
    def set_tun_merge(self, *, tcp: bool, udp: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """What an interface should have: its addresses, and (prefix, source address) of its routes."""

    addresses: tuple[IP, ...] = ()
    routes: frozenset[tuple[Prefix, IP]] = frozenset()


def merging(attributes: Container[str]) -> tuple[bool, bool]:
    """(TCP, UDP): whether packets for the interface may be merged; attributes: names in the node's own CapMap."""
    return DISABLE_TCP not in attributes, DISABLE_UDP not in attributes


def layout_of(addresses: Iterable[IP], prefixes: Iterable[Prefix]) -> Layout:
    """Each prefix by the first of our addresses of its family; those of a family we have not are left out."""
    own = tuple(addresses)
    sources = {ip.version: ip for ip in reversed(own)}
    return Layout(own, frozenset((p, sources[p.version]) for p in prefixes if p.version in sources))


@dataclass(frozen=True, slots=True)
class Step:
    """One change, and what to call it if the kernel refuses."""

    what: str
    is_add: bool
    version: int
    message: Message


def steps(index: int, before: Layout, after: Layout) -> list[Step]:
    """From one layout to the next, in an order that the kernel accepts: an address outlives the routes that use it."""
    found: list[Step] = []

    def address(ip: IP, add: bool) -> None:
        found.append(Step(f"address {ip}", add, ip.version, netlink.address(index, ip, add=add)))

    def route(prefix: Prefix, source: IP, add: bool) -> None:
        found.append(Step(f"route to {prefix}", add, prefix.version, netlink.route(index, prefix, source, add=add)))

    for prefix, source in sorted(before.routes - after.routes, key=str):
        route(prefix, source, False)
    for ip in after.addresses:
        if ip not in before.addresses:
            address(ip, True)
    for prefix, source in sorted(after.routes - before.routes, key=str):
        route(prefix, source, True)
    for ip in before.addresses:
        if ip not in after.addresses:
            address(ip, False)
    return found


class Interface:
    """One kernel interface. `open` makes it; it ends with its engine."""

    def __init__(self, name: str, index: int, run: Run = netlink.run) -> None:
        self.name = name
        self._index = index
        self._run = run
        self._layout = Layout()
        self._has_v6 = True

    @classmethod
    def open(cls, engine: TunEngine, name: str, mtu: int, *, run: Run = netlink.run) -> Interface:
        """Make it and bring it up, without addresses yet. ConfigError says what stands in the way."""
        try:
            actual = engine.open_tun(name)
        except ValueError:
            raise ConfigError(f"tun: {name!r} is no name for an interface") from None
        except OSError as error:
            raise ConfigError(_why_not(name, error)) from None
        try:
            index = socket.if_nametoindex(actual)
            number, _ = run([netlink.link_up(index, mtu), netlink.super_packets(index, UDP_MAX // (mtu + SEALING))])
        except OSError as error:
            number = error.errno or errno.EIO
        if number:
            raise ConfigError(f"tun: interface {actual} cannot be brought up: {os.strerror(number).lower()}")
        _log.info("interface up", name=actual, mtu=mtu)
        return cls(actual, index, run)

    def apply(self, layout: Layout) -> None:
        """Make the kernel agree. What it refuses is logged, and is not tried again until it changes."""
        wanted = [s for s in steps(self._index, self._layout, layout) if self._has_v6 or s.version == 4]
        self._layout = layout
        try:
            results = self._run([step.message for step in wanted])
        except OSError as error:
            _log.warning("interface not set up", name=self.name, error=(error.strerror or str(error)).lower())
            return
        for step, number in zip(wanted, results, strict=True):
            if number and step.is_add and (self._has_v6 or step.version == 4):
                self._complain(step, number)

    def _complain(self, step: Step, number: int) -> None:
        if step.version == 6 and step.what.startswith("address"):
            self._has_v6 = False
            _log.warning("no IPv6 on the interface; is it disabled on this machine?", name=self.name)
            return
        reason = "another interface has it" if number == errno.EEXIST else os.strerror(number).lower()
        _log.warning(f"no {step.what}", name=self.name, error=reason)


def _why_not(name: str, error: OSError) -> str:
    reason = os.strerror(error.errno or 0).lower()
    if error.filename == "/dev/net/tun":
        tip = "load the module (modprobe tun), or give the container the device (--device /dev/net/tun)"
        return f"tun: /dev/net/tun cannot be opened: {reason}; {tip}; {WITHOUT}"
    if error.errno in (errno.EPERM, errno.EACCES):
        tip = "run as root, or give the container --cap-add NET_ADMIN"
        return f"tun: interface {name} cannot be made: CAP_NET_ADMIN is missing; {tip}; {WITHOUT}"
    if error.errno == errno.EBUSY:
        return f"tun: interface {name} cannot be made: there is one of that name; choose another"
    return f"tun: interface {name} cannot be made: {reason}"
