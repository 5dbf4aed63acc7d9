"""Fuzz HTTP/2: frames of a hostile server against our client half, and the reverse.

The first byte picks the half. The client has a request open whose body waits for a window, so that
every kind of frame has something to act on.
"""

from __future__ import annotations

from meshnode.wire.h2 import ClientH2, Data, ServerH2

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    half: ClientH2 | ServerH2
    if head[0] & 1:
        half = ServerH2()
        body = _PREFACE + body if head[0] & 2 else body
    else:
        half = ClientH2("hs.example")
        half.request("POST", "/machine/map", [("ts-lb", "x")], b"z" * 100_000)
        half.request("GET", "/")
    half.to_send()
    step = 1 + (head[0] >> 2) * 16
    for start in range(0, len(body), step):
        for event in half.receive(body[start : start + step]):
            if isinstance(event, Data):
                half.consumed(event.stream, event.credit)
        half.to_send()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def conversation() -> tuple[bytes, bytes]:
    """Genuine bytes of a client and of a server."""
    client, server = ClientH2("hs.example"), ServerH2()
    ident = client.request("POST", "/machine/register", [("ts-lb", "x")], b"{}")
    up = client.to_send()
    server.receive(up)
    server.respond(ident, 200, [("content-type", "application/json")], b'{"MachineAuthorized":true}')
    return up, server.to_send()


_UP, _DOWN = conversation()
SEEDS = [
    b"\xfc" + _DOWN,
    b"\xfd" + _UP,
    b"\xff" + _UP[len(_PREFACE) :],
    b"\xfc" + frame(4, 0, 0) + frame(6, 0, 0, bytes(8)) + frame(7, 0, 0, bytes(8) + b"bye"),
    b"\xfc" + frame(4, 0, 0, b"\0\4\0\0\0\1") + frame(8, 0, 1, b"\0\0\xff\xff") + frame(3, 0, 1, bytes(4)),
    b"\xfc" + frame(4, 0, 0) + frame(1, 4, 1, b"\x88") + frame(0, 1, 1, b"body") + frame(9, 4, 1, b"\x88"),
    b"\xfc" + frame(4, 0, 0) + frame(5, 4, 1, b"\0\0\0\2\x88") + frame(2, 0, 1, bytes(5)),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("h2_frames", target, SEEDS)
