"""Fuzz target: a SOCKS5 client's bytes, cut at every place the input says."""

from __future__ import annotations

from meshnode.wire.socks5 import Reply, ServerSocks5
from tests.fuzz.driver import run


def target(data: bytes) -> None:
    """First byte: guarded or not, and how the rest is cut. In pieces and whole must agree."""
    if not data:
        return
    check = (lambda user, password: user == password) if data[0] & 1 else None
    step = 1 + (data[0] >> 1)
    whole = _outcome(ServerSocks5(check), [data[1:]])
    pieces = _outcome(ServerSocks5(check), [data[at : at + step] for at in range(1, len(data), step)])
    assert whole == pieces, (whole, pieces)


def _outcome(core: ServerSocks5, parts: list[bytes]) -> tuple[str, bytes]:
    from meshnode.base.errors import RemoteProtocolError

    found = None
    try:
        for part in parts:
            found = core.receive(part) or found
    except RemoteProtocolError as error:
        return f"refused: {error}", core.to_send()
    if found is None:
        return "waiting", core.to_send()
    early = core.reply(Reply.SUCCEEDED)
    return f"{found} {early!r}", core.to_send()


SEEDS = [
    b"\x00\x05\x01\x00\x05\x01\x00\x03\x06worker\x0b\xb9GET /",
    b"\x02\x05\x01\x00\x05\x01\x00\x01\x64\x40\x00\x01\x00\x50",
    b"\x04\x05\x02\x00\x02\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50",
    b"\x01\x05\x01\x02\x01\x01a\x01a\x05\x01\x00\x03\x01w\x00\x50",
    b"\x03\x05\x01\x02\x01\x01a\x01b",
]

if __name__ == "__main__":
    run("socks5", target, SEEDS)
