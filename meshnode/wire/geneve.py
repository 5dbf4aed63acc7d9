"""Geneve (RFC 8926) as peer relays use it: eight bytes before a DISCO packet that name a leg of the relay.

The engine does the same for WireGuard; what arrives here is DISCO, with the header still before it. Every bit that
peer relays do not use must be zero: a header that says more is none of ours.
Source: docs/protocol/paths.md 6.9.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HEADER_LEN: Final = 8
VNI_MAX: Final = (1 << 24) - 1
_DISCO: Final = b"\x7a\x11"
_CONTROL: Final = 0x80


class Relayed(NamedTuple):
    """A DISCO packet that came by a peer relay."""

    vni: int
    is_control: bool
    """Between the relay itself and us; else between a peer and us, through the relay."""
    packet: bytes


def is_geneve(data: bytes) -> bool:
    """Whether a DISCO datagram of the engine has a header before it."""
    return data[2:4] == _DISCO


def parse(data: bytes) -> Relayed | None:
    """What the datagram carries; None if its header is not one of a peer relay with DISCO behind it."""
    if len(data) < HEADER_LEN or data[0] != 0 or data[1] & ~_CONTROL or data[2:4] != _DISCO or data[7] != 0:
        return None
    vni = int.from_bytes(data[4:7], "big")
    return Relayed(vni, bool(data[1]), data[HEADER_LEN:]) if vni else None


def emit(relayed: Relayed) -> bytes:
    """The datagram; 1 <= vni <= VNI_MAX."""
    flags = _CONTROL if relayed.is_control else 0
    return bytes((0, flags)) + _DISCO + relayed.vni.to_bytes(3, "big") + b"\0" + relayed.packet
