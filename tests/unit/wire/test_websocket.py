"""The WebSocket upgrade: RFC 6455's own example, and answers that are not to our request."""

from __future__ import annotations

from base64 import b64decode

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, Ping, Pong

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.http1 import Response
from meshnode.wire.websocket import ClientStream, ClientUpgrade, accept_of

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GOOD = {"sec-websocket-accept": ACCEPT, "sec-websocket-protocol": "derp"}


def test_the_example_of_the_rfc() -> None:
    assert accept_of(KEY) == ACCEPT
    upgrade = ClientUpgrade("derp", b64decode(KEY))
    assert dict(upgrade.headers) == {
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Protocol": "derp",
    }  # fmt: skip
    upgrade.check(Response(101, GOOD))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOp="}, "another one"),
        ({"sec-websocket-accept": "\xff"}, "another one"),
        ({"sec-websocket-protocol": ""}, "does not speak derp"),
        ({"sec-websocket-protocol": "derp2"}, "does not speak derp"),
        ({"sec-websocket-extensions": "permessage-deflate"}, "extensions nobody asked for"),
    ],
)
def test_answers_that_are_refused(changed: dict[str, str], said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said):
        ClientUpgrade("derp", b64decode(KEY)).check(Response(101, GOOD | changed))


class Server:
    """The other end, over the same library."""

    def __init__(self) -> None:
        self.connection = Connection(ConnectionType.SERVER)
        self.heard: list[Event] = []

    def hear(self, data: bytes) -> None:
        self.connection.receive_data(data)
        self.heard += self.connection.events()


def test_the_stream_is_what_the_messages_hold_however_they_are_cut() -> None:
    server, client = Server(), ClientStream()
    wire = server.connection.send(BytesMessage(b"one ", message_finished=False))
    wire += server.connection.send(Ping(b"still there?"))
    wire += server.connection.send(BytesMessage(b"two "))
    wire += server.connection.send(BytesMessage(b"x" * 70_000))
    got = b"".join(client.receive(wire[at : at + 999]) for at in range(0, len(wire), 999))
    assert got == b"one two " + b"x" * 70_000
    server.hear(client.to_send() + client.send(b"answer"))
    assert [type(event) for event in server.heard] == [Pong, BytesMessage]
    assert server.heard[0] == Pong(b"still there?") and client.to_send() == b""


@pytest.mark.parametrize("wire", [b"\x88\x00", b"\x81\x01x", b"\x83\x00", b"\x82\x81\x00\x00\x00\x00x"])
def test_a_goodbye_text_and_broken_frames_end_it(wire: bytes) -> None:
    client = ClientStream()
    assert client.receive(b"\x82\x05first" + wire + b"\x82\x05later") == b"first"
    assert client.is_closed and client.receive(b"\x82\x05later") == b"" == client.send(b"x")
