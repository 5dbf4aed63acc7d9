"""The local socket: what it answers, whom, and how errors come back as themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.base import bounds
from meshnode.base.addr import IP
from meshnode.base.errors import MeshError, NameNotFound, NoRunningNode, Refused, StateError, TimedOut
from meshnode.local.api import LocalApi
from meshnode.local.client import Door
from meshnode.local.paths import SUN_PATH_MAX, find_socket, make_runtime_dir, socket_path


class FakeNode:
    """The part of Node that the API asks, with an echo service at every port."""

    def __init__(self) -> None:
        self.is_logged_out = False

    def status(self) -> Any:
        return SimpleNamespace(to_json=lambda: {"BackendState": "Running"})

    def whois(self, address: str) -> Any:
        return SimpleNamespace(to_json=lambda: {"who": address}) if address == "100.64.0.2" else None

    def resolve(self, name: str) -> tuple[IP, ...]:
        if name != "db":
            raise NameNotFound(f"no {name}; did you mean db?", ("db",))
        return (IPv4Address("100.64.0.2"),)

    async def ping(self, host: str, *, timeout: float, kind: str, size: int | None) -> Any:
        assert (kind, size) in (("disco", None), ("icmp", 100))
        raise TimedOut(f"{host} after {timeout:g}")

    async def logout(self) -> None:
        self.is_logged_out = True

    async def open_connection(self, host: str, port: int, timeout: float) -> Any:
        if port == 1:
            raise Refused(f"{host} refused")
        near, far = socket.socketpair()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
            writer.write(b"bye")
            writer.close()

        far_streams = await asyncio.open_connection(sock=far)
        self.echo = asyncio.ensure_future(echo(*far_streams))
        return await asyncio.open_connection(sock=near)


@contextlib.contextmanager
def running(path: Path) -> Iterator[FakeNode]:
    """A node's API in a thread of its own."""
    node, up = FakeNode(), threading.Event()
    handles: dict[str, Any] = {}

    async def live() -> None:
        async with LocalApi(node, path):  # type: ignore[arg-type]
            handles["loop"], handles["stop"] = asyncio.get_running_loop(), asyncio.Event()
            up.set()
            await handles["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert up.wait(5)
    try:
        yield node
    finally:
        handles["loop"].call_soon_threadsafe(handles["stop"].set)
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    path = tmp_path / "meshnode.sock"
    with running(path):
        yield Door(path)


def test_questions(door: Door) -> None:
    assert stat.S_IMODE(door.path.stat().st_mode) == 0o600
    assert door.get("/status") == {"BackendState": "Running"}
    assert door.get("/whois", addr="100.64.0.2") == {"who": "100.64.0.2"}
    assert door.get("/dns", name="db") == {"Name": "db", "Addresses": ["100.64.0.2"]}
    assert door.post("/logout") == {}


def test_errors_come_back_as_themselves(door: Door) -> None:
    cases: list[tuple[Callable[[], Any], type[MeshError], str]] = [
        (lambda: door.get("/dns", name="dbx"), NameNotFound, "no dbx; did you mean db?"),
        (lambda: door.get("/whois", addr="1.2.3.4"), NameNotFound, "1.2.3.4 belongs to no node of this tailnet"),
        (lambda: door.post("/ping", ip="db", timeout=0.5), TimedOut, "db after 0.5"),
        (lambda: door.dial("db", 1, timeout_s=5), Refused, "db refused"),
        (lambda: door.dial("db", 70000, timeout_s=5), MeshError, "'70000' is no port"),
        (lambda: door.get("/dns"), MeshError, "the parameter name is missing"),
        (lambda: door.get("/nonsense"), MeshError, "no such question: GET /nonsense"),
        (lambda: door.post("/status"), MeshError, "no such question: POST /status"),
    ]
    for ask, kind, message in cases:
        with pytest.raises(kind) as caught:
            ask()
        assert type(caught.value) is kind
        assert str(caught.value) == message


def raw(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(request)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                parts.append(part)
        return b"".join(parts)


def test_browsers_and_garbage_are_turned_away(door: Door) -> None:
    for field in (b"Origin: http://evil", b"Referer: http://evil/"):
        answer = raw(door.path, b"GET /status HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
    assert raw(door.path, b"\x05\x01\x00\r\n\r\n").startswith(b"HTTP/1.1 400")
    too_long = b"GET /" + b"x" * bounds.HTTP_HEAD_MAX
    assert b" 400 " in raw(door.path, too_long).partition(b"\r\n")[0]
    assert raw(door.path, b"POST /dial?host=a&port=2 HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 400")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(door.path))
    assert door.get("/status")


def test_dial_carries_bytes_and_half_close(door: Door) -> None:
    sock, early = door.dial("db", 7, timeout_s=5)
    with sock:
        sock.settimeout(10)
        sock.sendall(b"x" * 100_000)
        sock.shutdown(socket.SHUT_WR)
        got = early
        while part := sock.recv(65536):
            got += part
    assert got == b"x" * 100_000 + b"bye"


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NoRunningNode, match="start one: meshnode up"):
        Door(tmp_path / "meshnode.sock").get("/status")
    with running(tmp_path / "meshnode.sock"):
        pass
    assert not (tmp_path / "meshnode.sock").exists()


def test_a_socket_left_by_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "meshnode.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoRunningNode):
        Door(path).get("/status")
    with running(path):
        assert Door(path).get("/status")


def test_where_the_socket_is(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    assert socket_path("/var/lib/x", environment) == Path("/var/lib/x/meshnode.sock")
    deep = "/" + "d" * SUN_PATH_MAX
    assert socket_path(deep, environment).parent == tmp_path / "meshnode"
    assert socket_path(deep, environment) != socket_path(deep + "e", environment)
    assert find_socket("", environment) == tmp_path / "state/meshnode/default/meshnode.sock"
    with pytest.raises(NoRunningNode, match="mem:"):
        find_socket("mem:", environment)
    own = socket_path("mem:", environment)
    make_runtime_dir(environment)
    own.touch()
    (own.parent / "mem-999999999.sock").touch()
    assert find_socket("", environment) == own, "the only living node without a state directory"
    (own.parent / f"mem-{os.getppid()}.sock").touch()
    with pytest.raises(NoRunningNode, match="several"):
        find_socket("mem:", environment)


def test_a_runtime_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    make_runtime_dir(environment)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StateError, match="belongs to somebody else"):
        make_runtime_dir(environment)
