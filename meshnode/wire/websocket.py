"""WebSocket: what a client asks in HTTP, what a server answers, and the client's end as a byte stream.

ClientStream is for the control channel, over the wsproto library; relays are framed by native code
(native/relay/websocket.h), which lies on the path of packets.
Source: RFC 6455; docs/protocol/paths.md 1.11, control.md 2.8.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from typing import Final

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.http1 import Response

NONCE_LEN: Final = 16
VERSION: Final = "13"
MESSAGE_MAX: Final = 32 << 10
"""Payload of one of our messages: stock ends close when a message is longer."""
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_of(key: str) -> str:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    return b64encode(hashlib.sha1(key.encode("latin-1") + _GUID).digest()).decode()


class ClientUpgrade:
    """One request to change to WebSocket with one subprotocol."""

    def __init__(self, subprotocol: str, nonce: bytes) -> None:
        """nonce: NONCE_LEN fresh random bytes."""
        self._subprotocol = subprotocol
        self._key = b64encode(nonce).decode()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Besides Upgrade and Connection."""
        return [
            ("Sec-WebSocket-Version", VERSION),
            ("Sec-WebSocket-Key", self._key),
            ("Sec-WebSocket-Protocol", self._subprotocol),
        ]

    def check(self, answer: Response) -> None:
        """RemoteProtocolError if a 101 is not the answer to this request, for this subprotocol."""
        shown = answer.headers.get("sec-websocket-accept", "")
        if not hmac.compare_digest(shown.encode(), accept_of(self._key).encode()):
            raise RemoteProtocolError("the answer to our WebSocket request is that to another one")
        if answer.headers.get("sec-websocket-protocol", "") != self._subprotocol:
            raise RemoteProtocolError(f"the WebSocket that was opened does not speak {self._subprotocol}")
        if answer.headers.get("sec-websocket-extensions"):
            raise RemoteProtocolError("the WebSocket that was opened has extensions nobody asked for")


class ClientStream:
    """An open WebSocket as a stream: binary messages whose boundaries carry no meaning."""

    def __init__(self) -> None:
        from wsproto.connection import Connection, ConnectionType  # late: few networks need it

        self._connection = Connection(ConnectionType.CLIENT)
        self._out = b""
        self.is_closed = False
        """The other side said goodbye, or broke the rules; nothing more comes."""

    def receive(self, data: bytes) -> bytes:
        """The payload of what has come. What is owed for it is in `to_send`."""
        from wsproto.events import BytesMessage, CloseConnection, Ping, Pong

        payload = bytearray()
        if self.is_closed:
            return b""
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, BytesMessage):
                payload += event.data
            elif isinstance(event, Ping):
                self._out += self._connection.send(event.response())
            elif isinstance(event, CloseConnection) or not isinstance(event, Pong):
                self.is_closed = True
                break
        return bytes(payload)

    def send(self, data: bytes) -> bytes:
        """The bytes as messages; none once it is closed."""
        from wsproto.events import BytesMessage

        if self.is_closed:
            return b""
        pieces = [data[at : at + MESSAGE_MAX] for at in range(0, len(data), MESSAGE_MAX)]
        return b"".join(self._connection.send(BytesMessage(piece)) for piece in pieces)

    def to_send(self) -> bytes:
        """Answers to pings."""
        out, self._out = self._out, b""
        return out
