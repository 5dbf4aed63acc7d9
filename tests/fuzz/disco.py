"""Fuzz DISCO: the envelope, messages behind a genuine box, and the header of a peer relay before them.

What parses must survive being emitted and parsed again.
"""

from __future__ import annotations

from nacl.bindings import crypto_box

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPrivate, NodePublic
from meshnode.wire import disco, geneve

A, B = DiscoPrivate(bytes(range(0x01, 0x21))), DiscoPrivate(bytes(range(0x21, 0x41)))
TO_B, TO_A = disco.Box(A, A.public(), B.public()), disco.Box(B, B.public(), A.public())
NONCE = bytes(24)
HERE = Endpoint.parse("192.0.2.7:41641")


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    match head[0] & 3:
        case 0:
            disco.is_disco(body)
            TO_A.open(body)
        case 1:
            sealed = crypto_box(body, NONCE, B.public().raw, A.reveal())
            check(TO_A.open(disco.MAGIC + A.public().raw + NONCE + sealed))
        case 2:
            relayed = geneve.parse(body)
            if relayed is not None:
                assert geneve.is_geneve(body) and geneve.emit(relayed) == body
                TO_A.open(relayed.packet)
        case _:
            check(disco.parse_message(body))


def check(message: disco.Message | None) -> None:
    """There and back."""
    if message is not None:
        assert disco.parse_message(disco.emit_message(message)) == message


BLOCK = disco.RelayBlock(A.public(), (A.public(), B.public()), 1, 2, 3, 4, (HERE,))
MESSAGES: list[disco.Message] = [
    disco.Ping(bytes(12), NodePublic(b"\xaa" * 32), 40),
    disco.Pong(bytes(12), HERE),
    disco.CallMeMaybe((HERE, HERE)),
    disco.Bind(disco.BIND, 1, 2, A.public(), bytes(32)),
    disco.AllocateRequest((A.public(), B.public()), 3),
    disco.CallMeMaybeVia(BLOCK),
    disco.AllocateResponse(5, BLOCK),
]
SEALED = TO_B.seal(MESSAGES[0], NONCE)
SEEDS = [
    b"\0" + SEALED,
    *(b"\1" + disco.emit_message(m) for m in MESSAGES),
    *(b"\3" + disco.emit_message(m) for m in MESSAGES),
    *(b"\2" + geneve.emit(geneve.Relayed(7, is_control, SEALED)) for is_control in (False, True)),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("disco", target, SEEDS)
