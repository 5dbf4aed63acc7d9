"""A download that goes on while the network under it changes: how long it stood still, and whether it arrived whole.

Bytes come at a steady rate from `peers.drip`, through the SOCKS5 door of a node; a thread in that node's namespace
takes them and notes when. `MESHNODE_STALLS` names a file to which each measurement is added as a line of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import threading
import time
from types import TracebackType

from interop.lab import Host, LabError, until
from interop.peers.drip import PORT, content

RATE = 512 * 1024
LOOK_S = 0.2
_seeds = itertools.count(1)


class Download:
    """`seconds` of bytes from the drip at `name`, fetched on `host`. Use in a `with`; it runs until its end."""

    def __init__(self, host: Host, door: str, name: str, seconds: float) -> None:
        self.name = name
        self._host = host
        self._door = door
        self._seed = next(_seeds)
        self._size = int(RATE * seconds)
        self._got = 0
        self._digest = hashlib.sha256()
        self._at: list[float] = []
        self._error = ""
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Download:
        self._thread.start()
        until(lambda: len(self._at) >= 3 or self._error, 20.0, f"the download from {self.name} flows")
        self._raise()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_left.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            with self._host.inside(), socket.create_connection(_endpoint(self._door), 30.0) as sock:
                _ask_door(sock, self.name)
                sock.sendall(f"{self._seed} {self._size} {RATE}\n".encode())
                sock.settimeout(LOOK_S)
                while not self._is_left.is_set():
                    with contextlib.suppress(TimeoutError):
                        data = sock.recv(1 << 16)
                        if not data:
                            return
                        self._at.append(time.monotonic())
                        self._digest.update(data)
                        self._got += len(data)
        except (OSError, LabError) as error:
            self._error = f"{type(error).__name__}: {error}"

    def _raise(self) -> None:
        if self._error:
            raise LabError(f"the download from {self.name} ended: {self._error}, after {self._got} of {self._size}")

    def goes_on_after(self, instant: float, timeout_s: float) -> float:
        """Wait for a byte after `instant`; returns when the first of them came."""
        until(lambda: self._at[-1] > instant or self._error, timeout_s, f"the download from {self.name} goes on")
        self._raise()
        return next(at for at in self._at if at > instant)

    def stall(self, since: float) -> float:
        """The longest time without a byte from `since` to the last one, in seconds."""
        edges = [since, *(at for at in self._at if at >= since)]
        return max((b - a for a, b in zip(edges, edges[1:], strict=False)), default=0.0)

    def finish(self, timeout_s: float = 60.0) -> None:
        """Wait for the end; LabError unless every byte arrived as it was sent."""
        self._thread.join(timeout_s)
        self._raise()
        wanted = hashlib.sha256(content(self._seed, self._size)).digest()
        if self._thread.is_alive() or self._digest.digest() != wanted:
            raise LabError(f"the download from {self.name}: {self._got} of {self._size} bytes, or not the right ones")


def _endpoint(door: str) -> tuple[str, int]:
    host, _, port = door.rpartition(":")
    return host, int(port)


def _ask_door(sock: socket.socket, name: str) -> None:
    """SOCKS5, no authentication, by name."""
    sock.sendall(b"\5\1\0" + b"\5\1\0\3" + bytes([len(name)]) + name.encode() + PORT.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        data = sock.recv(12 - len(answer))
        if not data:
            raise LabError("the door closed")
        answer += data
    if answer[:2] != b"\5\0" or answer[3] != 0:
        raise LabError(f"the door refused: {answer!r}")


def record(what: str, peer: str, **seconds: float) -> None:
    """Print a measurement, and keep it where MESHNODE_STALLS says."""
    line = json.dumps({"what": what, "peer": peer} | {name: round(value, 3) for name, value in seconds.items()})
    print(line)
    if target := os.environ.get("MESHNODE_STALLS"):
        with open(target, "a", encoding="ascii") as out:
            out.write(line + "\n")
