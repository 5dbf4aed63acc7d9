"""One ICMPv4 echo without privilege, where the system allows such sockets (net.ipv4.ping_group_range).

Source: RFC 792; docs/protocol/paths.md 4.1.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final

from meshnode.base.addr import IP

_ECHO: Final = 8
_ECHO_REPLY: Final = 0
_HEAD: Final = struct.Struct("!BBHHH")
_READ_SIZE: Final = 1500


class NotAllowed(Exception):
    """The system does not let this process send echoes."""


async def measure_echo(ip: IP, payload: bytes, now: Callable[[], float]) -> float:
    """Seconds until the answer. OSError; NotAllowed. The caller bounds the wait.

    The kernel fills in checksum and identifier, and hands us only answers to our own.
    """
    loop = asyncio.get_running_loop()
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except PermissionError:
        raise NotAllowed from None
    with sock:
        sock.setblocking(False)
        sock.connect((str(ip), 0))
        sent_at = now()
        await loop.sock_sendall(sock, _HEAD.pack(_ECHO, 0, 0, 0, 1) + payload)
        while True:
            answer = await loop.sock_recv(sock, _READ_SIZE)
            if len(answer) >= _HEAD.size and answer[0] == _ECHO_REPLY and answer[_HEAD.size :] == payload:
                return now() - sent_at
