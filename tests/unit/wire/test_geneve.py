"""The header before DISCO by a peer relay: there and back, and what is none."""

from __future__ import annotations

import random

from meshnode.wire import geneve
from meshnode.wire.disco import MAGIC

PACKET = MAGIC + bytes(80)


def test_there_and_back() -> None:
    for vni in (1, 0x0A0B0C, geneve.VNI_MAX):
        for is_control in (False, True):
            relayed = geneve.Relayed(vni, is_control, PACKET)
            data = geneve.emit(relayed)
            assert geneve.is_geneve(data) and geneve.parse(data) == relayed
    assert not geneve.is_geneve(PACKET)


def test_layout() -> None:
    assert geneve.emit(geneve.Relayed(0x0A0B0C, True, b"")).hex() == "00807a110a0b0c00"


def test_what_is_no_header_of_ours() -> None:
    good = geneve.emit(geneve.Relayed(7, False, PACKET))
    for at, value in ((0, 0x40), (0, 1), (1, 0x40), (1, 1), (2, 0x65), (3, 0x12), (6, 0), (7, 1)):
        bad = bytearray(good)
        bad[at] = value
        assert geneve.parse(bytes(bad)) is None, at
    for length in range(geneve.HEADER_LEN):
        assert geneve.parse(good[:length]) is None


def test_random_bytes_never_raise() -> None:
    dice = random.Random(1)
    for _ in range(5000):
        relayed = geneve.parse(dice.randbytes(dice.randrange(24)))
        assert relayed is None or 0 < relayed.vni <= geneve.VNI_MAX
