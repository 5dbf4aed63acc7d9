"""DISCO: published vectors, every message there and back, and what must pass by in silence."""

from __future__ import annotations

import random

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.errors import LocalProtocolError
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePublic
from meshnode.wire import disco

A, B = DiscoPrivate(bytes(range(0x01, 0x21))), DiscoPrivate(bytes(range(0x21, 0x41)))
TO_B, TO_A = disco.Box(A, A.public(), B.public()), disco.Box(B, B.public(), A.public())
NONCE = bytes(range(0x40, 0x58))
TXID = bytes(range(0x10, 0x1C))
NODE = NodePublic(b"\xaa" * 32)
V4, V6 = Endpoint.parse("192.0.2.7:41641"), Endpoint.parse("[2001:db8::7]:1")
PING = bytes.fromhex(
    "5453f09f92ac07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c404142434445464748494a4b4c4d4e4f50515253545556574720463e"
    "2b45d2f565d9b282c2765d99caff9d55a09beb30d3b4640615f2856274fccce4d033df62701940a984324d7287b4808da7befe6ff0e442624c51"
)
PONG = bytes.fromhex(
    "5453f09f92ac5869aff450549732cbaaed5e5df9b30a6da31cb0e5742bad5ad4a1a768f1a67b404142434445464748494a4b4c4d4e4f50515253545556572ddf8183"
    "fd1a9994c4317950cd6bb48fc9ff9d55a09beb30d3b4640615f22fc8de56664e7a9975c8254c2a032c9f4571"
)
KEYS = tuple(DiscoPublic(bytes([n]) * 32) for n in (1, 2, 3))
BLOCK = disco.RelayBlock(KEYS[0], (KEYS[1], KEYS[2]), 2**64 - 1, 77, 30_000_000_000, -1, (V4, V6))
MESSAGES: list[disco.Message] = [
    disco.Ping(TXID, NODE),
    disco.Ping(TXID, NODE, padding=1236),
    disco.Ping(TXID, None),
    disco.Ping(TXID, None, padding=31),
    disco.Ping(TXID, None, padding=32),
    disco.Pong(TXID, V4),
    disco.Pong(TXID, V6),
    disco.CallMeMaybe(()),
    disco.CallMeMaybe((V4, V6)),
    disco.Bind(disco.BIND, 5, 6, KEYS[0], bytes(32)),
    disco.Bind(disco.BIND_CHALLENGE, 5, 6, KEYS[0], b"\x09" * 32),
    disco.Bind(disco.BIND_ANSWER, 5, 6, KEYS[0], b"\x09" * 32),
    disco.CallMeMaybeVia(BLOCK),
    disco.AllocateRequest((KEYS[1], KEYS[2]), 9),
    disco.AllocateResponse(9, BLOCK),
]
SIZES = {0: 124, 5: 110, 7: 80, 8: 116, 9: 152, 12: 204 + 36, 13: 148, 14: 208 + 36}


def test_vectors() -> None:
    assert TO_B.seal(disco.Ping(TXID, NODE), NONCE) == PING
    assert TO_A.seal(disco.Pong(TXID, V4), NONCE) == PONG
    assert TO_A.open(PING) == disco.Ping(TXID, NODE)
    assert TO_B.open(PONG) == disco.Pong(TXID, V4)
    assert disco.sender_of(PING) == A.public().raw and disco.is_disco(PING)


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_every_message_there_and_back(number: int) -> None:
    message = MESSAGES[number]
    packet = TO_B.seal(message, NONCE)
    assert TO_A.open(packet) == message
    assert len(packet) == SIZES.get(number, len(packet))


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_cut_short_is_nothing_or_a_shorter_message_and_never_an_error(number: int) -> None:
    plain = disco.emit_message(MESSAGES[number])
    for length in range(len(plain)):
        parsed = disco.parse_message(plain[:length])
        assert parsed is None or parsed != MESSAGES[number]


@pytest.mark.parametrize("message", [disco.Pong(TXID, V4), disco.Bind(disco.BIND, 5, 6, KEYS[0], bytes(32))])
def test_extra_bytes_are_the_extension_rule(message: disco.Message) -> None:
    assert disco.parse_message(disco.emit_message(message) + b"more") == message


def test_another_version() -> None:
    pong = disco.emit_message(disco.Pong(TXID, V4))
    assert disco.parse_message(pong[:1] + b"\x01" + pong[2:]) == disco.Pong(TXID, V4)
    call = disco.emit_message(disco.CallMeMaybe((V4,)))
    assert disco.parse_message(call[:1] + b"\x01" + call[2:]) == disco.CallMeMaybe(())
    bind = disco.Bind(disco.BIND_CHALLENGE, 5, 6, KEYS[0], bytes(32))
    assert disco.parse_message(b"\x05\x01" + disco.emit_message(bind)[2:]) == bind
    for message in (disco.CallMeMaybeVia(BLOCK), disco.AllocateRequest(KEYS[:2], 1), disco.AllocateResponse(1, BLOCK)):
        plain = disco.emit_message(message)
        assert disco.parse_message(plain[:1] + b"\x01" + plain[2:]) is None


def test_unknown_types_pass_by() -> None:
    assert disco.parse_message(b"\x63\x00" + bytes(100)) is None


def test_calls_of_odd_length_are_empty_and_long_ones_are_cut() -> None:
    assert disco.parse_message(b"\x03\x00" + bytes(19)) == disco.CallMeMaybe(())
    many = disco.parse_message(disco.emit_message(disco.CallMeMaybe((V4,) * 200)))
    assert isinstance(many, disco.CallMeMaybe) and len(many.endpoints) == 32


def test_altered_or_foreign_packets_are_nothing() -> None:
    for at in range(len(PING)):
        altered = bytearray(PING)
        altered[at] ^= 1
        if at >= disco.NONCE_AT:
            assert TO_A.open(bytes(altered)) is None
    other = DiscoPrivate(bytes(range(0x61, 0x81)))
    assert disco.Box(other, other.public(), A.public()).open(PING) is None
    for length in range(disco.MESSAGE_MIN):
        assert TO_A.open(PING[:length]) is None


def test_a_key_of_low_order_makes_no_box() -> None:
    with pytest.raises(LocalProtocolError):
        disco.Box(A, A.public(), DiscoPublic(bytes(32)))


def test_random_bytes_never_raise() -> None:
    dice = random.Random(1)
    for _ in range(20_000):
        disco.parse_message(bytes([dice.randrange(11)]) + dice.randbytes(dice.randrange(260)))


def test_padding_reaches_the_wire_size() -> None:
    for is_v6, overhead in ((False, 28), (True, 48)):
        for wire in (1200, 1280, 1360):
            ping = disco.Ping(TXID, NODE, disco.ping_padding(wire, is_v6=is_v6))
            assert len(TO_B.seal(ping, NONCE)) + overhead == wire
    assert disco.ping_padding(0, is_v6=False) == 0
