"""`meshnode demo` as a newcomer runs it, and how it ends when something or somebody ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BOUND_S = 90.0


class Demo:
    """One run in a directory of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.place = folder / 'a "place" {of} its own'
        environment = os.environ | {"TMPDIR": str(self.place)}
        self.place.mkdir()
        with open(self.out, "wb") as out:
            argv = [sys.executable, "-m", "meshnode", "demo", *words]
            self.process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=environment)

    def until(self, wanted: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + BOUND_S
        while not wanted():
            assert time.monotonic() < deadline and self.process.poll() is None, f"{what}\n{self.text}"
            time.sleep(0.02)

    @property
    def text(self) -> str:
        return self.out.read_text()

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def end(self) -> int:
        return self.process.wait(BOUND_S)

    def assert_nothing_left(self, pids: list[int]) -> None:
        assert list(self.place.iterdir()) == []
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def make(*words: str) -> Demo:
        demos.append(Demo(tmp_path, *words))
        return demos[-1]

    yield make
    for demo in demos:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.wait()


def test_everything_holds_by_relay_and_directly(start: Callable[..., Demo]) -> None:
    demo = start()
    assert demo.end() == 0, demo.text
    text = demo.text
    relayed, direct = text.split("Directly,")
    assert "via relay demo in" in relayed
    assert re.search(r"via 1?[0-9:.\[\]a-f]+:\d+ in", direct)
    for part in (relayed, direct):
        assert re.search(r"256 MiB in [\d.]+ s, \d+ MiB/s", part)
        assert "SHA-256 equal" in part
    assert '200 {"status":"ok","capabilities":["hello","checksum"]}' in relayed
    assert '401 {"error":"Unauthorized"}' in relayed
    assert "Everything held" in direct
    demo.assert_nothing_left([])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(start: Callable[..., Demo], number: int, code: int) -> None:
    demo = start()
    demo.until(lambda: "From the laptop" in demo.text, "the nodes are there")
    pids = demo.children()
    demo.process.send_signal(number)
    assert demo.end() == code, demo.text
    assert "nothing is left running" in demo.text
    demo.assert_nothing_left(pids)


def test_a_node_that_dies_fails_the_demo_at_once(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.until(lambda: "From the laptop" in demo.text, "the nodes are there")
    pids = demo.children()
    worker = next(pid for pid in pids if b"capability" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
    os.kill(worker, signal.SIGKILL)
    assert demo.end() == 1
    assert "meshnode: " in demo.text.splitlines()[-1]
    assert "Everything held" not in demo.text
    demo.assert_nothing_left(pids)


def test_keep_says_how_to_use_it(start: Callable[..., Demo]) -> None:
    demo = start("--keep")
    demo.until(lambda: "A third node" in demo.text and demo.text.rstrip().endswith("=."), "it says how to use it")
    state = re.search(r"meshnode status --state-dir (.+)", demo.text)
    assert state is not None
    argv = [sys.executable, "-m", "meshnode", "ping", "worker", "--state-dir", state.group(1)]
    pong = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert pong.returncode == 0 and "pong from worker" in pong.stdout
    pids = demo.children()
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130
    demo.assert_nothing_left(pids)
