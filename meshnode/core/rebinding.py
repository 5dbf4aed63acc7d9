"""When failing UDP sockets are to be made anew: after errors in a row that a new socket may cure, ever more seldom.

Errors that say "there is no way" count too: the caller asks the system whether there is one, and a socket that fails
beside a way that works is stuck.
Source: docs/protocol/paths.md 7.1, 7.2, 8.5 row 14.
"""

from __future__ import annotations

import errno
from typing import Final

CURABLE: Final = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.ENETUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ENETDOWN,
        errno.ENOTCONN,
        errno.EPIPE,
        errno.EBADF,
        errno.EAFNOSUPPORT,
    }  # fmt: skip
)
ERRORS: Final = 3
WITHIN_S: Final = 10.0
GAP_S: Final = 5.0
GAP_MAX_S: Final = 300.0
CALM_S: Final = 60.0
"""So long without a suspicion, the gap starts anew."""


class Rebinding:
    """All instants are loop time."""

    __slots__ = ("_at", "_count", "_first_at", "_gap_s", "_last_at", "count")

    def __init__(self) -> None:
        self._count = 0
        self._first_at = -1e9
        self._last_at = -1e9
        self._at = -1e9
        self._gap_s = GAP_S
        self.count = 0
        """Renewals."""

    def suspects(self, number: int, now: float) -> bool:
        """A datagram was refused with this errno; True if it was one too many, and a renewal is not too soon."""
        if number not in CURABLE:
            return False
        if now - self._last_at > CALM_S:
            self._gap_s = GAP_S
        if now - self._first_at > WITHIN_S:
            self._count, self._first_at = 0, now
        self._count += 1
        self._last_at = now
        return self._count >= ERRORS and now - self._at >= self._gap_s

    def note(self, now: float) -> None:
        """They are renewed now. The next time has to wait longer than this one had."""
        if self._at > -1e9:
            self._gap_s = min(self._gap_s * 2, GAP_MAX_S)
        self._at = now
        self._count = 0
        self.count += 1
