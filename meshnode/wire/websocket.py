"""The WebSocket upgrade in HTTP: what a client asks, what a server answers, and how each is checked.

Framing is native code's (native/relay/websocket.h): it lies on the path of packets.
Source: RFC 6455 4; docs/protocol/paths.md 1.11.
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
