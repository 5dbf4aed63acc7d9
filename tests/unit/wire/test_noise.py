"""Noise IK and its records: the published vector byte for byte, then everything that must fail.

The vector is control.md 2.10: raw keys, version 131.
"""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from meshnode.base.bounds import EARLY_PAYLOAD_MAX, NOISE_FRAME_MAX
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.base.keys import MachinePrivate, MachinePublic
from meshnode.wire import control
from meshnode.wire.control import PLAINTEXT_MAX, Channel, ClientChannel, accept, emit_early, emit_error
from meshnode.wire.noise import COUNTER_MAX, Cipher, HandshakeError

MACHINE = MachinePrivate(b"\x11" * 32)
SERVER = MachinePrivate(b"\x33" * 32)
VERSION = 131
INITIATION = (
    "0083010060"
    "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
    "61d2949213e755bc180b5d5dbbd8c50a2a1beb69f8940d24cab4606a34cd5d41523e6e9bf464aa974fa88baecff39ced"
    "f60c43d0c99f6a17b47ef64710478ecf"
)
HEADER = (
    "AIMBAGAPqmhO0ohnuX9Kai3uXfjOl052twGOPyKhxM8meFcPIGHSlJIT51W8GAtdXbvYxQoqG+tp+JQNJMq0YGo0zV1BUj5um/RkqpdPqIuuz"
    "/Oc7fYMQ9DJn2oXtH72RxBHjs8="
)
RESPONSE = "020030ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b6d0dea813ed35e51c463a44eecb1deca"
TRANSCRIPT = "a89a6406c8f712846e73cd0cc214368aaf2addc744586658756f5297688b62ff"
RECORDS = {
    0: "0400153eb7c70f517b459ce906fe831d0a1cc7d9d8bf3725",
    1: "04001506247a9f9b8d4f68a2fe2e148d0b8612cfd0d21146",
    256: "04001542e59d2189721d0e3fa6a58a66b6d14504fb3c392e",
}


def client() -> ClientChannel:
    return ClientChannel(MACHINE, SERVER.public(), VERSION, lambda n: b"\x22" * n)


def pair() -> tuple[ClientChannel, Channel, bytes]:
    """(client, server, the server's answer, not yet given to the client)."""
    ours = client()
    _, _, answer, theirs = accept(ours.initiation, SERVER, lambda n: b"\x44" * n)
    return ours, theirs, answer


def opened() -> tuple[ClientChannel, Channel]:
    ours, theirs, answer = pair()
    assert ours.receive(answer) == b""
    return ours, theirs


def test_vector_handshake() -> None:
    ours, theirs, answer = pair()
    assert ours.initiation.hex() == INITIATION
    assert ours.header_value == HEADER
    assert control.parse_handshake_header(HEADER).hex() == INITIATION
    assert answer.hex() == RESPONSE
    ours.receive(answer)
    assert ours.transcript.hex() == theirs.transcript.hex() == TRANSCRIPT


def test_vector_records() -> None:
    ours, _ = opened()
    sealed = [ours.seal(b"hello").hex() for _ in range(257)]
    assert {number: sealed[number] for number in RECORDS} == RECORDS


def test_server_learns_version_and_machine() -> None:
    version, machine, _, _ = accept(client().initiation, SERVER, lambda n: b"\x44" * n)
    assert (version, machine) == (VERSION, MACHINE.public())


@pytest.mark.parametrize("counter", [0, 1, 2**32 - 1, 2**32, 2**63])
def test_both_sides_count_alike(counter: int) -> None:
    one, other = Cipher(b"k" * 32), Cipher(b"k" * 32)
    one.counter = other.counter = counter
    assert other.open(one.seal(b"x")) == b"x" and one.counter == counter + 1


def test_the_last_counter_is_never_used() -> None:
    cipher = Cipher(b"k" * 32)
    cipher.counter = COUNTER_MAX
    with pytest.raises(LocalProtocolError):
        cipher.seal(b"x")


@given(st.lists(st.binary(max_size=9000), max_size=5), st.integers(1, 5000))
def test_any_cutting_of_the_stream_yields_the_same_plaintext(parts: list[bytes], step: int) -> None:
    assume(not b"".join(parts).startswith(control.EARLY_MAGIC[:1]))  # what looks like an early payload is taken for one
    ours, theirs = opened()
    sealed = b"".join(theirs.seal(part) for part in parts)
    out = b"".join(ours.receive(sealed[i : i + step]) for i in range(0, len(sealed), step))
    assert out == b"".join(parts)


@pytest.mark.parametrize("cut", range(0, 160, 7))
def test_answer_glued_to_early_payload_and_first_bytes(cut: int) -> None:
    ours, theirs, answer = pair()
    stream = answer + theirs.seal(emit_early(b'{"nodeKeyChallenge":"chalpub:00"}') + b"PRI")
    assert ours.receive(stream[:cut]) + ours.receive(stream[cut:]) == b"PRI"
    assert ours.early_payload == b'{"nodeKeyChallenge":"chalpub:00"}'


def test_early_payload_split_over_records_and_absent() -> None:
    ours, theirs = opened()
    early = emit_early(b"{}") + b"rest"
    assert b"".join(ours.receive(theirs.seal(early[i : i + 1])) for i in range(len(early))) == b"rest"
    ours, theirs = opened()
    frame = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00"
    assert b"".join(ours.receive(theirs.seal(frame[i : i + 1])) for i in range(len(frame))) == frame
    assert ours.early_payload is None


def test_early_payload_is_bounded() -> None:
    ours, theirs = opened()
    head = control.EARLY_MAGIC + (EARLY_PAYLOAD_MAX + 1).to_bytes(4, "big")
    with pytest.raises(RemoteProtocolError):
        ours.receive(theirs.seal(head))
    assert not ours.is_open


def test_record_sizes() -> None:
    ours, theirs = opened()
    whole = theirs.seal(b"x" * PLAINTEXT_MAX)
    assert len(whole) == NOISE_FRAME_MAX and ours.receive(whole) == b"x" * PLAINTEXT_MAX
    assert len(theirs.seal(b"x" * (PLAINTEXT_MAX + 1))) > NOISE_FRAME_MAX  # two records
    with pytest.raises(RemoteProtocolError):
        ours.receive(b"\x04\x0f\xfe" + bytes(4094))


def test_zero_length_record_is_skipped() -> None:
    ours, theirs = opened()
    pair_ = theirs._opened()
    empty = pair_.send.seal(b"")
    record = b"\x04" + len(empty).to_bytes(2, "big") + empty
    assert ours.receive(record + theirs.seal(b"after")) == b"after"


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 255])
def test_only_records_after_the_handshake(kind: int) -> None:
    ours, _ = opened()
    with pytest.raises(RemoteProtocolError):
        ours.receive(bytes((kind, 0, 16)) + bytes(16))
    with pytest.raises(LocalProtocolError):
        ours.receive(b"more")


@pytest.mark.parametrize("at", [3, 20, 40, 50])
def test_tampered_answer(at: int) -> None:
    ours, _, answer = pair()
    broken = bytearray(answer)
    broken[at] ^= 1
    with pytest.raises(RemoteProtocolError):
        ours.receive(broken)


def test_tampered_record_and_replay() -> None:
    ours, theirs = opened()
    record = theirs.seal(b"data")
    assert ours.receive(record) == b"data"
    with pytest.raises(RemoteProtocolError):
        ours.receive(record)


def test_wrong_server_key_and_wrong_version() -> None:
    stranger = MachinePrivate(b"\x55" * 32).public()
    lost = ClientChannel(MACHINE, stranger, VERSION, lambda n: b"\x22" * n)
    with pytest.raises(HandshakeError):
        accept(lost.initiation, SERVER, lambda n: b"\x44" * n)
    lied = bytearray(client().initiation)
    lied[1] ^= 1  # another version in the header than in the prologue
    with pytest.raises(HandshakeError):
        accept(bytes(lied), SERVER, lambda n: b"\x44" * n)


def test_low_order_keys_are_refused() -> None:
    with pytest.raises(HandshakeError):
        ClientChannel(MACHINE, MachinePublic(bytes(32)), VERSION, lambda n: b"\x22" * n)
    ours = client()
    with pytest.raises(HandshakeError):
        ours.receive(bytes((2, 0, 48)) + b"\x01" + bytes(47))
    initiation = bytes.fromhex(INITIATION)[:5] + bytes(32) + bytes.fromhex(INITIATION)[37:]
    with pytest.raises(HandshakeError):
        accept(initiation, SERVER, lambda n: b"\x44" * n)


def test_refusal_text_is_shown_as_a_hint() -> None:
    with pytest.raises(RemoteProtocolError, match="too old"):
        client().receive(emit_error("too\nold"))
    with pytest.raises(RemoteProtocolError):
        client().receive(bytes((2, 0, 47)) + bytes(47))


@pytest.mark.parametrize("value", ["", "!", "AAAA", HEADER[:-4], HEADER + "AAAA", "ü"])
def test_broken_handshake_header(value: str) -> None:
    with pytest.raises(RemoteProtocolError):
        control.parse_handshake_header(value)


def test_nothing_prints_a_key() -> None:
    ours, _ = opened()
    text = repr(ours._opened()) + repr(MACHINE)
    assert "11" * 8 not in text and ours._opened().send._key.hex() not in text


@given(st.binary(max_size=300))
def test_garbage_never_crashes(data: bytes) -> None:
    for channel in (client(), opened()[0]):
        try:
            channel.receive(data)
        except RemoteProtocolError:
            assert not channel.is_open
