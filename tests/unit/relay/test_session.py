"""The first words of a relay's client: the upgrade to the byte, fast start, and what comes glued to either."""

from __future__ import annotations

import pytest
from nacl.bindings import crypto_box_open

from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import NodePrivate
from meshnode.relay.session import Session, Want
from meshnode.wire import derp

SERVER = NodePrivate(bytes(range(0x21, 0x41)))
CLIENT = NodePrivate(bytes(range(0x01, 0x21)))
NONCE = bytes(range(0x40, 0x58))
GREETING = derp.ServerLogin(SERVER).create_server_key()
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n"
    b"Derp-Public-Key: " + SERVER.public().raw.hex().encode() + b"\r\n\r\n"
)


def ask(token: str = "DERP", *more: str, method: str = "GET") -> bytes:
    lines = [f"{method} /derp HTTP/1.1", "Host: x", f"Upgrade: {token}", "Connection: Upgrade", *more, "", ""]
    return "\r\n".join(lines).encode()


def login() -> bytes:
    client = derp.ClientLogin(CLIENT)
    client.consume_server_key(derp.MAGIC + SERVER.public().raw)
    return client.create_client_info(NONCE)


@pytest.mark.parametrize("token", ["DERP", "derp", "DeRp"])
def test_the_upgrade_to_the_byte(token: str) -> None:
    session = Session(SERVER)
    assert session.receive(ask(token)) is Want.READ
    assert bytes(session.out) == SWITCHED + GREETING


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_fast_start_has_no_http_before_its_first_frame(step: int) -> None:
    """Request, login and first frames in one flight, however it is cut: the answer begins with ServerKey."""
    session, frames = Session(SERVER), derp.emit_preferred(True) + derp.emit_send(bytes(32), b"x")
    flight, rest = ask("DERP", "Derp-Fast-Start: 1") + login() + frames, b""
    for at in range(0, len(flight), step):
        if session.want is Want.ADMIT:
            rest += flight[at : at + step]
        elif session.receive(flight[at : at + step]) is Want.ADMIT:
            rest = session.rest
    assert session.want is Want.ADMIT and rest == frames
    assert bytes(session.out) == GREETING
    assert session.client == CLIENT.public() and session.info == derp.ClientInfo(2, True, False, "", "")
    answer = session.create_server_info(NONCE, rate_bytes_per_s=5, rate_burst_bytes=7)[derp.HEADER_LEN :]
    box = crypto_box_open(answer[24:], answer[:24], SERVER.public().raw, CLIENT.reveal())
    assert box == b'{"version":2,"TokenBucketBytesPerSecond":5,"TokenBucketBytesBurst":7}'


@pytest.mark.parametrize("token", ["websocket", "WebSocket"])
def test_websocket_is_answered_with_its_subprotocol(token: str) -> None:
    more = ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    session = Session(SERVER)
    want = session.receive(ask(token, *more, "Sec-WebSocket-Protocol: chat, derp") + b"\x82\x80\0\0\0\0")
    head = bytes(session.out).split(b"\r\n")
    assert want is Want.WEBSOCKET and session.rest == b"\x82\x80\0\0\0\0"
    assert head[0] == b"HTTP/1.1 101 Switching Protocols" and head[-2:] == [b"", b""]
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head and b"Sec-WebSocket-Protocol: derp" in head
    for protocol in ("chat", ""):
        refused = Session(SERVER)
        refused.receive(ask(token, *more, f"Sec-WebSocket-Protocol: {protocol}"))
        assert refused.out.startswith(b"HTTP/1.1 426 ") and b"101" not in refused.out


def test_what_is_no_upgrade() -> None:
    session = Session(SERVER)
    session.receive(ask("h2c"))
    assert session.out.startswith(b"HTTP/1.1 426 ")
    with pytest.raises(RemoteProtocolError):
        Session(SERVER).receive(ask(method="PUT"))
    greeted = Session(SERVER)
    greeted.receive(ask())
    with pytest.raises(RemoteProtocolError, match="no ClientInfo"):
        greeted.receive(derp.emit_frame(derp.PING, bytes(8)))


def test_a_second_request_may_upgrade() -> None:
    """A page first, then the relay, on one connection and in one segment."""
    session = Session(SERVER)
    session.receive(b"GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n" + ask() + login())
    assert session.out.startswith(b"HTTP/1.1 200 ") and session.out.endswith(SWITCHED + GREETING)
    assert session.want is Want.ADMIT
