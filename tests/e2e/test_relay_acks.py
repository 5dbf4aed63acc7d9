"""A busy connection to our relay costs an acknowledgement for every second frame, not for each."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

from meshnode.base.keys import NodePrivate
from meshnode.wire import derp
from tests.e2e.test_relay import CLOCK, LIMIT_S, Bed, run

STRETCH, FEW = 64, 48
UNACKED_AT, SEGS_IN_AT, TCP_INFO_LEN = 24, 140, 144
PACKET = b"\x04" + bytes(63)


class Caller:
    """A client that reads and writes frames by blocking calls, so that they follow each other as fast as they can."""

    def __init__(self, port: int) -> None:
        private = NodePrivate.generate(CLOCK.entropy)
        self.key = private.public().raw
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass
        login = derp.ClientLogin(private)
        login.consume_server_key(self.frame(derp.SERVER_KEY))
        self.socket.sendall(login.create_client_info(CLOCK.entropy(24)))
        self.frame(derp.SERVER_INFO)

    def frame(self, kind: int) -> bytes:
        head = self.file.read(5)
        assert head[0] == kind
        return self.file.read(int.from_bytes(head[1:], "big"))

    def counted(self, at: int) -> int:
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_LEN)
        return int(struct.unpack_from("=I", info, at)[0])

    def send(self, to: Caller) -> None:
        self.socket.sendall(derp.emit_send(to.key, PACKET))
        assert to.frame(derp.RECV_PACKET) == self.key + PACKET

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def acks_of_stretches(a: Caller, b: Caller, by: float) -> list[int]:
    """How many acknowledgements a stretch of frames cost, until it was few."""
    for _ in range(3):  # as after a pause: the kernel acknowledges at once
        a.send(b)
        while a.counted(UNACKED_AT) and time.monotonic() < by:
            pass
    counts: list[int] = []
    while time.monotonic() < by and (not counts or counts[-1] > FEW):
        before = a.counted(SEGS_IN_AT)
        for _ in range(STRETCH):
            a.send(b)
        counts.append(a.counted(SEGS_IN_AT) - before)
    return counts


def test_a_busy_connection_is_acknowledged_every_second_frame() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.server()

        def talk() -> list[int]:
            a, b = Caller(server.port), Caller(server.port)
            try:
                return acks_of_stretches(a, b, time.monotonic() + LIMIT_S)
            finally:
                a.close()
                b.close()

        counts = await asyncio.to_thread(talk)
        assert counts[-1] <= FEW, counts

    run(scenario)
