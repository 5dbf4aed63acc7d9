"""Runs a Python fuzz target: `python -m tests.fuzz.<target> --minutes 10`.

A target is a function of bytes that may raise RemoteProtocolError and nothing else, and that must
come back soon. With atheris installed its coverage steers the inputs; otherwise (or with
`--engine mutator`) seeds are mutated by a seeded generator. What fails is written beside the corpus
and its name and seed are printed; the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from meshnode.base.errors import RemoteProtocolError

Target = Callable[[bytes], None]
CORPORA = Path(__file__).parent / "corpus"
SLOW_S = 1.0
MEMORY_KIB = 1_500_000
INTERESTING = (0, 1, 2, 3, 4, 127, 128, 254, 255)


def run(name: str, target: Target, seeds: Sequence[bytes]) -> None:
    """The main function of a target's file."""
    parser = argparse.ArgumentParser(description=f"fuzz {name}")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--engine", choices=("auto", "atheris", "mutator"), default="auto")
    args = parser.parse_args()
    folder = CORPORA / name
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [*seeds, *(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())]
    has_atheris = importlib.util.find_spec("atheris") is not None
    if args.engine == "atheris" or (args.engine == "auto" and has_atheris):
        _run_atheris(name, target, seeds, args.minutes, folder)
    seed = args.seed if args.seed is not None else random.SystemRandom().getrandbits(32)
    sys.exit(_run_mutator(name, target, seeds, args.minutes, seed))


def check(target: Target, data: bytes) -> str:
    """What is wrong with the target's answer to `data`; '' if nothing is."""
    start = time.process_time()  # not wall time: a busy machine is no finding
    try:
        target(data)
    except RemoteProtocolError:
        pass
    except Exception:
        return traceback.format_exc()
    took = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if took > SLOW_S:
        return f"took {took:.1f} s"
    return f"{memory} KiB in use" if memory > MEMORY_KIB else ""


def _run_atheris(name: str, target: Target, seeds: Sequence[bytes], minutes: float, folder: Path) -> None:
    import atheris

    for data in seeds:
        (folder / sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.instrument_all()

    def one(data: bytes) -> None:
        wrong = check(target, data)
        if wrong:
            raise RuntimeError(wrong)

    options = [f"-max_total_time={int(minutes * 60)}", "-max_len=4096", "-verbosity=1", "-print_final_stats=1"]
    atheris.Setup([name, str(folder), f"-artifact_prefix={CORPORA}/finding-{name}-", *options], one)
    atheris.Fuzz()


def _run_mutator(name: str, target: Target, seeds: Sequence[bytes], minutes: float, seed: int) -> int:
    dice = random.Random(seed)
    pool = list(seeds) or [b""]
    end = time.monotonic() + minutes * 60
    count = 0
    while time.monotonic() < end:
        data = mutated(dice, pool)
        count += 1
        wrong = check(target, data)
        if wrong:
            path = CORPORA / f"finding-{name}-{sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{name}: seed {seed}, input {count}, written to {path}\n{wrong}")
            return 1
    print(f"{name}: {count} inputs in {minutes} minutes, seed {seed}, no finding")
    return 0


def mutated(dice: random.Random, pool: Sequence[bytes]) -> bytes:
    """A random descendant of one or two seeds."""
    data = bytearray(dice.choice(pool))
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if data:
                data[at % len(data)] = dice.choice((dice.randrange(256), *INTERESTING))
            case 1:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 2:
                del data[at : at + dice.randrange(1, 33)]
            case 3:
                data[at:at] = data[at : at + dice.randrange(1, 65)]
            case 4:
                other = dice.choice(pool)
                data[at:] = other[dice.randrange(len(other) + 1) :]
            case 5 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case _:
                width = dice.choice((2, 4, 8))
                data[at : at + width] = dice.choice((0, 2 ** (8 * width) - 1, dice.getrandbits(8 * width))).to_bytes(
                    width, dice.choice(("big", "little"))
                )
    return bytes(data[:65_536])
