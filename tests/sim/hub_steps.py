"""The relay's C and its model driven by the same random steps, every frame and every number compared.

    python -m tests.sim.hub_steps [--seeds 500] [--first 1] [--steps 400] [--sanitize]

A step that differs fails the sequence; its seed is told, with the shortest sequence found that still differs. Steps
name connections by slot and do nothing where there is none, so any part of a sequence is a sequence. The model is
tests/sim/hub.py and hub_said.py; the C side is native/tests/relay_steps.c with native/relay and native/mem, built into
a folder of its own by $CC.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from meshnode.wire import derp
from meshnode.wire.disco import MAGIC
from tests.sim.hub_client import OPEN_ACKS_PINGS, OPEN_MESH, OPEN_NEIGHBOUR, OPEN_NOT_IDEAL, OPEN_PROBER, Key
from tests.sim.hub_said import CLOSED_BY_PEER, KEY, PACKET_MAX, Relay

NATIVE = Path(__file__).resolve().parents[2] / "native"
SLOTS = 14
NEIGHBOURS = (SLOTS - 1, SLOTS - 2)
"""Slots of connections that we dialled to other relays."""
MESH_CLIENTS = (SLOTS - 3, SLOTS - 4)
KEYS = 5
"""Fewer than slots: most keys have several connections."""
STRANGER = 40
FULL = (64 << 10) - derp.HEADER_LEN - KEY
"""Four such packets fill a lane to the byte."""
REMOTE = (20, 21, 22)
"""Keys that only neighbours have."""
OWN = 60
"""What we call ourselves to neighbours."""
SIZES = (0, 1, 61, 62, 80, 1200, 1200, 8000, FULL, FULL, PACKET_MAX)
CAPS = (200, 2000, 70_000, 140_000, 260_000)
MEMORIES = (0, 0, 4 << 14, 20 << 14)

Step = tuple[str, ...]


def key_of(number: int) -> bytes:
    """Keys are one byte, 32 times."""
    return bytes([number]) * KEY


def build(folder: Path, *, sanitize: bool = False) -> Path:
    """The C side as a program."""
    out = folder / "relay_steps"
    flags = ["-std=c11", "-D_GNU_SOURCE", f"-I{NATIVE}", "-pthread", "-fno-strict-overflow", "-O1", "-g"]
    if sanitize:
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    sources = [NATIVE / "tests/relay_steps.c", *NATIVE.glob("relay/*.c"), *NATIVE.glob("mem/*.c")]
    command = [os.environ.get("CC", "cc"), *flags, *map(str, sources), "-o", str(out), "-lssl", "-lcrypto", "-lm"]
    subprocess.run(command, check=True)
    return out


class Driver:
    """The C side under way."""

    def __init__(self, program: Path) -> None:
        self._popen = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.names = self._line().split()

    def ask(self, *words: str) -> str:
        """One step; its answer. OSError if the program has ended: what it said is on stderr."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(" ".join(words) + "\n")
        self._popen.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise OSError(f"the C side ended with {self._popen.wait()}")
        return line.strip()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.stdout.close()
        self._popen.kill()
        self._popen.wait()


# --- steps ---


def frame(kind: int, payload: bytes = b"", fill: tuple[int, int] = (0, 0)) -> list[str]:
    """A frame as pieces: its payload is `payload` and `fill` (count, byte)."""
    head = bytes([kind]) + (len(payload) + fill[0]).to_bytes(4, "big") + payload
    return [head.hex()] + ([f"{fill[0]}*{fill[1]:02x}"] if fill[0] else [])


def spoken(chance: random.Random, slot: int) -> list[str]:
    """One frame that the connection of a slot might say; now and then one that it must not."""
    other, near = key_of(chance.choice((*range(KEYS), *REMOTE, STRANGER, STRANGER))), key_of(chance.randrange(KEYS))
    fill, choice = chance.randrange(256), chance.random()
    disco = MAGIC if chance.random() < 0.4 else b""
    packet = (max(0, chance.choice(SIZES) - len(disco)), fill)
    if choice < 0.02:
        return forbidden(chance, fill)
    if slot in NEIGHBOURS:
        if choice < 0.85:
            present = chance.choice((derp.PEER_PRESENT, derp.PEER_PRESENT, derp.PEER_GONE))
            return frame(present, key_of(chance.choice((*REMOTE, *range(KEYS), OWN))), (chance.choice((0, 1, 19)), 0))
        return frame(chance.choice((derp.HEALTH, derp.RESTARTING, derp.PING, derp.KEEP_ALIVE)), fill=(8, fill))
    if slot in MESH_CLIENTS and choice < 0.5:
        if choice < 0.36:
            return frame(derp.FORWARD_PACKET, key_of(chance.choice((*REMOTE, *range(KEYS)))) + near + disco, packet)
        return frame(derp.WATCH_CONNS) if choice < 0.47 else frame(derp.CLOSE_PEER, near)
    if choice < 0.75:
        return frame(derp.SEND_PACKET, (near if chance.random() < 0.6 else other) + disco, packet)
    if choice < 0.85:
        return frame(derp.PING, fill=(chance.choice((8, 8, 20, 1000)), fill))
    if choice < 0.92:
        return frame(derp.NOTE_PREFERRED, bytes([chance.randrange(2)]))
    return frame(derp.PONG, fill=(8, fill))


def forbidden(chance: random.Random, fill: int) -> list[str]:
    """What nobody knows, what is not a client's to say, or has a wrong length."""
    return chance.choice(
        (
            frame(0x60, fill=(chance.choice((0, 9, 5000)), fill)),
            frame(derp.SERVER_INFO, fill=(9, fill)),
            frame(derp.SEND_PACKET, fill=(31, fill)),
            frame(derp.SEND_PACKET, fill=(KEY + PACKET_MAX + 1, fill)),
            frame(derp.FORWARD_PACKET, fill=(63, fill)),
            frame(derp.FORWARD_PACKET, fill=(2 * KEY, fill)),
            frame(derp.WATCH_CONNS, fill=(chance.randrange(2), fill)),
            frame(derp.CLOSE_PEER, fill=(chance.choice((KEY - 1, KEY)), fill)),
            frame(derp.NOTE_PREFERRED, fill=(2, fill)),
            frame(derp.PING, fill=(chance.choice((7, 1001)), fill)),
            frame(derp.CLIENT_INFO, fill=(40, fill)),
            ["05ffffffff"],
            ["7000200000"],
        )
    )


def sequence(seed: int, length: int) -> tuple[int, list[Step]]:
    """Memory of the relay, and steps."""
    chance = random.Random(seed)
    out: list[Step] = []
    for _ in range(length):
        slot, choice = str(chance.randrange(SLOTS)), chance.random()
        if choice < 0.12:
            out.append(joined(chance, int(slot)))
        elif choice < 0.15:
            out.append(("leave", slot))
        elif choice < 0.72:
            pieces: list[str] = []
            for _ in range(chance.choice((1, 1, 1, 2, 3))):
                pieces += spoken(chance, int(slot)) * chance.choice((1, 1, 1, 5))
            cut = chance.randrange(len(pieces)) if chance.random() < 0.15 else 0
            out += [("say", slot, *part) for part in (pieces[:cut], pieces[cut:]) if part]
        elif choice < 0.86:
            out.append(("take", slot, str(chance.choice(CAPS))))
        elif choice < 0.93:
            out.append(("dirty",))
        else:
            out.append(("time", str(chance.choice((1, 30, 400, 700, 1100, 3000, 15_000, 46_000)))))
    return chance.choice(MEMORIES), out


def joined(chance: random.Random, slot: int) -> Step:
    """A login as its slot has it."""
    if slot in NEIGHBOURS:
        return "join", str(slot), str(OWN), str(OPEN_NEIGHBOUR)
    opened = OPEN_MESH if slot in MESH_CLIENTS else chance.choice((0, OPEN_PROBER, OPEN_NOT_IDEAL))
    return "join", str(slot), str(chance.randrange(KEYS)), str(opened | chance.choice((0, OPEN_ACKS_PINGS)))


# --- the model's side ---


def bytes_of(pieces: Iterable[str]) -> bytes:
    """What the pieces of a `say` step stand for."""
    out = b""
    for piece in pieces:
        count, star, byte = piece.partition("*")
        out += bytes([int(byte, 16)]) * int(count) if star else bytes.fromhex(piece)
    return out


def apply(model: Relay, step: Step) -> list[str]:
    """One step; what comes of it."""
    what, *words = step
    if what == "dirty":
        return [str(model.next_dirty())]
    if what == "time":
        model.pass_time(int(words[0]))
        return []
    slot = int(words[0])
    client = model.clients.get(slot)
    if what == "join":
        if client is None:
            source = bytes(15) + bytes([slot]) + (1000 + slot).to_bytes(2, "big")
            model.join(slot, key_of(int(words[1])), int(words[2]), source)
    elif client is None:
        pass
    elif what == "leave":
        model.leave(client, CLOSED_BY_PEER)
    elif what == "say":
        model.receive(client, bytes_of(words[1:]))
    elif what == "take":
        return [
            f"{f[0]}:{len(f) - derp.HEADER_LEN}:{zlib.crc32(f[derp.HEADER_LEN :]):08x}"
            for f in model.take(client, int(words[1]))
        ]
    return []


def told(model: Relay) -> list[str]:
    """What Python has heard since."""
    out = []
    for what, slot, number, payload in model.events:
        end = str(payload[0]) if what == "ended" else f"{zlib.crc32(payload):08x}"
        out.append(f"{what}:{slot}:{number}:{end}")
    model.events.clear()
    return out


def numbers(model: Relay, names: Sequence[str]) -> list[int]:
    """The model's counters as the C side prints its own."""
    gauges = model.gauges()
    return [gauges[name] if name in gauges else model.counters[name] for name in names]


# --- side by side ---


def differs(program: Path, memory: int, steps: Sequence[Step]) -> str:
    """Where both sides part, '' if they do not."""
    with Driver(program) as c:
        buckets = list(map(int, c.ask("begin", str(memory)).split()))

        def order(keys: Iterable[Key]) -> list[Key]:
            newest = {id(key): number for number, key in enumerate(keys)}
            return sorted(model.keys.values(), key=lambda key: (buckets[key.key[0]], -newest[id(key)]))

        model = Relay(memory, order)
        for number, step in enumerate(steps):
            try:
                got = [part.split() for part in c.ask(*step).split("|")]
            except OSError as error:
                return f"step {number} {shown(step)}: {error}"
            out = apply(model, step)
            want = [list(map(str, numbers(model, c.names))), told(model), out]
            if got != want:
                return f"step {number} {shown(step)}: {difference(c.names, got, want)}"
        try:
            c.ask("end")
        except OSError as error:
            return f"at the end: {error}"
    return ""


def difference(names: Sequence[str], got: list[list[str]], want: list[list[str]]) -> str:
    """In words."""
    said = [f"{name} is {g}, the model has {w}" for name, g, w in zip(names, got[0], want[0], strict=True) if g != w]
    for what, g, w in (("events", got[1], want[1]), ("frames", got[2], want[2])):
        if g != w:
            said.append(f"{what} are {g}, the model has {w}")
    return "; ".join(said)


def shown(step: Step) -> str:
    return " ".join(word if len(word) < 80 else f"{word[:76]}…" for word in step)


def shrunk(program: Path, memory: int, steps: list[Step]) -> list[Step]:
    """The fewest steps found that still differ: halves, quarters, … are left out as long as that helps."""
    size = len(steps) // 2
    while size > 0:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if differs(program, memory, fewer):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


def complaint(program: Path, seed: int, length: int) -> str:
    """What is wrong with one seed's sequence, '' if nothing is."""
    memory, steps = sequence(seed, length)
    if not differs(program, memory, steps):
        return ""
    steps = shrunk(program, memory, steps)
    lines = "\n".join(f"  {shown(step)}" for step in steps)
    return f"seed {seed}, memory {memory}: {differs(program, memory, steps)}\n{lines}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mn-hub-") as folder:
        program = build(Path(folder), sanitize=options.sanitize)
        for seed in range(options.first, options.first + options.seeds):
            said = complaint(program, seed, options.steps)
            if said:
                sys.exit(said)
    print(f"{options.seeds} sequences of {options.steps} steps: no difference")


if __name__ == "__main__":
    main()
