"""`nc`'s bytes: both directions, each with its own end."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from meshnode.cli.pump import pump


class Echo(threading.Thread):
    """Sends back what it gets, then a farewell, then ends."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock

    def run(self) -> None:
        while data := self.sock.recv(4096):
            self.sock.sendall(data)
        self.sock.sendall(b"bye")
        self.sock.close()


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_echo_of_more_than_any_buffer(kind: str, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "in").write_bytes(content)
    near, far = socket.socketpair()
    echo = Echo(far)
    echo.start()
    feeder = None
    if kind == "file":
        source = os.open(tmp_path / "in", os.O_RDONLY)
    else:
        source, writing = os.pipe()

        def feed() -> None:
            with open(writing, "wb") as file:
                file.write(content)

        feeder = threading.Thread(target=feed)
        feeder.start()
    sink = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT, 0o600)
    with near:
        pump(near, b"early ", source, sink)
    os.close(source)
    os.close(sink)
    echo.join(5)
    if feeder is not None:
        feeder.join(5)
    assert (tmp_path / "out").read_bytes() == b"early " + content + b"bye"


def test_the_far_end_ends_first() -> None:
    near, far = socket.socketpair()
    far.sendall(b"hello")
    far.close()
    reading, writing = os.pipe()
    silent, held = os.pipe()
    with near:
        pump(near, b"", silent, writing)
    os.close(writing)
    assert os.read(reading, 100) == b"hello"
    for fd in (reading, silent, held):
        os.close(fd)
