"""Fuzz STUN: requests as a server reads them, responses as a client does; an answer is read as it was meant."""

from __future__ import annotations

from meshnode.base.addr import Endpoint
from meshnode.base.errors import RemoteProtocolError
from meshnode.wire import stun

TXID = bytes(range(1, 13))


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    if head[0] & 1:
        txid = stun.parse_request(body)
        assert len(txid) == stun.TXID_LEN
        return
    try:
        txid, seen = stun.parse_response(body)
    except RemoteProtocolError:
        return
    assert stun.is_stun(body)
    assert stun.parse_response(stun.emit_response(txid, seen)) == (txid, seen)


SEEDS = [
    b"\1" + stun.emit_request(TXID),
    b"\0" + stun.emit_response(TXID, Endpoint.parse("203.0.113.5:50000")),
    b"\0" + stun.emit_response(TXID, Endpoint.parse("[2001:db8::5]:1")),
    b"\0" + bytes.fromhex("0101000c2112a4420102030405060708090a0b0c000100080001c350cb007105"),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("stun", target, SEEDS)
