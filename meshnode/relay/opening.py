"""Opening: the first words of a client to its relay, from HTTP to its admission. Sans-IO.

Ordinarily: the request, its 101, the relay's key, our login. Where the TLS handshake has told the key already, request
and login leave together and the answer to the request is left out (fast start), which saves one round trip; whoever
answers in HTTP nevertheless is understood. A key that the relay says later must be the one that was told.
Source: docs/protocol/paths.md 1.4, 1.11, 1.12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshnode.base.errors import RelayError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.wire import derp, websocket
from meshnode.wire.http1 import ClientHttp

REPLY_MAX: Final = 4096
_HTTP: Final = b"H"
"""The first byte of every answer in HTTP, and of no frame that a relay begins with."""


class UpgradeRefused(RelayError):
    """Something answered in HTTP and did not change the protocol."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}: not a relay, or a proxy strips the upgrade")
        self.status = status

    @property
    def is_stripped(self) -> bool:
        """A relay saw no upgrade, or something before it did not pass it on; not that nobody is there."""
        return self.status < 500


class Opening:
    """One login: `start`, then `receive` until it returns bytes; from there on frames are cut by the owner."""

    def __init__(
        self,
        private: NodePrivate,
        host: str,
        ideal: str,
        *,
        entropy: Callable[[int], bytes],
        by_websocket: bool = False,
        told: NodePublic | None = None,
    ) -> None:
        """ideal: name of the region's first node if this is another, else ''. told: the relay's key, if TLS told it."""
        self._entropy = entropy
        self._http = ClientHttp(host, body_limit=REPLY_MAX)
        self._ideal = ideal
        self._websocket = websocket.ClientUpgrade("derp", entropy(websocket.NONCE_LEN)) if by_websocket else None
        self.is_websocket = by_websocket
        self.is_fast = told is not None and not by_websocket
        """The login leaves with the request."""
        self._login = derp.ClientLogin(private, told if self.is_fast else None)
        self._is_http = not self.is_fast
        """Its first words are HTTP's."""
        self.is_upgraded = False
        """What comes is the relay's own protocol."""
        self.is_said = False
        """The login has left: packets may follow it."""
        self.info: derp.ServerInfo | None = None
        """What the relay says of itself, once it has admitted us."""

    def start(self) -> bytes:
        """The first bytes to send."""
        headers = [("User-Agent", "meshnode")]
        if self._ideal:
            headers.append(("Ideal-Node", self._ideal))
        if self._websocket is not None:
            return self._http.upgrade("GET", "/derp", "websocket", [*headers, *self._websocket.headers])
        if not self.is_fast:
            return self._http.upgrade("GET", "/derp", "DERP", headers)
        return self._http.upgrade("GET", "/derp", "DERP", [*headers, ("Derp-Fast-Start", "1")]) + self._say_login()

    def receive(self, data: bytes) -> bytes | None:
        """Bytes of the relay, at least one. The part of them behind the upgrade, None before it is complete.

        UpgradeRefused: HTTP and no upgrade. RemoteProtocolError: neither HTTP nor a relay.
        """
        if not self._is_http and data[:1] != _HTTP:
            self.is_upgraded = True
            return data
        self._is_http = True
        response = self._http.receive(data)
        if response is None:
            return None
        if response.status != 101:
            raise UpgradeRefused(response.status)
        if self._websocket is not None:
            self._websocket.check(response)
        self.is_upgraded = True
        return response.rest

    def greet(self, payload: bytes) -> bytes:
        """A ServerKey frame came: our login, unless it has left. RemoteProtocolError: not the key that was told."""
        self._login.consume_server_key(payload)
        return b"" if self.is_said else self._say_login()

    def admit(self, payload: bytes) -> None:
        """A ServerInfo frame came. RemoteProtocolError if it was not made by the relay we greeted."""
        self.info = self._login.consume_server_info(payload)

    def _say_login(self) -> bytes:
        self.is_said = True
        return self._login.create_client_info(self._entropy(derp.NONCE_LEN))
