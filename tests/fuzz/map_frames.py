"""Fuzz the cutting and inflating of map frames. The first byte is the size of the reads."""

from __future__ import annotations

from meshnode.wire.mapstream import MapFrames, deflate, emit_frame, inflate


def target(data: bytes) -> None:
    """One input."""
    step = 1 + (data[0] if data else 0)
    frames, body = MapFrames(), data[1:]
    for start in range(0, len(body), step):
        for payload in frames.receive(body[start : start + step]):
            inflate(payload)
    inflate(body)


SEEDS = [
    b"\x03" + emit_frame(b'{"KeepAlive":true}') * 2,
    b"\x40" + emit_frame(deflate(b'{"Peers":[]}' * 40)),
    b"\x40" + deflate(bytes(100_000)),
    b"\0\xff\xff\xff\xff",
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("map_frames", target, SEEDS)
