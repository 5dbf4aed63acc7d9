"""Fuzz relay frames and both ends of the login.

The first byte picks the role and how the rest is cut into reads; in the sealed stages the input is the JSON
inside a genuine box, so that what lies behind the cipher is reached.
"""

from __future__ import annotations

from nacl.bindings import crypto_box

from meshnode.base.bounds import DERP_CLIENT_INFO_MAX
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import NodePrivate
from meshnode.wire import derp

CLIENT, SERVER = NodePrivate(bytes(range(0x01, 0x21))), NodePrivate(bytes(range(0x21, 0x41)))
NONCE = bytes(24)
PARSERS = {
    derp.RECV_PACKET: derp.split_packet,
    derp.SEND_PACKET: derp.split_packet,
    derp.PEER_GONE: derp.parse_gone,
    derp.PEER_PRESENT: derp.parse_present,
    derp.PING: derp.parse_ping,
    derp.NOTE_PREFERRED: derp.parse_preferred,
    derp.RESTARTING: derp.parse_restarting,
}


def feed(known: frozenset[int], limit: int, data: bytes, step: int) -> None:
    """Cut, parse, and compare with the same bytes in one read."""
    got = collect(derp.Frames(known, limit), [data[at : at + step] for at in range(0, len(data), step)])
    assert got == collect(derp.Frames(known, limit), [data]), "the cut into reads changed the frames"
    for kind, payload in got:
        parse = PARSERS.get(kind)
        if parse is not None:
            try:
                parse(payload)
            except RemoteProtocolError:
                continue


def collect(frames: derp.Frames, reads: list[bytes]) -> list[tuple[int, bytes]]:
    """What a reader hands out before the stream ends or is refused."""
    out: list[tuple[int, bytes]] = []
    try:
        for data in reads:
            out += frames.receive(data)
    except RemoteProtocolError:
        return []
    return out


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    step = 1 + (head[0] >> 3) * 16
    client, server = derp.ClientLogin(CLIENT), derp.ServerLogin(SERVER)
    match head[0] & 7:
        case 0 | 1:
            feed(derp.TO_CLIENT, 1 << 20, body, step)
        case 2 | 3:
            feed(derp.TO_SERVER, DERP_CLIENT_INFO_MAX, body, step)
        case 4:
            client.consume_server_key(body)
        case 5:
            server.consume_client_info(body)
        case 6:
            box = crypto_box(body, NONCE, SERVER.public().raw, CLIENT.reveal())
            server.consume_client_info(CLIENT.public().raw + NONCE + box)
        case _:
            client.server = SERVER.public()
            client.consume_server_info(NONCE + crypto_box(body, NONCE, CLIENT.public().raw, SERVER.reveal()))


def client_info() -> bytes:
    """A genuine ClientInfo frame."""
    login = derp.ClientLogin(CLIENT)
    login.server = SERVER.public()
    return login.create_client_info(NONCE)


KEY = bytes(range(32))
TO_CLIENT = [
    derp.ServerLogin(SERVER).create_server_key(),
    derp.emit_recv(KEY, b"hello"),
    derp.emit_frame(0x7F, b"abc"),
    derp.emit_gone(KEY, 1),
    derp.emit_frame(derp.PEER_PRESENT, KEY + bytes(19)),
    derp.emit_restarting(1, 2),
]
TO_SERVER = [
    client_info(),
    derp.emit_preferred(True),
    derp.emit_send(KEY, b"x"),
    derp.emit_frame(derp.PING, bytes(8)),
]
SEEDS = [
    b"\0" + b"".join(TO_CLIENT),
    b"\x21" + b"".join(reversed(TO_CLIENT)),
    b"\x12" + b"".join(TO_SERVER),
    b"\x03\x04\xff\xff\xff\xff",
    b"\4" + derp.MAGIC + KEY,
    b"\5" + client_info()[derp.HEADER_LEN :],
    b'\6{"version":2,"CanAckPings":true,"meshKey":"' + b"0" * 64 + b'","IsProber":false,"AppName":"x"}',
    b'\7{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":2000}',
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("derp", target, SEEDS)
