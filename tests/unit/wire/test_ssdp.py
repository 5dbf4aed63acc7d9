"""SSDP: the search, and answers as gateways write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire import ssdp

ANSWER = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nEXT:\r\n"
    b"LOCATION: http://192.168.50.1:45071/rootDesc.xml\r\nUSN: uuid:7b3c5a46::upnp:rootdevice\r\n\r\n"
)


def test_the_search() -> None:
    assert ssdp.emit_search(ssdp.ALL) == (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: ssdp:all\r\nMAN: "ssdp:discover"\r\nMX: 2\r\n\r\n'
    )


def test_answers() -> None:
    found = ssdp.Found("http://192.168.50.1:45071/rootDesc.xml", "upnp:rootdevice")
    assert ssdp.parse_answer(ANSWER) == found
    assert ssdp.parse_answer(ANSWER.replace(b"\r\n", b"\n").replace(b"LOCATION: ", b"location:")) == found


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", ANSWER.replace(b"200", b"404"), ANSWER.replace(b"LOCATION", b"PLACE"), ssdp.emit_search(ssdp.ALL)]
    + [ANSWER.replace(b"rootDesc", b"x" * 600), ANSWER + b" " * 4096],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ssdp.parse_answer(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        ssdp.parse_answer(b"HTTP/1.1 200 " + data)
