"""Listening sockets that systemd hands over (sd_listen_fds(3)).

Used by a relay's Station when no address to listen on is given.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from meshnode.base.errors import ListenError

LISTEN_FDS_START: Final = 3


def has_inherited() -> bool:
    """Whether systemd handed sockets to this very process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """(name, listening socket) of what systemd handed over (sd_listen_fds(3)); none otherwise.

    ListenError if one is no listening TCP socket.
    """
    if not has_inherited():
        return []
    try:
        count = int(os.environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[tuple[str, socket.socket]] = []
    try:
        for number in range(LISTEN_FDS_START, LISTEN_FDS_START + count):
            place = number - LISTEN_FDS_START
            found.append((names[place] if place < len(names) else "", _adopted(number)))
    except BaseException:
        for _, each in found:
            each.close()
        raise
    return found


def _adopted(number: int) -> socket.socket:
    try:
        given = socket.socket(fileno=number)
    except OSError as error:
        raise ListenError(f"descriptor {number} of LISTEN_FDS is no socket: {error.strerror}") from None
    os.set_inheritable(number, False)
    if (
        given.family not in (socket.AF_INET, socket.AF_INET6)
        or given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 1
    ):
        given.close()
        raise ListenError(f"descriptor {number} of LISTEN_FDS is no listening TCP socket; use ListenStream=PORT")
    return given
