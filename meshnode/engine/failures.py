"""Errno of a connection, or of a ping, as the exception that says what it means here."""

from __future__ import annotations

import errno
import os

from meshnode.base.addr import IP, Endpoint
from meshnode.base.errors import AccessDenied, DialError, PeerOffline, Refused, TimedOut

_FAILURES: dict[int, tuple[type[DialError], str]] = {
    errno.ECONNREFUSED: (Refused, "refused the connection; nothing listens on that port"),
    errno.ETIMEDOUT: (TimedOut, "did not answer in time; is it online, and does its policy allow this port?"),
    errno.EHOSTUNREACH: (PeerOffline, "cannot be reached; is it online?"),
    errno.ENETUNREACH: (PeerOffline, "belongs to no node of this tailnet"),
    errno.EACCES: (AccessDenied, "is closed to us by the tailnet's policy"),
    errno.ENETDOWN: (DialError, "was not reached; this node is shutting down"),
}


def dial_error(number: int, target: Endpoint) -> DialError:
    """The exception of a failed connect, its errno set as OSError's would be."""
    kind, text = _FAILURES.get(number, (DialError, f"could not be reached: {os.strerror(number)}"))
    error = kind(f"{target} {text}")
    error.errno = number
    return error


def ping_error(number: int, ip: IP) -> DialError:
    """The exception of an echo request that did not leave."""
    kind, text = _FAILURES.get(number, (DialError, f"could not be pinged: {os.strerror(number)}"))
    error = kind(f"{ip} {text}")
    error.errno = number
    return error
