"""Relay frames: the published login vector, every length rule, and a stream cut anywhere."""

from __future__ import annotations

import json
import random

import pytest
from nacl.bindings import crypto_box

from meshnode.base.bounds import DERP_FRAME_MAX, DERP_PACKET_MAX
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.wire import derp

CLIENT = NodePrivate(bytes(range(0x01, 0x21)))
SERVER = NodePrivate(bytes(range(0x21, 0x41)))
NONCE = bytes(range(0x40, 0x58))
KEY = bytes(range(32))
VECTOR = bytes.fromhex(
    "0200000068"
    "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
    "404142434445464748494a4b4c4d4e4f5051525354555657"
    "10c6a777bd3202eb6e6023dd82046bc9b0ddfb21c0fb964aab81462d23cb6ca9b01705252af01bafa991d0775ced82a5"
)


def greeted() -> derp.ClientLogin:
    login = derp.ClientLogin(CLIENT)
    ((_, payload),) = derp.Frames(derp.TO_CLIENT).receive(derp.ServerLogin(SERVER).create_server_key())
    login.consume_server_key(payload)
    return login


def boxed(info: object) -> bytes:
    text = info if isinstance(info, bytes) else json.dumps(info).encode()
    box = crypto_box(text, NONCE, SERVER.public().raw, CLIENT.reveal())
    return CLIENT.public().raw + NONCE + box


def test_login_vector_is_made_and_read() -> None:
    assert greeted().create_client_info(NONCE) == VECTOR
    server = derp.ServerLogin(SERVER)
    info = server.consume_client_info(VECTOR[derp.HEADER_LEN :])
    assert server.client == CLIENT.public()
    assert (info.version, info.can_ack_pings, info.is_prober, info.mesh_key) == (2, True, False, "")


def test_login_both_ways() -> None:
    client, server = greeted(), derp.ServerLogin(SERVER)
    server.consume_client_info(VECTOR[derp.HEADER_LEN :])
    answer = server.create_server_info(NONCE, rate_bytes_per_s=5000, rate_burst_bytes=9000)
    assert client.consume_server_info(answer[derp.HEADER_LEN :]) == derp.ServerInfo(2, 5000, 9000)
    assert client.server == SERVER.public()


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({"version": 2}, (2, 0, 0)),
        ({}, (0, 0, 0)),
        ({"version": 3, "New": {"a": [1]}, "TokenBucketBytesPerSecond": 7}, (3, 7, 0)),
        ({"version": 2, "TokenBucketBytesPerSecond": 7, "TokenBucketBytesBurst": 9}, (2, 7, 9)),
    ],
)
def test_server_infos_that_exist_are_taken(said: object, understood: tuple[int, int, int]) -> None:
    box = crypto_box(json.dumps(said).encode(), NONCE, CLIENT.public().raw, SERVER.reveal())
    assert greeted().consume_server_info(NONCE + box) == derp.ServerInfo(*understood)


def test_a_box_for_another_relay_does_not_open() -> None:
    other = derp.ServerLogin(NodePrivate(bytes(range(0x41, 0x61))))
    with pytest.raises(RemoteProtocolError, match="does not open"):
        other.consume_client_info(VECTOR[derp.HEADER_LEN :])
    assert other.client is None


@pytest.mark.parametrize("tail", [0, 1, 984])
def test_greeting_may_have_a_future(tail: int) -> None:
    login = derp.ClientLogin(CLIENT)
    login.consume_server_key(derp.MAGIC + KEY + bytes(tail))
    assert login.server == NodePublic(KEY)


@pytest.mark.parametrize(
    "payload", [derp.MAGIC + KEY[:31], b"DERQ" + derp.MAGIC[4:] + KEY, b"", derp.MAGIC + bytes(2000)]
)
def test_no_greeting(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        derp.ClientLogin(CLIENT).consume_server_key(payload)


def test_a_relay_may_greet_again_but_not_with_another_key() -> None:
    login = greeted()
    login.consume_server_key(derp.MAGIC + SERVER.public().raw)
    with pytest.raises(RemoteProtocolError):
        login.consume_server_key(derp.MAGIC + KEY)


@pytest.mark.parametrize(
    "info",
    [
        {"version": 2, "CanAckPings": True},
        {"mesh_key": "none", "version": 2, "can_ack_pings": True},
        {"CanAckPings": False},
        {"version": 2, "AppName": "x" * 500, "NewThing": [1, {"a": None}]},
    ],
)
def test_client_infos_that_exist_are_taken(info: object) -> None:
    parsed = derp.ServerLogin(SERVER).consume_client_info(boxed(info))
    assert parsed.mesh_key == "" and len(parsed.app_name) <= 64


@pytest.mark.parametrize(
    "info",
    [
        {"meshKey": "0" * 63},
        {"meshKey": "0" * 65},
        {"meshKey": 5},
        {"version": "2"},
        {"version": -1},
        [],
        b"{",
        b"[" * 5000,
    ],
)
def test_client_infos_that_lie_are_refused(info: object) -> None:
    with pytest.raises(RemoteProtocolError):
        derp.ServerLogin(SERVER).consume_client_info(boxed(info))


@pytest.mark.parametrize("length", [0, 1000, DERP_FRAME_MAX])
@pytest.mark.parametrize("known", [derp.TO_CLIENT, derp.TO_SERVER])
def test_unknown_frames_are_skipped_and_not_kept(length: int, known: frozenset[int]) -> None:
    frames = derp.Frames(known)
    stream = derp.emit_frame(0x7F, bytes(length)) + derp.emit_frame(derp.PING, KEY[:8])
    got = []
    for start in range(0, len(stream), 4096):
        got += frames.receive(stream[start : start + 4096])
        assert len(frames._kept) < 4096
    assert got == [(derp.PING, KEY[:8])] and frames.skipped == 1


@pytest.mark.parametrize("kind", [derp.RECV_PACKET, 0x7F])
def test_an_impossible_length_is_refused_from_its_header(kind: int) -> None:
    with pytest.raises(RemoteProtocolError):
        derp.Frames(derp.TO_CLIENT).receive(bytes([kind]) + b"\xff\xff\xff\xff")


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_cut_anywhere_gives_the_same_frames(seed: int) -> None:
    dice = random.Random(seed)
    kinds = [derp.RECV_PACKET, derp.PING, derp.KEEP_ALIVE, 0x7F, 0x30]
    sent = [(dice.choice(kinds), dice.randbytes(dice.choice([0, 1, 31, 40, 1400, 70_000]))) for _ in range(30)]
    stream = b"".join(derp.emit_frame(kind, payload) for kind, payload in sent)
    frames, got, at = derp.Frames(derp.TO_CLIENT), [], 0
    while at < len(stream):
        step = dice.choice([1, 2, 5, 37, 1000, 65_536])
        got += frames.receive(stream[at : at + step])
        at += step
    assert got == [(k, p) for k, p in sent if k in derp.TO_CLIENT]


def test_every_single_cut_of_a_short_stream() -> None:
    stream = derp.emit_frame(0x30, b"xyz") + derp.emit_recv(KEY, b"hello") + derp.emit_frame(derp.KEEP_ALIVE)
    for at in range(len(stream) + 1):
        frames = derp.Frames(derp.TO_CLIENT)
        assert frames.receive(stream[:at]) + frames.receive(stream[at:]) == [
            (derp.RECV_PACKET, KEY + b"hello"),
            (derp.KEEP_ALIVE, b""),
        ]


def test_packet_lengths() -> None:
    assert derp.split_packet(KEY) == (KEY, b"")
    assert derp.split_packet(KEY + bytes(DERP_PACKET_MAX))[1] == bytes(DERP_PACKET_MAX)
    for payload in (KEY[:31], KEY + bytes(DERP_PACKET_MAX + 1)):
        with pytest.raises(RemoteProtocolError):
            derp.split_packet(payload)
    assert derp.emit_send(KEY, b"ab") == b"\x04\0\0\0\x22" + KEY + b"ab"


def test_exact_and_open_lengths() -> None:
    assert derp.parse_preferred(b"\1") and not derp.parse_preferred(b"\0")
    for bad in (b"", b"\1\1"):
        with pytest.raises(RemoteProtocolError):
            derp.parse_preferred(bad)
    assert derp.parse_ping(bytes(1000)) == bytes(8) == derp.parse_ping(bytes(9))
    for length in (7, 1001):
        with pytest.raises(RemoteProtocolError):
            derp.parse_ping(bytes(length))


def test_gone_and_present_in_all_their_lengths() -> None:
    peer = NodePublic(KEY)
    assert derp.parse_gone(KEY) == (peer, derp.GONE_DISCONNECTED)
    assert derp.parse_gone(KEY + b"\x01") == (peer, derp.GONE_NOT_HERE)
    assert derp.parse_gone(KEY + b"\x77") == (peer, derp.GONE_DISCONNECTED)
    v4 = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7]) + (41641).to_bytes(2, "big")
    assert derp.parse_present(KEY) == derp.Present(peer, None, 0)
    assert str(derp.parse_present(KEY + v4).source) == "192.0.2.7:41641"
    assert derp.parse_present(KEY + v4 + b"\x02").flags == 2
    assert derp.parse_present(KEY + v4 + b"\x02" + bytes(9)).flags == 2
    for parse in (derp.parse_gone, derp.parse_present):
        with pytest.raises(RemoteProtocolError):
            parse(KEY[:31])


def test_restarting() -> None:
    assert derp.parse_restarting(derp.emit_restarting(1500, 60_000)[derp.HEADER_LEN :] + b"more") == (1.5, 60.0)
    with pytest.raises(RemoteProtocolError):
        derp.parse_restarting(bytes(7))
