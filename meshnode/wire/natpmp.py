"""NAT-PMP: the messages between a client and its gateway's UDP port 5351.

Source: RFC 6886; docs/protocol/paths.md 5.1.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.cursor import Reader, Writer

PORT: Final = 5351
VERSION: Final = 0
_EXTERNAL: Final = 0
_MAP_UDP: Final = 1
_REPLY: Final = 0x80


class Result(IntEnum):
    """What a gateway says to a request; other numbers are possible."""

    OK = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


class ExternalReply(NamedTuple):
    """The gateway's own address."""

    epoch: int
    """Seconds since the gateway's table of mappings was made."""
    ip: IPv4Address


class MapReply(NamedTuple):
    """A mapping was made, renewed, or (lifetime 0) deleted."""

    epoch: int
    internal_port: int
    external_port: int
    lifetime: int
    """Seconds."""


class Refusal(NamedTuple):
    """A request was refused; which one is not always said."""

    epoch: int
    result: int


Reply = ExternalReply | MapReply | Refusal


def emit_external_request() -> bytes:
    """Ask for the gateway's own address."""
    return bytes((VERSION, _EXTERNAL))


def emit_map_request(internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Ask for a UDP mapping of so many seconds. external_port: a wish, 0 = any. Lifetime 0 deletes."""
    out = Writer().u8(VERSION).u8(_MAP_UDP).u16(0)
    return out.u16(internal_port).u16(external_port).u32(lifetime).done()


def parse_reply(data: bytes) -> Reply:
    """Read what came from the gateway. RemoteProtocolError for anything else."""
    reader = Reader(data)
    version, opcode, result, epoch = reader.u8(), reader.u8(), reader.u16(), reader.u32()
    if version != VERSION:
        raise RemoteProtocolError(f"NAT-PMP of version {version}")
    if opcode < _REPLY:
        raise RemoteProtocolError(f"NAT-PMP request {opcode} where a reply was due")
    if result != Result.OK:
        return Refusal(epoch, result)
    if opcode == _REPLY | _EXTERNAL:
        return ExternalReply(epoch, IPv4Address(reader.take(4)))
    if opcode == _REPLY | _MAP_UDP:
        return MapReply(epoch, reader.u16(), reader.u16(), reader.u32())
    raise RemoteProtocolError(f"NAT-PMP reply to unknown request {opcode - _REPLY}")
