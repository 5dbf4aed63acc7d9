"""What waits for one relay connection: urgent first, then data, bounded in bytes and in age."""

from __future__ import annotations

import random

from meshnode.core.lanes import DATA_AGE_S, URGENT_BYTES, Lanes


def test_urgent_goes_first() -> None:
    lanes = Lanes()
    lanes.put_data(b"data", 0.0)
    lanes.put_urgent(b"urgent")
    assert lanes.take(1000, 0.0) == b"urgentdata"


def test_too_much_data_drops_the_oldest_and_keeps_what_is_urgent() -> None:
    lanes = Lanes(10_000)
    lanes.put_urgent(b"urgent")
    for number in range(100):
        lanes.put_data(number.to_bytes(4, "big") + bytes(996), 0.0)
    got = lanes.take(1 << 20, 0.0)
    assert got[:6] == b"urgent" and got[6:10] == (90).to_bytes(4, "big") and len(got) == 10_006
    assert lanes.dropped == 90


def test_old_data_is_not_sent() -> None:
    lanes = Lanes()
    lanes.put_data(b"old", 0.0)
    lanes.put_data(b"new", DATA_AGE_S)
    assert lanes.take(1000, DATA_AGE_S + 0.1) == b"new" and lanes.dropped == 1
    assert lanes.take(1000, DATA_AGE_S + 0.1) == b"" and lanes.data_bytes == 0


def test_urgent_is_bounded_too() -> None:
    lanes = Lanes()
    for _ in range(1000):
        lanes.put_urgent(bytes(1000))
    assert lanes.urgent_bytes <= URGENT_BYTES and lanes.dropped_urgent == 1000 - URGENT_BYTES // 1000


def test_lanes_count_their_bytes_right_whatever_happens() -> None:
    dice, lanes = random.Random(5), Lanes(20_000)
    for step in range(5000):
        now = step * 0.01
        match dice.randrange(3):
            case 0:
                lanes.put_data(bytes(dice.randrange(1, 3000)), now)
            case 1:
                lanes.put_urgent(bytes(dice.randrange(1, 3000)))
            case _:
                lanes.take(dice.randrange(1, 8000), now)
        assert lanes.data_bytes == sum(len(f) for _, f in lanes._data) <= 20_000
        assert lanes.urgent_bytes == sum(map(len, lanes._urgent)) <= URGENT_BYTES
