"""The exception tree, and how its messages speak.

Every message says what happened, with whom, and what to try, in one line, without a key or a
token. `exit_code` is what a command ends with; docs/reference/errors.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MeshError(Exception):
    """Root of everything meshnode raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(MeshError):
    """A setting is wrong; the message names the setting, its value and its source."""

    exit_code = 2


class KeyFormatError(MeshError, ValueError):
    """Text that should be a key is not; the message never repeats it."""

    exit_code = 2


class StateError(MeshError):
    """The state directory cannot be read, written or locked."""

    exit_code = 3


class AuthError(MeshError):
    """The control server answered, and will not have us."""

    exit_code = 10


class LoginRequired(AuthError):
    """A human must visit `url`; no key was given, or the server ignored it."""

    exit_code = 11

    def __init__(self, message: str, url: str = "") -> None:
        super().__init__(message)
        self.url = url


class KeyRejected(AuthError):
    """The auth key is unknown, malformed, used up, revoked or not allowed these tags."""

    exit_code = 12


class KeyExpired(AuthError):
    """The auth key, or this node's key, is past its date."""

    exit_code = 13


class MachineNotApproved(AuthError):
    """An administrator has to approve this machine first."""

    exit_code = 14


class ControlError(MeshError):
    """The control server cannot be reached or does not behave as one."""

    exit_code = 20


class CertificateError(ControlError):
    """A TLS certificate is not trusted; never retried without verification."""

    exit_code = 21


class NotAControlServer(ControlError):
    """Something answered, but it is no control server."""

    exit_code = 22


class VersionRejected(ControlError):
    """The server refuses our capability version."""

    exit_code = 23


class ProxyError(ControlError, OSError):
    """The HTTP proxy on the way is out of reach, or does not let us through."""

    exit_code = 24


class ProxyPassword(ProxyError):
    """The proxy wants a user name and password, or others than it was given."""


class RelayError(MeshError):
    """A relay cannot be reached or refused us."""

    exit_code = 25


class HandoffError(MeshError):
    """A graceful upgrade could not be completed; the old process goes on."""

    exit_code = 26


class ProtocolError(MeshError):
    """Bytes that break a protocol's rules."""

    exit_code = 30


class LocalProtocolError(ProtocolError):
    """We used a protocol core wrongly: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class DialError(MeshError, OSError):
    """A connection inside the tailnet could not be made."""

    exit_code = 40


class NameNotFound(DialError):
    """No node of this tailnet has that name; `near` holds the nearest ones."""

    exit_code = 41

    def __init__(self, message: str, near: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.near = tuple(near)


class PeerOffline(DialError):
    """The peer is known, but nothing reaches it."""

    exit_code = 42


class Refused(DialError, ConnectionRefusedError):
    """The peer answered: nothing listens on that port."""

    exit_code = 43


class AccessDenied(DialError, PermissionError):
    """The tailnet's policy forbids it."""

    exit_code = 44


class TimedOut(DialError, TimeoutError):
    """No answer within the time allowed."""

    exit_code = 45


class NotReady(MeshError, TimeoutError):
    """The node did not become ready in the time given; the message says what it waited for."""

    exit_code = 46


class ListenError(MeshError, OSError):
    """A port, of the tailnet or of this machine, cannot be listened on."""

    exit_code = 50


class NoRunningNode(MeshError):
    """A command needs a running node and found none in the state directory."""

    exit_code = 51


class EngineError(MeshError):
    """An invariant of ours broke: always a bug report."""

    exit_code = 70
