"""The C relay against its model: random steps, and the rule for several connections of one key on both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from meshnode.wire import derp
from tests.sim.hub import FIGHT_TEXT
from tests.sim.hub_client import OPEN_ACKS_PINGS
from tests.sim.hub_said import Relay
from tests.sim.hub_steps import Step, apply, build, complaint, differs, frame, key_of, sequence

SEEDS, STEPS = 60, 400
COUNTED = (
    "packets_received", "bytes_received", "packets_sent", "bytes_sent", "disco_received", "forwarded_in",
    "forwarded_out", "drop_unknown_dest", "drop_unknown_dest_on_fwd", "drop_queue_head", "drop_disco_queue_head",
    "drop_gone_disconnected", "drop_age", "gone_disconnected_frames", "gone_not_here_frames", "home_moves_in",
    "home_moves_out", "fights", "dup_conns_total", "logins", "pings_received", "pongs_sent", "protocol_errors",
    "unknown_frames", "mesh_refused", "silent",
)  # fmt: skip
"""Not met_full and no_memory: those take a million pairs, or a ninth neighbour with one key."""
LOGIN: list[Step] = [("join", str(slot), "1", "0") for slot in range(3)]
PONG = frame(derp.PONG, bytes(8))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hub"))


def test_random_steps(program: Path) -> None:
    for seed in range(1, SEEDS + 1):
        said = complaint(program, seed, STEPS)
        assert not said, said


def test_the_steps_reach_what_there_is() -> None:
    """Whatever is counted happens in them, often: else both sides would agree on nothing."""
    reached: Counter[str] = Counter()
    for seed in range(1, SEEDS + 1):
        memory, steps = sequence(seed, STEPS)
        model, seen = Relay(memory), set[str]()
        for step in steps:
            apply(model, step)
            seen |= {name for name, value in model.gauges().items() if value}
        reached.update(seen | set(+model.counters))
    assert not {name: reached[name] for name in (*Relay().gauges(), *COUNTED) if reached[name] < SEEDS / 4}


def both(program: Path, steps: list[Step]) -> Relay:
    """The model after these steps, in which the C side follows it."""
    said = differs(program, 0, steps)
    assert not said, said
    model = Relay()
    for step in steps:
        apply(model, step)
    return model


def told(model: Relay, slot: int) -> list[bytes]:
    """The Health texts that wait for a connection."""
    frames = model.take(model.clients[slot], 1 << 20)
    return [f[derp.HEADER_LEN :] for f in frames if f[0] == derp.HEALTH]


def test_who_spoke_last_receives(program: Path) -> None:
    """Nobody is cut off: who has lost the key's packets has them again by speaking."""
    send = ("say", "9", *frame(derp.SEND_PACKET, key_of(1) + b"hello"))
    model = both(program, [*LOGIN[:2], ("join", "9", "2", "0"), send, ("say", "0", *PONG), send, send])
    assert [len(model.clients[slot].data.frames) for slot in (0, 1)] == [2, 1]


@pytest.mark.parametrize("pause_ms", [1, 9000, 59_000])
def test_neither_steals_in_silence(program: Path, pause_ms: int) -> None:
    """Both are told at the third change, however slowly they take the key's packets from each other."""
    steps = list(LOGIN[:2])
    for slot in "010":
        steps += [("time", str(pause_ms)), ("say", slot, *PONG)]
    model = both(program, steps)
    assert told(model, 0) == told(model, 1) == [FIGHT_TEXT]
    assert model.counters["fights"] == 1
    assert told(both(program, [*steps, LOGIN[2]]), 2) == [FIGHT_TEXT]
    assert told(both(program, [*steps, ("take", "0", "260000"), ("leave", "1")]), 0) == [b""]


def test_two_that_only_answer_pings_are_told(program: Path) -> None:
    """The relay asks whoever is silent; the answer is a sign of life, and takes the key."""
    steps: list[Step] = [("join", slot, "1", str(OPEN_ACKS_PINGS)) for slot in "01"]
    for _ in range(2):
        steps += [("time", "46000"), ("say", "0", *PONG), ("say", "1", *PONG)]
    model = both(program, steps)
    assert told(model, 0) == told(model, 1) == [FIGHT_TEXT]


def test_a_client_that_dials_anew_is_no_fight(program: Path) -> None:
    """Its last connection may still speak: two changes each time, and then it is alone again."""
    steps = [LOGIN[0]]
    for turn in range(6):
        old, new = (0, 1) if turn % 2 == 0 else (1, 0)
        steps += [LOGIN[new], ("say", str(old), *PONG), ("say", str(new), *PONG), ("leave", str(old))]
    model = both(program, steps)
    assert model.counters["fights"] == 0
    assert told(model, 0) == []
