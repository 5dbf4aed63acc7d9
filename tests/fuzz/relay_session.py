"""Fuzz the first words of a relay's client: HTTP, the upgrade, WebSocket's handshake, the login.

The first byte picks what stands before the input (nothing, an upgrade, an upgrade and a genuine box around the input)
and how the whole is cut into reads. However it is cut, the answers are the same.
"""

from __future__ import annotations

from nacl.bindings import crypto_box

from meshnode.base.errors import RemoteProtocolError
from meshnode.relay.session import Session, Want
from meshnode.wire import derp
from tests.fuzz.derp import CLIENT, NONCE, SERVER, client_info

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
FAST = UPGRADE + b"Derp-Fast-Start: 1\r\n\r\n"
WEBSOCKET = (
    b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: derp\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
READ_MAX = 16 << 10
"""What the C core hands over at once, at most."""
Outcome = tuple[bytes, Want, bytes, bytes]
"""(sent, what is wanted in the end, client's key, frames behind the login)"""


def talk(reads: list[bytes]) -> Outcome | None:
    """What a session says and wants after these reads; None: it cuts the client off."""
    session, sent = Session(SERVER), b""
    waiting = list(reads)
    while waiting:
        data = waiting.pop(0)
        try:
            want = session.receive(data)
        except RemoteProtocolError:
            return None
        sent += bytes(session.out)
        session.out.clear()
        if want is Want.WEBSOCKET:
            sent += session.greet()
            waiting[:0] = [session.rest] if session.rest else []  # as if it were unwrapped already
        elif want is Want.ADMIT:
            assert session.info is not None
            frame = session.create_server_info(NONCE)
            assert frame[0] == derp.SERVER_INFO
            return sent, want, session.client.raw, session.rest + b"".join(waiting)
        elif want is Want.CLOSE:
            return sent, want, b"", b""
    return sent, Want.READ, b"", b""


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    step = 1 + (head[0] >> 3) * 16
    match head[0] & 7:
        case 0 | 1:
            whole = body
        case 2:
            whole = UPGRADE + body
        case 3:
            whole = FAST + body
        case 4:
            whole = WEBSOCKET + body
        case 5:
            whole = FAST + client_info() + body
        case 6:
            login = CLIENT.public().raw + NONCE + crypto_box(body, NONCE, SERVER.public().raw, CLIENT.reveal())
            whole = FAST + derp.emit_frame(derp.CLIENT_INFO, login)
        case _:
            whole = b"GET /" + body
    outcome = talk([whole[at : at + step] for at in range(0, len(whole), step)])
    at_once = talk([whole[at : at + READ_MAX] for at in range(0, len(whole), READ_MAX)])
    assert outcome == at_once, f"the cut into reads changed the answer: {outcome} {at_once}"


SEEDS = [
    b"\0" + FAST + client_info() + derp.emit_preferred(True),
    b"\x29" + UPGRADE + b"\r\n" + client_info(),
    b"\0" + WEBSOCKET + client_info(),
    b"\1GET / HTTP/1.1\r\n\r\nGET /robots.txt HTTP/1.1\r\n\r\nHEAD /derp/probe HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"\1GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: abc.1\r\n\r\n",
    b"\2Derp-Fast-Start: 1\r\nIdeal-Node: 900b\r\n\r\n",
    b"\3" + client_info()[:40],
    b"\4" + client_info(),
    b"\5" + derp.emit_send(bytes(32), b"hello"),
    b'\6{"version":2,"CanAckPings":true,"meshKey":"' + b"0" * 64 + b'"}',
    b"\7bootstrap-dns?q=x HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    b"\7derp HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("relay_session", target, SEEDS)
