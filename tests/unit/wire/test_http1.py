"""One request, one upgrade: both ends against each other and against rubbish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.bounds import HTTP_HEAD_MAX
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.wire.http1 import ClientHttp, Response, ServerHttp


def client(limit: int = 1000) -> ClientHttp:
    return ClientHttp("hs.example:8080", body_limit=limit)


def test_request_then_upgrade_on_one_connection() -> None:
    ours, theirs = client(), ServerHttp(body_limit=1000)
    request = theirs.receive(ours.request("GET", "/key?v=131", [("User-Agent", "x")]))
    assert request is not None and (request.path, request.query) == ("/key", "v=131")
    assert request.headers["host"] == "hs.example:8080"
    answer = ours.receive(theirs.respond(200, b"{}"))
    assert answer is not None and answer.reusable and answer.body == b"{}"
    request = theirs.receive(ours.upgrade("POST", "/ts2021", "proto"))
    assert request is not None and request.headers["upgrade"] == "proto"
    head, rest = theirs.switch("proto")
    assert rest == b""
    answer = ours.receive(head + b"\x01\x02")
    assert answer is not None and answer.status == 101 and answer.rest == b"\x01\x02"


def test_every_cut_of_a_101_keeps_the_rest() -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: p\r\nConnection: upgrade\r\n\r\nNOISE"
    for cut in range(1, len(raw)):
        ours = client()
        ours.upgrade("POST", "/ts2021", "p")
        first = ours.receive(raw[:cut])
        if first is None:
            first = ours.receive(raw[cut:])
            assert first is not None and first.rest == b"NOISE"
        else:
            assert first.rest + raw[cut:] == b"NOISE"


def test_bytes_after_the_upgrade_request_belong_to_the_new_protocol() -> None:
    theirs = ServerHttp(body_limit=10)
    raw = client().upgrade("POST", "/ts2021", "p") + b"early"
    assert theirs.receive(raw) is not None
    assert theirs.switch("p")[1] == b"early"


def test_pipelined_requests() -> None:
    theirs = ServerHttp(body_limit=10)
    one = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
    first = theirs.receive(one + one.replace(b"/1", b"/2"))
    assert first is not None and first.target == "/1"
    theirs.respond(200)
    second = theirs.pending()
    assert second is not None and second.target == "/2"


def test_an_answer_without_content_has_no_length() -> None:
    """RFC 9110 8.6; and a reason for those who read it."""
    ours, theirs = client(), ServerHttp(body_limit=10)
    theirs.receive(ours.request("GET", "/generate_204"))
    raw = theirs.respond(204, headers=[("Cache-Control", "no-store")])
    assert raw == b"HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\n\r\n"
    answer = ours.receive(raw)
    assert answer is not None and answer.status == 204 and answer.reusable


def test_a_connection_closed_before_its_answer_is_told_in_words() -> None:
    for seen in (b"", b"HTTP/1.1 200"):
        ours = client()
        ours.request("GET", "/")
        assert not seen or ours.receive(seen) is None
        with pytest.raises(RemoteProtocolError, match="closed before an answer came"):
            ours.receive(b"")


def test_head_has_no_body() -> None:
    theirs = ServerHttp(body_limit=10)
    theirs.receive(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert theirs.respond(200, b"1234").endswith(b"\r\n\r\n")


def test_bodies_and_heads_are_bounded() -> None:
    ours = client(limit=10)
    ours.request("GET", "/")
    with pytest.raises(RemoteProtocolError):
        ours.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b"x" * 11)
    ours = client()
    ours.request("GET", "/")
    with pytest.raises(RemoteProtocolError):
        ours.receive(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (2 * HTTP_HEAD_MAX))


def test_closed_without_an_answer() -> None:
    ours = client()
    ours.request("GET", "/")
    with pytest.raises(RemoteProtocolError):
        ours.receive(b"")


def test_answer_until_the_end_of_the_stream() -> None:
    ours = client()
    ours.request("GET", "/")
    assert ours.receive(b"HTTP/1.1 200 OK\r\n\r\nabc") is None
    answer = ours.receive(b"")
    assert isinstance(answer, Response) and answer.body == b"abc" and not answer.reusable


def test_misuse_is_ours() -> None:
    ours = client()
    ours.request("GET", "/")
    with pytest.raises(LocalProtocolError):
        ours.request("GET", "/again")


@given(st.binary(min_size=1, max_size=300))
def test_garbage_never_crashes(data: bytes) -> None:
    ours = client()
    ours.request("GET", "/")
    for half in (ours, ServerHttp(body_limit=100)):
        try:
            half.receive(data)
        except RemoteProtocolError:
            continue
