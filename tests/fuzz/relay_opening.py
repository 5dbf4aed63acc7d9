"""Fuzz what a relay's client hears first: the answer in HTTP or none, the greeting, the admission.

The first byte picks how the client began (ordinarily, fast, by WebSocket), what stands before the input, and how the
whole is cut into reads. However it is cut, the client comes to the same conclusions.
"""

from __future__ import annotations

from base64 import b64encode

from nacl.bindings import crypto_box

from meshnode.base.errors import RemoteProtocolError
from meshnode.relay.opening import Opening, UpgradeRefused
from meshnode.wire import derp
from meshnode.wire.websocket import NONCE_LEN, accept_of
from tests.fuzz.derp import CLIENT, NONCE, SERVER, TO_CLIENT

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
WEBSOCKET = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {accept_of(b64encode(bytes(NONCE_LEN)).decode())}\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
).encode()
GREETING = TO_CLIENT[0]
Outcome = tuple[bytes, int, bool, bool, list[tuple[int, bytes]]]
"""(sent, status of a refusal or 0, upgraded, admitted, other frames)"""


def hear(reads: list[bytes], *, told: bool, by_websocket: bool) -> Outcome | None:
    """What a client concludes from these reads; None: the relay breaks the rules."""
    server = SERVER.public() if told else None
    opening = Opening(CLIENT, "relay", "", entropy=bytes, by_websocket=by_websocket, told=server)
    frames, others = derp.Frames(derp.TO_CLIENT), []
    sent = opening.start()
    try:
        for data in reads:
            rest = data if opening.is_upgraded else opening.receive(data) or b""
            for kind, payload in frames.receive(rest):
                if kind == derp.SERVER_KEY:
                    sent += opening.greet(payload)
                elif kind == derp.SERVER_INFO:
                    opening.admit(payload)
                else:
                    others.append((kind, payload))
    except UpgradeRefused as refused:
        return sent, refused.status, False, False, []
    except RemoteProtocolError:
        return None
    return sent, 0, opening.is_upgraded, opening.info is not None, others


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    told, by_websocket, step = bool(head[0] & 4), bool(head[0] & 8), 1 + (head[0] >> 4) * 16
    before = (WEBSOCKET if by_websocket else SWITCH) if not told or by_websocket else b""
    match head[0] & 3:
        case 0:
            whole = body
        case 1:
            whole = before + body
        case 2:
            whole = before + GREETING + body
        case _:
            box = crypto_box(body, NONCE, CLIENT.public().raw, SERVER.reveal())
            whole = before + GREETING + derp.emit_frame(derp.SERVER_INFO, NONCE + box)
    outcome = hear([whole[at : at + step] for at in range(0, len(whole), step)], told=told, by_websocket=by_websocket)
    at_once = hear([whole] if whole else [], told=told, by_websocket=by_websocket)
    assert outcome == at_once, f"the cut into reads changed the conclusion: {outcome} {at_once}"


SEEDS = [
    bytes([flags]) + body
    for flags in (0, 4, 8, 0x14, 0x20)
    for body in (
        SWITCH + b"".join(TO_CLIENT),
        b"".join(TO_CLIENT),
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b'\3{"version":2}',
    )
] + [bytes([flags]) + b'{"version":2,"TokenBucketBytesPerSecond":1000}' for flags in (3, 7, 11)]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("relay_opening", target, SEEDS)
