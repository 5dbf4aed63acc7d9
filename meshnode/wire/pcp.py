"""PCP, the Port Control Protocol: announce and map between a client and its gateway's UDP port 5351.

Source: RFC 6887; docs/protocol/paths.md 5.2.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from meshnode.base.addr import IP, from_packed
from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.cursor import Reader, Writer

VERSION: Final = 2
NONCE_LEN: Final = 12
_ANNOUNCE: Final = 0
_MAP: Final = 1
_REPLY: Final = 0x80
_UDP: Final = 17


class Result(IntEnum):
    """What a gateway says to a request, as far as we tell them apart."""

    OK = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    ADDRESS_MISMATCH = 12
    """Another NAT stands between us and the gateway."""


class AnnounceReply(NamedTuple):
    """The gateway speaks PCP."""

    epoch: int
    """Seconds since the gateway's table of mappings was made."""


class MapReply(NamedTuple):
    """A mapping was made, renewed, or (lifetime 0) deleted."""

    epoch: int
    nonce: bytes
    internal_port: int
    external_port: int
    external_ip: IP
    lifetime: int
    """Seconds."""


class Refusal(NamedTuple):
    """A request was refused."""

    epoch: int
    is_map: bool
    result: int
    lifetime: int
    """Seconds for which asking again is useless."""


Reply = AnnounceReply | MapReply | Refusal


def emit_announce(client: IPv4Address) -> bytes:
    """Ask whether PCP is spoken. client: our address towards the gateway."""
    return _header(_ANNOUNCE, client, 0).done()


def emit_map_request(client: IPv4Address, nonce: bytes, internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Ask for a UDP mapping of so many seconds. external_port: a wish, 0 = any. Lifetime 0 deletes.

    nonce: 12 random bytes, the same for as long as the mapping is to live.
    """
    out = _header(_MAP, client, lifetime).raw(nonce).u8(_UDP).raw(bytes(3))
    return out.u16(internal_port).u16(external_port).raw(_mapped(IPv4Address(0))).done()


def _header(opcode: int, client: IPv4Address, lifetime: int) -> Writer:
    return Writer().u8(VERSION).u8(opcode).u16(0).u32(lifetime).raw(_mapped(client))


def _mapped(ip: IPv4Address) -> bytes:
    return IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed).packed


def parse_reply(data: bytes) -> Reply:
    """Read what came from the gateway. RemoteProtocolError for anything else."""
    reader = Reader(data)
    version, opcode = reader.u8(), reader.u8()
    if version != VERSION:
        raise RemoteProtocolError(f"PCP of version {version}")
    if opcode not in (_REPLY | _ANNOUNCE, _REPLY | _MAP):
        raise RemoteProtocolError(f"PCP message {opcode} where a reply was due")
    reader.skip(1)
    result, lifetime, epoch = reader.u8(), reader.u32(), reader.u32()
    reader.skip(12)
    if result != Result.OK:
        return Refusal(epoch, opcode == _REPLY | _MAP, result, lifetime)
    if opcode == _REPLY | _ANNOUNCE:
        return AnnounceReply(epoch)
    nonce, protocol = reader.take(NONCE_LEN), reader.u8()
    reader.skip(3)
    if protocol != _UDP:
        raise RemoteProtocolError(f"PCP mapping of protocol {protocol}, asked for UDP")
    internal, external = reader.u16(), reader.u16()
    return MapReply(epoch, nonce, internal, external, from_packed(reader.take(16)), lifetime)
