"""CONNECT: what is asked, where the answer ends, and what each refusal is told as."""

from __future__ import annotations

import pytest

from meshnode.base.errors import RemoteProtocolError
from meshnode.base.proxy import Proxy
from meshnode.wire.connect import Tunnel
from meshnode.wire.http1 import Response

PLAIN = Proxy.parse("http://proxy:3128", "HTTPS_PROXY")
GUARDED = Proxy.parse("http://me:p%40ss@proxy:3128", "HTTPS_PROXY")


def answer(data: bytes, proxy: Proxy = PLAIN) -> tuple[Response, str]:
    tunnel = Tunnel(proxy, "relay.example", 443)
    tunnel.request()
    found = tunnel.receive(data)
    assert found is not None
    return found, tunnel.explain(found)


def test_the_request_names_the_target_and_the_password_only_to_the_proxy() -> None:
    lines = Tunnel(PLAIN, "fd77::1", 443).request().decode().split("\r\n")
    assert lines[:2] == ["CONNECT [fd77::1]:443 HTTP/1.1", "Host: [fd77::1]:443"] and lines[-2:] == ["", ""]
    assert not any(line.startswith("Proxy-Auth") for line in lines)
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in Tunnel(GUARDED, "a", 1).request()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11\r\n\r\n",
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.1 200\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Fine\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_the_answer_ends_at_a_byte(head: bytes) -> None:
    tunnel = Tunnel(PLAIN, "a", 443)
    tunnel.request()
    for at in range(len(head) - 1):
        assert tunnel.receive(head[at : at + 1]) is None
    whole = tunnel.receive(head[-1:])
    assert whole is not None and whole.rest == b"" and not tunnel.explain(whole)
    found, problem = answer(head + b"\x01 early bytes of the target")
    assert found.rest == b"\x01 early bytes of the target" and not problem


BASIC = b"Proxy-Authenticate: Basic realm=office\r\n"


@pytest.mark.parametrize(
    ("head", "proxy", "said"),
    [
        (
            b"407 Proxy Authentication Required\r\n" + BASIC, PLAIN,
            "the proxy proxy:3128 wants a user name and password (407): "
            "set them in HTTPS_PROXY, as http://USER:PASSWORD@proxy:3128",
        ),
        (
            b"407 Proxy Authentication Required\r\n" + BASIC, GUARDED,
            "the proxy proxy:3128 does not take the user name and password of HTTPS_PROXY (407)",
        ),
        (
            b"401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\n", GUARDED,
            "the proxy proxy:3128 does not take the user name and password of HTTPS_PROXY (401)",
        ),
        (
            b"407 x\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n", GUARDED,
            "the proxy proxy:3128 wants Negotiate authentication; meshnode speaks Basic only (407)",
        ),
        (
            b"403 Filtered\r\n", PLAIN,
            "the proxy proxy:3128 does not allow connections to relay.example:443 (403 Filtered); "
            "many allow port 443 only",
        ),
        (
            b"503 Service Unavailable\r\n", PLAIN,
            "the proxy proxy:3128 cannot reach relay.example:443 (503 Service Unavailable)",
        ),
        (
            b"500 Unable to connect\r\n", PLAIN,
            "the proxy proxy:3128 cannot reach relay.example:443 (500 Unable to connect)",
        ),
        (
            b"302 Found\r\nLocation: http://login/\r\n", PLAIN,
            "the proxy proxy:3128 would not connect to relay.example:443: it answered 302 Found",
        ),
    ],
)  # fmt: skip
def test_refusals_in_words(head: bytes, proxy: Proxy, said: str) -> None:
    found, problem = answer(b"HTTP/1.1 " + head + b"Content-Length: 5000\r\n\r\n<html>", proxy)
    assert problem == said and "p@ss" not in problem


@pytest.mark.parametrize("data", [b"SSH", b"\x15\x03", b"HTTP/2", b"HTTP/1.1 two\r\n\r\n", b""])
def test_what_is_no_proxy(data: bytes) -> None:
    tunnel = Tunnel(PLAIN, "a", 443)
    tunnel.request()
    with pytest.raises(RemoteProtocolError):
        tunnel.receive(data)


def test_a_head_without_end_is_bounded() -> None:
    tunnel = Tunnel(PLAIN, "a", 443)
    tunnel.request()
    with pytest.raises(RemoteProtocolError):
        for _ in range(64):
            tunnel.receive(b"HTTP/1.1 200 " + b"x" * 1024)
