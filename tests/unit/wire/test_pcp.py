"""PCP: the layouts of RFC 6887, and what must not pass for a reply."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire import pcp

CLIENT = IPv4Address("192.168.50.2")
NONCE = bytes(range(1, 13))
HERE = "00000000000000000000ffff c0a83202"
NOWHERE = "00000000000000000000ffff 00000000"
HEADER = "02 81 00 00 00001c20 0000002a 000000000000000000000000"
MAPPED = bytes.fromhex(f"{HEADER} 0102030405060708090a0b0c 11 000000 a2a9 a2aa 00000000000000000000ffff 0b4d0002")


def test_requests_as_the_rfc_lays_them_out() -> None:
    assert pcp.emit_announce(CLIENT) == bytes.fromhex(f"02 00 0000 00000000 {HERE}")
    wanted = f"02 01 0000 00001c20 {HERE} 0102030405060708090a0b0c 11 000000 a2a9 a2aa {NOWHERE}"
    assert pcp.emit_map_request(CLIENT, NONCE, 41641, 41642, 7200) == bytes.fromhex(wanted)


def test_replies() -> None:
    assert pcp.parse_reply(MAPPED) == pcp.MapReply(42, NONCE, 41641, 41642, IPv4Address("11.77.0.2"), 7200)
    assert pcp.parse_reply(b"\2\x80" + MAPPED[2:24]) == pcp.AnnounceReply(42)


@pytest.mark.parametrize("result", [1, 2, 12, 200])
def test_refusals(result: int) -> None:
    data = b"\2\x81\0" + bytes((result,)) + MAPPED[4:]
    assert pcp.parse_reply(data) == pcp.Refusal(42, True, result, 7200)
    assert pcp.parse_reply(data[:24]) == pcp.Refusal(42, True, result, 7200)


@pytest.mark.parametrize(
    "data",
    [b"", MAPPED[:23], MAPPED[:59], b"\1" + MAPPED[1:], b"\2\1" + MAPPED[2:], b"\2\x82" + MAPPED[2:]]
    + [MAPPED[:36] + b"\6" + MAPPED[37:]],
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        pcp.parse_reply(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        pcp.parse_reply(b"\2" + data)
