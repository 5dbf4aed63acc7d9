"""The SOCKS5 server core: dialogues, in one piece and byte by byte, and garbage."""

from __future__ import annotations

import hmac
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.addr import Endpoint
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.wire.socks5 import WAITING_MAX, Reply, Request, ServerSocks5

HELLO = b"\x05\x01\x00"
NAME = b"\x05\x01\x00\x03\x06worker\x0b\xb9"
HOSTS = [
    (b"\x03\x06worker", "worker"),
    (b"\x01\x64\x40\x00\x01", "100.64.0.1"),
    (b"\x04" + ip_address("fd7a:115c:a1e0::2").packed, "fd7a:115c:a1e0::2"),
    (b"\x04" + ip_address("::ffff:100.64.0.1").packed, "100.64.0.1"),
]


def check(user: bytes, password: bytes) -> bool:
    return hmac.compare_digest(user + b"\0" + password, b"ada\0secret")


def feed(core: ServerSocks5, data: bytes, *, step: int) -> tuple[Request | None, bytes]:
    """The request and everything said, with the data in pieces of `step` bytes."""
    out = b""
    found = None
    for at in range(0, len(data), step):
        request = core.receive(data[at : at + step])
        out += core.to_send()
        assert found is None or request is None, "a request comes once"
        found = found or request
    return found, out


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize(("raw", "host"), HOSTS)
def test_connect_by_every_kind_of_address(raw: bytes, host: str, step: int) -> None:
    core = ServerSocks5()
    request, out = feed(core, HELLO + b"\x05\x01\x00" + raw + b"\x00\x50", step=step)
    assert request == Request(host, 80)
    assert out == b"\x05\x00"
    assert core.reply(Reply.SUCCEEDED, Endpoint(ip_address("100.64.0.2"), 258)) == b""
    assert core.to_send() == b"\x05\x00\x00\x01\x64\x40\x00\x02\x01\x02"


def test_the_bound_address_may_be_ipv6() -> None:
    core = ServerSocks5()
    feed(core, HELLO + NAME, step=99)
    core.reply(Reply.SUCCEEDED, Endpoint(ip_address("::1"), 1))
    assert core.to_send() == b"\x05\x00\x00\x04" + ip_address("::1").packed + b"\x00\x01"


def test_what_was_sent_too_early_goes_to_the_target() -> None:
    core = ServerSocks5()
    assert core.receive(HELLO + NAME + b"GET") == Request("worker", 3001)
    assert core.receive(b" /") is None
    assert core.reply(Reply.SUCCEEDED) == b"GET /"


def test_what_is_sent_too_early_is_bounded() -> None:
    core = ServerSocks5()
    core.receive(HELLO + NAME)
    core.receive(bytes(WAITING_MAX))
    with pytest.raises(RemoteProtocolError):
        core.receive(b"x")


@pytest.mark.parametrize("step", [1, 3, 99])
def test_user_and_password(step: int) -> None:
    core = ServerSocks5(check)
    request, out = feed(core, b"\x05\x02\x00\x02" + b"\x01\x03ada\x06secret" + NAME, step=step)
    assert request == Request("worker", 3001)
    assert out == b"\x05\x02\x01\x00"


def test_a_wrong_password_is_told_and_ends_it() -> None:
    core = ServerSocks5(check)
    with pytest.raises(RemoteProtocolError, match="wrong user or password") as caught:
        core.receive(b"\x05\x01\x02" + b"\x01\x03ada\x05wrong" + NAME)
    assert core.to_send() == b"\x05\x02\x01\x01"
    assert "wrong user" in str(caught.value) and "ada" not in str(caught.value)


@pytest.mark.parametrize(("guard", "offered"), [(None, b"\x02"), (check, b"\x00"), (None, b"")])
def test_no_common_method(guard: object, offered: bytes) -> None:
    core = ServerSocks5(guard)  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError):
        core.receive(b"\x05" + bytes([len(offered)]) + offered)
    assert core.to_send() == b"\x05\xff"


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"\x05\x02\x00\x03\x06worker\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x03\x00\x03\x06worker\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x01\x00\x02", Reply.ADDRESS_NOT_SUPPORTED),
        (b"\x05\x01\x00\x03\x00\x00\x50", Reply.GENERAL_FAILURE),
        (b"\x05\x01\x00\x03\x02a\n\x00\x50", Reply.GENERAL_FAILURE),
        (b"\x05\x01\x00\x03\x02\xc3\xa4\x00\x50", Reply.GENERAL_FAILURE),
        (b"\x05\x01\x00\x01\x64\x40\x00\x01\x00\x00", Reply.GENERAL_FAILURE),
    ],
)
def test_requests_that_are_refused(request_bytes: bytes, code: Reply) -> None:
    core = ServerSocks5()
    core.receive(HELLO)
    core.to_send()
    with pytest.raises(RemoteProtocolError):
        core.receive(request_bytes)
    assert core.to_send()[:2] == bytes([5, code])


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"\x04\x01\x00\x50", b"\x16\x03\x01"])
def test_other_protocols_get_no_answer(first: bytes) -> None:
    core = ServerSocks5()
    with pytest.raises(RemoteProtocolError, match="not SOCKS5"):
        core.receive(first)
    assert core.to_send() == b""


def test_misuse_is_ours() -> None:
    core = ServerSocks5()
    with pytest.raises(LocalProtocolError):
        core.reply(Reply.SUCCEEDED)
    core.receive(HELLO + NAME)
    core.reply(Reply.REFUSED)
    with pytest.raises(LocalProtocolError):
        core.receive(b"x")


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans())
def test_garbage_is_refused_or_waited_for(parts: list[bytes], guarded: bool) -> None:
    core = ServerSocks5(check if guarded else None)
    for part in parts:
        try:
            request = core.receive(part)
        except RemoteProtocolError:
            return
        if request is not None:
            assert 0 < request.port < 65536
            assert request.host.isascii()
