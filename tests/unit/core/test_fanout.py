"""Relay routing and its queues: who gets what, what goes first when there is too much, who is told."""

from __future__ import annotations

import random

from meshnode.base.bounds import RELAY_QUEUE_BYTES
from meshnode.core.fanout import FIGHT_TEXT, Fanout, Member
from meshnode.core.lanes import DATA_AGE_S, URGENT_BYTES, Lanes
from meshnode.wire import derp
from meshnode.wire.disco import MAGIC

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
DISCO = MAGIC + bytes(80)


def frames(member: Member, now: float = 0.0) -> list[tuple[int, bytes]]:
    reader, out = derp.Frames(derp.TO_CLIENT), []
    while batch := member.lanes.take(1 << 20, now):
        out += reader.receive(batch)
    return out


def joined(*keys: bytes) -> tuple[Fanout, list[Member]]:
    fanout, members = Fanout(), [Member(key) for key in keys]
    for member in members:
        fanout.add(member)
    return fanout, members


def test_a_packet_reaches_its_target_with_its_source() -> None:
    fanout, (a, b) = joined(A, B)
    fanout.send(a, B, b"hello", 0.0)
    assert fanout.dirty == {b}
    assert frames(b) == [(derp.RECV_PACKET, A + b"hello")] and not frames(a)


def test_disco_goes_first() -> None:
    fanout, (a, b) = joined(A, B)
    fanout.send(a, B, b"data", 0.0)
    fanout.send(a, B, DISCO, 0.0)
    assert [p[32:] for _, p in frames(b)] == [DISCO, b"data"]


def test_too_much_data_drops_the_oldest_and_keeps_disco() -> None:
    fanout, (a, b) = joined(A, B)
    fanout.send(a, B, DISCO, 0.0)
    for number in range(1000):
        fanout.send(a, B, number.to_bytes(4, "big") + bytes(1300), 0.0)
    assert b.lanes.data_bytes <= RELAY_QUEUE_BYTES
    got = [p[32:] for _, p in frames(b)]
    assert got[0] == DISCO and got[-1][:4] == (999).to_bytes(4, "big")
    assert b.lanes.dropped == 1000 - (len(got) - 1) > 0


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


def test_absent_peers_are_told_of_for_disco_only_and_not_too_often() -> None:
    fanout, (a,) = joined(A)
    fanout.send(a, B, b"data", 0.0)
    assert not frames(a)
    for _ in range(10):
        fanout.send(a, B, DISCO, 0.0)
    assert frames(a) == [(derp.PEER_GONE, B + b"\x01")] * 3
    fanout.send(a, B, DISCO, 1.5)
    assert len(frames(a)) == 1
    assert fanout.counters["unknown_dest"] == 12


def test_who_received_from_a_leaver_is_told_once() -> None:
    fanout, (a, b, c) = joined(A, B, C)
    fanout.send(a, B, b"x", 0.0)
    fanout.send(c, A, b"x", 0.0)
    frames(b), frames(a)
    fanout.remove(a)
    assert frames(b) == [(derp.PEER_GONE, A + b"\x00")] and not frames(c)
    fanout.remove(a)
    assert not frames(b) and A not in fanout
    again = Member(A)
    fanout.add(again)
    fanout.send(again, B, b"y", 0.0)
    fanout.remove(again)
    assert {kind for kind, _ in frames(b)} == {derp.RECV_PACKET, derp.PEER_GONE}


def test_of_two_connections_with_one_key_the_last_that_sent_is_live() -> None:
    fanout, (a, first, second) = joined(A, B, B)
    fanout.send(a, B, b"1", 0.0)
    assert frames(second) and not frames(first)
    fanout.note_activity(first, 1.0)
    fanout.send(a, B, b"2", 1.0)
    assert frames(first) and not frames(second)
    fanout.remove(first)
    fanout.send(a, B, b"3", 2.0)
    assert frames(second), "nothing is lost when the live one leaves"


def test_a_fight_is_told_to_both_and_its_end_too() -> None:
    fanout, (first, second) = joined(B, B)
    for now, member in enumerate((first, second, first)):
        fanout.note_activity(member, float(now))
    told = [(derp.HEALTH, FIGHT_TEXT.encode())]
    assert frames(first) == told == frames(second)
    fanout.note_activity(second, 3.0)
    assert not frames(first)
    fanout.remove(first)
    assert frames(second) == [(derp.HEALTH, b"")]


def test_slow_changes_of_connection_are_no_fight() -> None:
    fanout, (first, second) = joined(B, B)
    for number, member in enumerate((first, second, first, second)):
        fanout.note_activity(member, number * 20.0)
    assert not frames(first) and not frames(second)


def test_no_trace_remains_of_whoever_left() -> None:
    dice, fanout, here = random.Random(2), Fanout(), []
    for step in range(3000):
        if dice.random() < 0.3 or not here:
            here.append(Member(bytes([dice.randrange(20)]) * 32))
            fanout.add(here[-1])
        elif dice.random() < 0.3:
            fanout.remove(here.pop(dice.randrange(len(here))))
        else:
            fanout.send(dice.choice(here), bytes([dice.randrange(20)]) * 32, b"x", step * 0.1)
            fanout.note_activity(dice.choice(here), step * 0.1)
    for member in here:
        fanout.remove(member)
    assert not len(fanout) and not fanout._live and not fanout.dirty
    assert not any(fanout._receivers.values())
