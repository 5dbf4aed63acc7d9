"""DialOptions: how relays are reached: TLS, proxies, who carries the connection, and what earlier attempts taught.

One object for all relays of a node; the TLS contexts in it are made once.
Source: docs/protocol/paths.md 2.1.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from meshnode.base.errors import ProxyPassword, RelayError
from meshnode.base.proxy import Proxy
from meshnode.core.proxies import Proxies
from meshnode.engine import _native
from meshnode.engine.link import RelayStream
from meshnode.netmap.model import RelayNode
from meshnode.relay.link import Link
from meshnode.run.log import get_logger

PIN: Final = "sha256-raw:"
PASSWORD_AGAIN_S: Final = 60.0
"""After a proxy refused a password: many tries in a row lock accounts."""
Carrier = Callable[[socket.socket, Link, object | None, str, str], Awaitable[RelayStream]]
"""(connected socket, protocol, TLS context or None, server name, name to verify or '') → the stream, after TLS."""
_log = get_logger("relay")


@dataclass(slots=True)
class DialOptions:
    """How relays are reached. The TLS contexts are made once: loading the system's roots is not cheap."""

    ca_file: str = ""
    allow_insecure: bool = False
    plain: bool = False
    carrier: Carrier | None = field(default=None, repr=False)
    """Who serves the connection, TLS included; None: asyncio and ssl."""
    proxies: Proxies = field(default_factory=Proxies)
    prefers_v6: bool = False
    """IPv6 worked when last looked at: IPv4 waits a moment for it."""
    _websockets: set[str] = field(default_factory=set, repr=False)
    """Nodes that took us by WebSocket only: something on the way strips the other upgrade."""
    _refused: dict[Proxy, tuple[float, str]] = field(default_factory=dict, repr=False)
    """Proxies that did not take our password: until when they are not asked again, and what they said."""
    _carried: dict[bool, object] = field(default_factory=dict, repr=False)
    _verifying: ssl.SSLContext | None = field(default=None, repr=False)
    _trusting: ssl.SSLContext | None = field(default=None, repr=False)

    def context_for(self, node: RelayNode) -> ssl.SSLContext:
        """The TLS context this node's map entry asks for, and our owner allows."""
        if node.cert_name.startswith(PIN) or (node.insecure and self.allow_insecure):
            return self._unchecked()
        return self._checked()

    def carried_context_for(self, node: RelayNode) -> object:
        """The same for a carrier. RelayError if the CA file cannot be used."""
        verifies = not (node.cert_name.startswith(PIN) or (node.insecure and self.allow_insecure))
        if verifies not in self._carried:
            try:
                self._carried[verifies] = _native.tls_context(
                    self.ca_file if verifies and self.ca_file else None, verifies
                )
            except ValueError as error:
                raise RelayError(f"CA file {self.ca_file} cannot be used: {error}") from None
        return self._carried[verifies]

    def ways_to(self, node: RelayNode) -> tuple[bool, ...]:
        """Whether to speak WebSocket, in the order to try; without a carrier nobody frames it."""
        if self.carrier is None:
            return (False,)
        return (True, False) if node.name in self._websockets else (False, True)

    def note_way(self, node: RelayNode, by_websocket: bool) -> None:
        """It took us so; WebSocket is tried first from then on."""
        if by_websocket and node.name not in self._websockets:
            _log.info("reached by WebSocket: something on the way strips the relay's own upgrade", node=node.name)
            self._websockets.add(node.name)

    def note_failure(self, node: RelayNode) -> None:
        """Whatever was on the way may have gone."""
        self._websockets.discard(node.name)

    def note_password(self, proxy: Proxy, error: ProxyPassword) -> None:
        """A proxy did not take ours."""
        self._refused[proxy] = (asyncio.get_running_loop().time() + PASSWORD_AGAIN_S, str(error))

    def check_password(self, proxy: Proxy) -> None:
        """ProxyPassword if it did not take ours a moment ago."""
        until, text = self._refused.get(proxy, (0.0, ""))
        if asyncio.get_running_loop().time() < until:
            raise ProxyPassword(text)

    def _checked(self) -> ssl.SSLContext:
        """Chain checked against system roots and the CA file; the name is checked by `check_certificate`."""
        if self._verifying is None:
            context = ssl.create_default_context()
            context.check_hostname = False
            if self.ca_file:
                try:
                    context.load_verify_locations(cafile=self.ca_file)
                except (OSError, ssl.SSLError) as error:
                    raise RelayError(f"CA file {self.ca_file} cannot be used: {error}") from None
            self._verifying = context
        return self._verifying

    def _unchecked(self) -> ssl.SSLContext:
        """Nothing checked by OpenSSL: pins are checked after the handshake, InsecureForTests not at all."""
        if self._trusting is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._trusting = context
        return self._trusting
