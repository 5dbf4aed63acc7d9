"""The server's half of SOCKS5 (RFC 1928) and its user/password sub-negotiation (RFC 1929).

Bytes in, at most one Request out, bytes to send. States: GREETING → (PASSWORD) → REQUEST → WAITING
(the caller dials, then answers with `reply`) → DONE. A client that breaks a rule is a
RemoteProtocolError; whatever `to_send` holds then is still its due answer. Only CONNECT is offered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from meshnode.base.addr import Endpoint, unmap
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError

VERSION: Final = 5
PASSWORD_VERSION: Final = 1
NO_AUTH: Final = 0x00
USER_PASSWORD: Final = 0x02
NONE_ACCEPTABLE: Final = 0xFF
CONNECT: Final = 1
WAITING_MAX: Final = 64 * 1024
"""Bytes a client may send after its request before we answered it."""
_ANYWHERE: Final = Endpoint(IPv4Address(0), 0)

Check = Callable[[bytes, bytes], bool]
"""(user, password) → whether they are good; compares in constant time."""


class Reply(IntEnum):
    """The REP field. Source: RFC 1928 section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class _State(Enum):
    GREETING = 1
    PASSWORD = 2
    REQUEST = 3
    WAITING = 4
    DONE = 5


@dataclass(frozen=True, slots=True)
class Request:
    """A CONNECT: where to. `host` is a name, or an address in text."""

    host: str
    port: int


class ServerSocks5:
    """One client's negotiation. `check` given: user and password are required."""

    def __init__(self, check: Check | None = None) -> None:
        self._check = check
        self._state = _State.GREETING
        self._buffer = bytearray()
        self._out = bytearray()

    def receive(self, data: bytes) -> Request | None:
        """Take bytes; returns the request once it is complete. RemoteProtocolError: send, then close."""
        if self._state is _State.DONE:
            raise LocalProtocolError("bytes for a negotiation that is over")
        self._buffer += data
        if self._state is _State.WAITING:
            if len(self._buffer) > WAITING_MAX:
                raise RemoteProtocolError("the client sends before its request was answered")
            return None
        if self._state is _State.GREETING and not self._greeting():
            return None
        if self._state is _State.PASSWORD and not self._password():
            return None
        return self._request()

    def to_send(self) -> bytes:
        """What is due to the client; empty if nothing."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def reply(self, code: Reply, bound: Endpoint = _ANYWHERE) -> bytes:
        """Answer the request; returns what the client had sent beyond it (data for the target)."""
        if self._state is not _State.WAITING:
            raise LocalProtocolError("there is no request to answer")
        self._out += _emit_reply(code, bound)
        self._state = _State.DONE
        early = bytes(self._buffer)
        self._buffer.clear()
        return early

    # --- states; each returns False while it needs more bytes ---

    def _greeting(self) -> bool:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise RemoteProtocolError(f"not SOCKS5: the first byte is {buffer[0]:#04x}")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return False
        offered = bytes(buffer[2 : 2 + buffer[1]])
        del buffer[: 2 + len(offered)]
        wanted = NO_AUTH if self._check is None else USER_PASSWORD
        if wanted not in offered:
            self._out += bytes([VERSION, NONE_ACCEPTABLE])
            tip = "a user and a password" if self._check else "the method without authentication"
            raise RemoteProtocolError(f"the client does not offer {tip}")
        self._out += bytes([VERSION, wanted])
        self._state = _State.REQUEST if self._check is None else _State.PASSWORD
        return True

    def _password(self) -> bool:
        assert self._check is not None
        buffer = self._buffer
        if buffer and buffer[0] != PASSWORD_VERSION:
            raise RemoteProtocolError("the client's password message has an unknown version")
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return False
        user_end = 2 + buffer[1]
        end = user_end + 1 + buffer[user_end]
        if len(buffer) < end:
            return False
        user, password = bytes(buffer[2:user_end]), bytes(buffer[user_end + 1 : end])
        del buffer[:end]
        good = self._check(user, password)
        self._out += bytes([PASSWORD_VERSION, 0 if good else 1])
        if not good:
            raise RemoteProtocolError("wrong user or password")
        self._state = _State.REQUEST
        return True

    def _request(self) -> Request | None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise RemoteProtocolError("the client's request has an unknown version")
        if len(buffer) < 4:
            return None
        command, kind = buffer[1], buffer[3]
        if command != CONNECT:
            self._refuse(Reply.COMMAND_NOT_SUPPORTED, f"command {command} is not offered; only CONNECT is")
        size = self._address_size(kind)
        if size is None or len(buffer) < 4 + size + 2:
            return None
        raw = bytes(buffer[4 : 4 + size])
        port = int.from_bytes(buffer[4 + size : 6 + size], "big")
        del buffer[: 6 + size]
        host = self._host(kind, raw)
        if port == 0:
            self._refuse(Reply.GENERAL_FAILURE, "port 0 cannot be connected to")
        self._state = _State.WAITING
        return Request(host, port)

    def _address_size(self, kind: int) -> int | None:
        """Bytes of the address field; None: its length is still to come."""
        if kind == 1:
            return 4
        if kind == 4:
            return 16
        if kind != 3:
            self._refuse(Reply.ADDRESS_NOT_SUPPORTED, f"address type {kind} is unknown")
        return 1 + self._buffer[4] if len(self._buffer) > 4 else None

    def _host(self, kind: int, raw: bytes) -> str:
        if kind == 1:
            return str(IPv4Address(raw))
        if kind == 4:
            return str(unmap(IPv6Address(raw)))
        name = raw[1:]
        if not name or not name.isascii() or any(byte <= 0x20 or byte == 0x7F for byte in name):
            self._refuse(Reply.GENERAL_FAILURE, "the host name is empty or holds odd characters")
        return name.decode("ascii")

    def _refuse(self, code: Reply, reason: str) -> None:
        self._out += _emit_reply(code, _ANYWHERE)
        self._state = _State.DONE
        raise RemoteProtocolError(reason)


def _emit_reply(code: Reply, bound: Endpoint) -> bytes:
    kind = b"\x01" if bound.ip.version == 4 else b"\x04"
    return bytes([VERSION, code, 0]) + kind + bound.ip.packed + bound.port.to_bytes(2, "big")
