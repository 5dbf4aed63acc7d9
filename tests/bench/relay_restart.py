"""A relay restarted under its clients: how long until all are back, how fast they come, and what they were sent twice.

    python -m tests.bench.relay_restart [--clients 1000] [--rounds 3] [--how term,kill] > out.json

`meshnode derp --self-signed --open` in a process, our own clients (meshnode.relay.pool, TLS 1.3, each with a key of its
own) in this one. 20 pairs of them send a numbered packet every 50 ms all along. The relay is ended by SIGTERM, which
tells clients when to come back, or by SIGKILL, and started again at once on the same port. Figures: seconds from the
end to the last login, logins in the busiest second and in the busiest 100 ms, packets delivered twice (none is
right), and packets lost. Both ends share the cores, and this one's TLS is Python's: the time is an upper bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from meshnode.base.addr import RegionId
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay.client import RelayState
from meshnode.relay.pool import RelayPool
from meshnode.run.clock import Clock

REGION = RegionId(900)
PAIRS = 20
EVERY_S = 0.05
JOIN_S = 120.0
BACK_S = 60.0
CLOCK = Clock()


class Client:
    """One pool with one connection, and what it was sent."""

    def __init__(self, relays: RelayMap, note: Any) -> None:
        self.private = NodePrivate.generate(CLOCK.entropy)
        self.key: NodePublic = self.private.public()
        self.pool = RelayPool(self.private, clock=CLOCK)
        self.got: Counter[bytes] = Counter()
        self.is_in = False
        self._note = note
        self.pool.on_packet = self._take
        self.pool.on_state = self._state
        self.pool.set_map(relays)
        self.pool.set_home(REGION)

    def _take(self, _: RegionId, __: NodePublic, data: bytes) -> None:
        self.got[bytes(data)] += 1

    def _state(self, _: RegionId, state: RelayState) -> None:
        was, self.is_in = self.is_in, state is RelayState.CONNECTED
        if self.is_in and not was:
            self._note()


class Relay:
    """The process, on a port that stays."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.pin = ""
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        words = ["derp", "--listen", f"127.0.0.1:{self.port}", "--stun", "off", "--host", "127.0.0.1", "--open"]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshnode", *words, "--self-signed"),
            *("--dir", str(self.folder), "--log-level", "error"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        while line := (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode():
            if line.startswith("{"):
                self.pin = json.loads(line)["900"]["Nodes"][0]["CertName"]
                return
        raise OSError("the relay did not start")

    @property
    def map(self) -> RelayMap:
        node = RelayNode("900a", REGION, "127.0.0.1", self.pin, "127.0.0.1", "none", self.port, -1)
        return RelayMap({REGION: RelayRegion(REGION, "own", "own", (node,))})


async def until(wanted: Any, bound_s: float, what: str) -> None:
    deadline = time.monotonic() + bound_s
    while not wanted():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {bound_s:g} s: {what}")
        await asyncio.sleep(0.01)


async def talk(clients: list[Client], sent: Counter[bytes]) -> None:
    """Pairs send to each other for ever."""
    number = 0
    while True:
        for place in range(0, 2 * PAIRS, 2):
            number += 1
            data = b"packet %d" % number
            sent[data] += 1
            clients[place].pool.send(REGION, clients[place + 1].key, data)
        await asyncio.sleep(EVERY_S)


async def one_round(relay: Relay, clients: list[Client], logins: list[float], how: str) -> dict[str, float]:
    sent: Counter[bytes] = Counter()
    talking = asyncio.ensure_future(talk(clients, sent))
    await asyncio.sleep(0.5)
    logins.clear()
    started = time.monotonic()
    relay.process.send_signal(signal.SIGTERM if how == "term" else signal.SIGKILL)
    await relay.process.wait()
    gone = time.monotonic()
    await relay.start()
    up = time.monotonic()
    await until(lambda: len(logins) >= len(clients) and all(c.is_in for c in clients), BACK_S,
                "all clients are back")  # fmt: skip
    back = time.monotonic()
    await asyncio.sleep(1.0)
    talking.cancel()
    heard: Counter[bytes] = Counter()
    for client in clients:
        heard.update(client.got)
        client.got.clear()
    return {
        "seconds_to_end": round(gone - started, 3),
        "seconds_from_start_to_all_back": round(back - up, 3),
        "seconds_from_signal_to_all_back": round(back - started, 3),
        "logins_busiest_s": busiest(logins, 1.0),
        "logins_busiest_100ms": busiest(logins, 0.1),
        "logins": len(logins),
        "sent": sum(sent.values()),
        "twice": sum(1 for count in heard.values() if count > 1),
        "lost": sum(1 for data in sent if not heard[data]),
    }


def busiest(times: list[float], window_s: float) -> int:
    """Most events within any window."""
    most = first = 0
    for place, at in enumerate(times):
        while at - times[first] > window_s:
            first += 1
        most = max(most, place - first + 1)
    return most


async def run(count: int, rounds: int, hows: list[str]) -> dict[str, Any]:
    logins: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        relay = Relay(Path(place))
        await relay.start()
        clients = [Client(relay.map, lambda: logins.append(time.monotonic())) for _ in range(count)]
        await until(lambda: all(c.is_in for c in clients), JOIN_S, "all clients are in")
        found: dict[str, Any] = {"clients": count, "rounds": []}
        try:
            for number in range(rounds):
                for how in hows:
                    figures = await one_round(relay, clients, logins, how)
                    found["rounds"].append({"how": how, **figures})
                    print(number, how, figures, file=sys.stderr, flush=True)
        finally:
            for client in clients:
                await client.pool.aclose()
            relay.process.kill()
            await relay.process.wait()
    worst = max(r["seconds_from_signal_to_all_back"] for r in found["rounds"])
    found["targets"] = {
        "all back within 10 s": {"value": worst, "bound": 10.0, "holds": worst <= 10.0},
        "no packet twice": {"holds": not any(r["twice"] for r in found["rounds"])},
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--how", default="term,kill")
    parsed = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(asyncio.run(run(parsed.clients, parsed.rounds, parsed.how.split(","))), indent=1))


if __name__ == "__main__":
    main()
