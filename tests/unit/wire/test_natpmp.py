"""NAT-PMP: the layouts of RFC 6886, and what must not pass for a reply."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire import natpmp

EXTERNAL = bytes.fromhex("00 80 0000 0000002a 0b4d0002")
MAPPED = bytes.fromhex("00 81 0000 0000002b a2a9 a2aa 00001c20")


def test_requests_as_the_rfc_lays_them_out() -> None:
    assert natpmp.emit_external_request() == b"\0\0"
    assert natpmp.emit_map_request(41641, 41642, 7200) == bytes.fromhex("0001 0000 a2a9 a2aa 00001c20")


def test_replies() -> None:
    assert natpmp.parse_reply(EXTERNAL) == natpmp.ExternalReply(42, IPv4Address("11.77.0.2"))
    assert natpmp.parse_reply(MAPPED + b"more") == natpmp.MapReply(43, 41641, 41642, 7200)


@pytest.mark.parametrize("result", [1, 2, 3, 4, 5, 999])
def test_refusals_need_no_body(result: int) -> None:
    """A gateway that knows another version only answers with eight bytes, whatever was asked."""
    assert natpmp.parse_reply(b"\0\x80" + result.to_bytes(2, "big") + bytes(4)) == natpmp.Refusal(0, result)


@pytest.mark.parametrize(
    "data", [b"", EXTERNAL[:11], MAPPED[:15], b"\2" + EXTERNAL[1:], b"\0\x82" + EXTERNAL[2:], b"\0\0"]
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        natpmp.parse_reply(data)


@given(st.binary(max_size=32))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        natpmp.parse_reply(data)
