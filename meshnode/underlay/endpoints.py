"""Our candidate addresses: what this machine's interfaces have, best first.

`read_addresses` asks the kernel (netlink; without it, what a UDP socket would send from), `choose` decides
which of them peers may hear, and `local_endpoints` joins both with the engine's ports. Addresses learned
from outside (STUN, port mapping) join here too once there are such.
Source: docs/protocol/paths.md 4.6.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from ipaddress import IPv6Address, IPv6Network
from typing import Final, NamedTuple

from meshnode.base.addr import IP, Endpoint, from_packed, is_tailnet
from meshnode.base.bounds import OWN_ENDPOINTS_MAX

VIRTUAL: Final = ("docker", "br-", "veth", "cni", "cali", "flannel", "virbr", "lxc", "podman", "kube")
"""Bridges and stubs of containers: of use on this host only."""
OTHER_TUNNELS: Final = ("zt", "wt0", "tailscale", "utun")
VIRTUAL_MAX: Final = 4
PER_V6_SUBNET_MAX: Final = 2
"""Temporary addresses would fill the list."""
ULA: Final = IPv6Network("fc00::/7")

_RTM_GETLINK: Final = 18
_RTM_GETADDR: Final = 22
_NLM_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_IFF_UP: Final = 1
_IFLA_IFNAME: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_UNUSABLE: Final = 0x08 | 0x20
"""Duplicate found, or deprecated."""
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_RECEIVE: Final = 64 * 1024


class Address(NamedTuple):
    """One address of one interface that is up."""

    ip: IP
    interface: str


def local_endpoints(port4: int, port6: int, *, loopback_ok: bool = False) -> list[Endpoint]:
    """What to tell peers, best first. A port of 0 leaves its family out. loopback_ok: 127.0.0.1 and ::1 too."""
    ports = {4: port4, 6: port6}
    chosen = choose(read_addresses(), loopback_ok=loopback_ok)
    return [Endpoint(ip, ports[ip.version]) for ip in chosen if ports[ip.version]][:OWN_ENDPOINTS_MAX]


def choose(addresses: Iterable[Address], *, loopback_ok: bool) -> list[IP]:
    """Which addresses peers should hear, in which order. Loopback only if asked for, or if there is nothing else."""
    real: list[IP] = []
    virtual: list[IP] = []
    loopback: list[IP] = []
    fallback: list[IP] = []
    for ip, interface in addresses:
        if interface.startswith(OTHER_TUNNELS) or is_tailnet(ip) or ip.is_multicast or ip.is_unspecified:
            continue
        if ip.is_loopback:
            loopback.append(ip)
        elif ip.is_link_local:
            if ip.version == 4:
                fallback.append(ip)
        elif interface.startswith(VIRTUAL):
            virtual.append(ip)
        else:
            real.append(ip)
    real = _thin_v6(real)
    out = real + virtual[:VIRTUAL_MAX] or fallback
    if loopback_ok or not out:
        out = out + loopback
    return list(dict.fromkeys(out))


def _thin_v6(ips: list[IP]) -> list[IP]:
    """At most two per IPv6 subnet; unique-local ones only without a global one."""
    has_global = any(ip.version == 6 and ip not in ULA for ip in ips)
    seen: dict[bytes, int] = {}
    out: list[IP] = []
    for ip in ips:
        if isinstance(ip, IPv6Address):
            subnet = ip.packed[:8]
            seen[subnet] = seen.get(subnet, 0) + 1
            if seen[subnet] > PER_V6_SUBNET_MAX or (has_global and ip in ULA):
                continue
        out.append(ip)
    return out


def read_addresses() -> list[Address]:
    """Every address of every interface that is up."""
    if hasattr(socket, "AF_NETLINK"):
        with suppress(OSError):
            return _read_netlink()
    return _read_by_route()


def _read_netlink() -> list[Address]:
    names = {index: name for index, flags, name in _links() if flags & _IFF_UP}
    found: list[Address] = []
    for body in _dump(_RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        _, _, flags, _, index = _IFADDR.unpack_from(body)
        attributes = dict(_attributes(body[_IFADDR.size :]))
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
        if index in names and len(raw) in (4, 16) and not flags & _IFA_UNUSABLE:
            found.append(Address(from_packed(raw), names[index]))
    return found


def _links() -> Iterator[tuple[int, int, str]]:
    for body in _dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
        _, _, index, flags, _ = _IFINFO.unpack_from(body)
        name = dict(_attributes(body[_IFINFO.size :])).get(_IFLA_IFNAME, b"")
        yield index, flags, name.rstrip(b"\0").decode("ascii", "replace")


def _dump(kind: int, request: bytes) -> Iterator[bytes]:
    """The bodies of a netlink dump. OSError if the kernel refuses."""
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) as sock:
        sock.settimeout(1.0)
        sock.send(_HEADER.pack(_HEADER.size + len(request), kind, _NLM_REQUEST_DUMP, 1, 0) + request)
        while True:
            data = sock.recv(_RECEIVE)
            while len(data) >= _HEADER.size:
                length, answer, _, _, _ = _HEADER.unpack_from(data)
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR or length < _HEADER.size:
                    raise OSError("netlink refused to list addresses")
                yield data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _read_by_route() -> list[Address]:
    """Without netlink: the addresses packets to the world would leave from. No packet is sent."""
    found: list[Address] = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.connect((target, 9))
            found.append(Address(from_packed(socket.inet_pton(family, sock.getsockname()[0])), "default"))
    return found or [Address(from_packed(b"\x7f\0\0\1"), "lo")]
