"""Fuzz the control channel: handshake frames, records, the early payload.

The first byte picks the stage and how the rest is cut into reads. In the sealed stage the input is
plaintext that the server seals, so that the early payload's parser is reached behind the cipher.
"""

from __future__ import annotations

from meshnode.base.keys import MachinePrivate
from meshnode.wire.control import Channel, ClientChannel, accept, emit_early, emit_error, parse_handshake_header

CLIENT, SERVER = MachinePrivate(b"\x11" * 32), MachinePrivate(b"\x33" * 32)


def pair() -> tuple[ClientChannel, Channel, bytes]:
    """(client, server, the server's answer)."""
    client = ClientChannel(CLIENT, SERVER.public(), 131, lambda n: b"\x22" * n)
    _, _, answer, server = accept(client.initiation, SERVER, lambda n: b"\x44" * n)
    return client, server, answer


def feed(channel: Channel, data: bytes, step: int) -> None:
    """Give the channel `data` in reads of `step` bytes."""
    for start in range(0, len(data), step):
        channel.receive(data[start : start + step])


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    step = 1 + (head[0] >> 3) * 8
    client, server, answer = pair()
    match head[0] & 7:
        case 0:
            feed(client, body, step)
        case 1:
            client.receive(answer)
            feed(client, body, step)
        case 2 | 3:
            client.receive(answer)
            feed(client, server.seal(body), step)
        case 4:
            accept(body, SERVER, lambda n: b"\x44" * n)
        case 5:
            parse_handshake_header(body.decode("latin-1"))
        case 6:
            feed(server, client_records(client, answer, body), step)
        case _:
            whole = bytearray(answer + server.seal(emit_early(b"{}")))
            for at, value in zip(body[::2], body[1::2], strict=False):
                whole[at % len(whole)] ^= value
            feed(client, bytes(whole), step)


def client_records(client: ClientChannel, answer: bytes, body: bytes) -> bytes:
    """Genuine records with `body` between them."""
    client.receive(answer)
    return client.seal(body) + body + client.seal(b"tail")


SEEDS = [
    b"\0" + pair()[2],
    b"\1\x04\x00\x10" + bytes(16),
    b"\2" + emit_early(b'{"nodeKeyChallenge":"chalpub:00"}') + b"PRI * HTTP/2.0",
    b"\3\xff\xff\xffTS\xff\xff\xff\xff",
    b"\4" + pair()[0].initiation,
    b"\5" + pair()[0].header_value.encode(),
    b"\6hello",
    b"\7\x01\x02\x03\x04",
    b"\0" + emit_error("no"),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("noise_frames", target, SEEDS)
