"""STUN: binding request and response, as this network's relays want them.

Relays answer only a request that carries SOFTWARE "tailnode" and ends with a right FINGERPRINT, so that is
the request we emit; any other STUN server takes it too.
Source: docs/protocol/paths.md 3; RFC 5389.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from meshnode.base.addr import IP, Endpoint, from_packed
from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.cursor import Reader, Writer

COOKIE: Final = b"\x21\x12\xa4\x42"
TXID_LEN: Final = 12
HEADER_LEN: Final = 20
SOFTWARE: Final = b"tailnode"
_BINDING_REQUEST: Final = 0x0001
_BINDING_SUCCESS: Final = 0x0101
_MAPPED: Final = 0x0001
_XOR_MAPPED: Final = (0x0020, 0x8020)
"""The attribute and its number in the draft that old servers use."""
_SOFTWARE: Final = 0x8022
_FINGERPRINT: Final = 0x8028
_FINGERPRINT_LEN: Final = 8
_FINGERPRINT_XOR: Final = 0x5354554E
_FAMILY_LEN: Final = {1: 4, 2: 16}


def is_stun(data: bytes) -> bool:
    """Whether a datagram is STUN; WireGuard and DISCO never look like it."""
    return len(data) >= HEADER_LEN and data[0] & 0xC0 == 0 and data[1] == 1 and data[4:8] == COOKIE


def emit_request(txid: bytes) -> bytes:
    """The 40 bytes of a binding request."""
    head = Writer().u16(_BINDING_REQUEST).u16(20).raw(COOKIE).raw(txid)
    head.u16(_SOFTWARE).u16(len(SOFTWARE)).raw(SOFTWARE)
    fingerprint = crc32(head.done()) ^ _FINGERPRINT_XOR
    return head.u16(_FINGERPRINT).u16(4).u32(fingerprint).done()


def parse_request(data: bytes) -> bytes:
    """The txid of a binding request of ours. RemoteProtocolError if it is another's or damaged."""
    attributes, txid = _split(data, _BINDING_REQUEST)
    software = next((value for kind, value in attributes if kind == _SOFTWARE), b"")
    if software != SOFTWARE:
        raise RemoteProtocolError("a STUN request of another kind of client")
    if attributes[-1][0] != _FINGERPRINT or len(attributes[-1][1]) != 4:
        raise RemoteProtocolError("a STUN request that does not end with its fingerprint")
    end = HEADER_LEN + int.from_bytes(data[2:4], "big") - _FINGERPRINT_LEN
    if int.from_bytes(attributes[-1][1], "big") != crc32(data[:end]) ^ _FINGERPRINT_XOR:
        raise RemoteProtocolError("a STUN request with a wrong fingerprint")
    return txid


def emit_response(txid: bytes, source: Endpoint) -> bytes:
    """The answer: where the request came from."""
    packed = source.ip.packed
    body = Writer().u16(_XOR_MAPPED[0]).u16(4 + len(packed)).u16(1 if len(packed) == 4 else 2)
    body.u16(source.port ^ 0x2112).raw(_mask(packed, txid))
    attribute = body.done()
    return Writer().u16(_BINDING_SUCCESS).u16(len(attribute)).raw(COOKIE).raw(txid).raw(attribute).done()


def parse_response(data: bytes) -> tuple[bytes, Endpoint]:
    """(txid, our address as the server saw it). RemoteProtocolError on anything but a success with one."""
    attributes, txid = _split(data, _BINDING_SUCCESS)
    plain: Endpoint | None = None
    for kind, value in attributes:
        if kind in _XOR_MAPPED:
            return txid, _parse_address(value, txid, masked=True)
        if kind == _MAPPED and plain is None:
            plain = _parse_address(value, txid, masked=False)
    if plain is None:
        raise RemoteProtocolError("a STUN answer without an address")
    return txid, plain


def _split(data: bytes, wanted: int) -> tuple[list[tuple[int, bytes]], bytes]:
    if not is_stun(data):
        raise RemoteProtocolError("not a STUN message")
    reader = Reader(data)
    kind, length = reader.u16(), reader.u16()
    if kind != wanted:
        raise RemoteProtocolError(f"STUN message of type {kind:#06x}, expected {wanted:#06x}")
    reader.skip(4)
    txid = reader.take(TXID_LEN)
    body = Reader(reader.take(length))
    attributes: list[tuple[int, bytes]] = []
    while body.remaining >= 4:
        number, size = body.u16(), body.u16()
        attributes.append((number, body.take(size)))
        body.skip(min(-size % 4, body.remaining))
    if not attributes:
        raise RemoteProtocolError("a STUN message without attributes")
    return attributes, txid


def _parse_address(value: bytes, txid: bytes, *, masked: bool) -> Endpoint:
    reader = Reader(value)
    reader.skip(1)
    family, port = reader.u8(), reader.u16()
    if family not in _FAMILY_LEN:
        raise RemoteProtocolError(f"STUN address of unknown family {family}")
    packed = reader.take(_FAMILY_LEN[family])
    ip: IP = from_packed(_mask(packed, txid) if masked else packed)
    return Endpoint(ip, port ^ 0x2112 if masked else port)


def _mask(packed: bytes, txid: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(packed, COOKIE + txid, strict=False))
