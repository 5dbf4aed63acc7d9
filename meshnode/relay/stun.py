"""StunServer: answers binding requests on UDP, for clients that look for their public address.

Only requests of the form this network's clients send are answered, each with one datagram not longer than the
question: nothing here amplifies. Sources are told over both families; counters as derper names them.
Source: docs/protocol/paths.md 3; RFC 5389.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from ipaddress import ip_address
from typing import Any, Final

from meshnode.base.addr import Endpoint
from meshnode.base.errors import ListenError, RemoteProtocolError
from meshnode.wire import stun

RCVBUF: Final = 1 << 20


class StunServer(asyncio.DatagramProtocol):
    """One UDP socket. Made by `start`, ended by `close`."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._transport: asyncio.DatagramTransport
        self.port = 0

    @classmethod
    async def start(cls, host: str = "127.0.0.1", port: int = 3478) -> StunServer:
        """Listen on an IP address; `::` takes both families. ListenError if it cannot be had."""
        server = cls()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RCVBUF)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
            sock.bind((host, port))
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            reason = (error.strerror or str(error)).lower()
            raise ListenError(
                f"stun: UDP {where} cannot be listened on: {reason}; choose another --stun, or --stun off"
            ) from None
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, sock=sock)
        server._transport = transport
        server.port = sock.getsockname()[1]
        return server

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """One question, one answer or none."""
        try:
            txid = stun.parse_request(data)
        except RemoteProtocolError:
            self.counters["not_stun"] += 1
            return
        ip = ip_address(str(addr[0]).partition("%")[0])
        if ip.version == 6 and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        self.counters["ipv4" if ip.version == 4 else "ipv6"] += 1
        self.counters["success"] += 1
        self._transport.sendto(stun.emit_response(txid, Endpoint(ip, addr[1])), addr)

    def error_received(self, exc: Exception) -> None:
        """A client that is gone."""
        self.counters["write_error"] += 1

    def close(self) -> None:
        """Stop listening."""
        self._transport.close()
