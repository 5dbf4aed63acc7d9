"""STUN: the published vector, what servers answer, what must not pass for STUN."""

from __future__ import annotations

import random
from zlib import crc32

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.errors import RemoteProtocolError
from meshnode.wire import stun

TXID = bytes(range(1, 13))
REQUEST = bytes.fromhex("000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f")
RESPONSE = bytes.fromhex("0101000c2112a4420102030405060708090a0b0c002000080001e242ea12d547")
SEEN = Endpoint.parse("203.0.113.5:50000")


def message(attributes: bytes, kind: int = 0x0101) -> bytes:
    return kind.to_bytes(2, "big") + len(attributes).to_bytes(2, "big") + stun.COOKIE + TXID + attributes


def test_vector_both_ways() -> None:
    assert stun.emit_request(TXID) == REQUEST and stun.parse_request(REQUEST) == TXID
    assert stun.emit_response(TXID, SEEN) == RESPONSE and stun.parse_response(RESPONSE) == (TXID, SEEN)


def test_v6_there_and_back() -> None:
    seen = Endpoint.parse("[2001:db8::5]:65535")
    assert len(stun.emit_response(TXID, seen)) == 44
    assert stun.parse_response(stun.emit_response(TXID, seen)) == (TXID, seen)


def test_what_other_servers_answer() -> None:
    xor = RESPONSE[20:]
    plain = bytes.fromhex("000100080001c350cb007105")
    padded = b"\x80\x22\x00\x03abc\x00"
    assert stun.parse_response(message(b"\x80\x20" + xor[2:])) == (TXID, SEEN)
    assert stun.parse_response(message(plain)) == (TXID, SEEN)
    assert stun.parse_response(message(plain + xor))[1] == SEEN
    assert stun.parse_response(message(padded + xor))[1] == SEEN
    assert stun.parse_response(RESPONSE + b"trailing")[1] == SEEN


@pytest.mark.parametrize(
    "data",
    [
        message(RESPONSE[20:], 0x0111),
        message(b""),
        message(b"\x80\x22\x00\x04abcd"),
        message(b"\x00\x20\x00\x08\x00\x03\x00\x00abcd"),
        RESPONSE[:-1],
        RESPONSE[:19],
        b"",
    ],
)
def test_no_answer_of_use(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        stun.parse_response(data)


def test_requests_we_stay_silent_to() -> None:
    head = REQUEST[:20]
    without_software = head[:2] + b"\x00\x08" + head[4:]
    fingerprint = (crc32(without_software) ^ 0x5354554E).to_bytes(4, "big")
    for data in (
        without_software + b"\x80\x28\x00\x04" + fingerprint,
        REQUEST[:-1] + bytes([REQUEST[-1] ^ 1]),
        REQUEST.replace(b"tailnode", b"othernod"),
        REQUEST[:2] + b"\x00\x1c" + REQUEST[4:] + b"\x80\x23\x00\x04abcd",
    ):
        with pytest.raises(RemoteProtocolError):
            stun.parse_request(data)


def test_wireguard_and_disco_are_not_stun() -> None:
    for kind in (1, 2, 3, 4):
        assert not stun.is_stun(bytes([kind, 0, 0, 0]) + stun.COOKIE + bytes(140))
    assert not stun.is_stun(b"TS\xf0\x9f\x92\xac" + bytes(80))
    assert stun.is_stun(RESPONSE)


def test_random_bytes_raise_one_kind_of_error() -> None:
    dice = random.Random(3)
    for _ in range(20_000):
        data = bytearray(dice.choice((REQUEST, RESPONSE)))
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        for parse in (stun.parse_request, stun.parse_response):
            try:
                parse(bytes(data[: dice.randrange(len(data) + 1)]))
            except RemoteProtocolError:
                continue
