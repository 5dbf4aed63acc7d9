"""The answers of a running node on its unix socket.

Paths: GET /status /metrics /whois?addr= /dns?name= ; POST /ping?ip=&kind=&size= /paths?mode= /netcheck /logout ;
POST /dial?host=&port= upgrades to the raw bytes of a tunnel connection. Only the node's own user and root are served
(0600 and SO_PEERCRED). At most CONNECTIONS_MAX callers at once; more wait in the listen backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.base.errors import (
    AccessDenied,
    DialError,
    ListenError,
    MeshError,
    NameNotFound,
    PeerOffline,
    Refused,
    TimedOut,
)
from meshnode.local.http import CHUNK, DIAL_PROTOCOL, REQUEST_TIMEOUT_S, Answer, Exchange, Malformed, Question
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope

if TYPE_CHECKING:
    from meshnode.node.group import Group
    from meshnode.node.node import Node

_log = get_logger("local")
CONNECTIONS_MAX: Final = 64
BACKLOG: Final = 64
STATUS_OF: Final[tuple[tuple[type[MeshError], int], ...]] = (
    (NameNotFound, 404),
    (AccessDenied, 403),
    (TimedOut, 504),
    (Refused, 502),
    (PeerOffline, 502),
    (DialError, 502),
)


class LocalApi:
    """Listens on `path` while its block is entered."""

    def __init__(self, node: Node | Group, path: Path, *, on_logout: Callable[[], None] = lambda: None) -> None:
        self._node = node
        self.path = path
        self._on_logout = on_logout
        self._scope: Scope | None = None
        self._server: asyncio.Server | None = None
        self._busy = 0
        self._handlers: dict[tuple[str, str], Callable[[Question], Awaitable[Any]]] = {
            ("GET", "/status"): self._status,
            ("GET", "/whois"): self._whois,
            ("GET", "/dns"): self._dns,
            ("POST", "/ping"): self._ping,
            ("POST", "/logout"): self._logout,
            ("POST", "/paths"): self._paths,
            ("POST", "/netcheck"): self._netcheck,
            ("GET", "/metrics"): self._metrics,
        }

    async def __aenter__(self) -> Self:
        sock = _listen(self.path)
        self._scope = Scope("local")
        self._server = await asyncio.start_unix_server(self._on_connection, sock=sock)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._scope is not None and self._server is not None
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        await self._scope.aclose()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._scope is not None
        if self._busy >= CONNECTIONS_MAX or not _is_allowed(writer):
            writer.transport.abort()
            return
        self._busy += 1
        try:
            self._scope.spawn(self._serve(reader, writer), "caller")
        except RuntimeError:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = Exchange(reader, writer)
        try:
            question = await asyncio.wait_for(exchange.read_question(), REQUEST_TIMEOUT_S)
            if question is not None:
                await self._answer(exchange, question)
        except Malformed as error:
            with contextlib.suppress(OSError):
                await exchange.send(error.answer)
        except (OSError, TimeoutError):
            pass  # the caller went away or never spoke; nobody is left to tell
        finally:
            self._busy -= 1
            writer.close()

    async def _answer(self, exchange: Exchange, question: Question) -> None:
        try:
            if (question.method, question.path) == ("POST", "/dial"):
                await self._dial(exchange, question)
                return
            handler = self._handlers.get((question.method, question.path))
            if handler is None:
                raise Malformed(404, f"no such question: {question.method} {question.path}")
            answer = Answer(200, await handler(question))
        except MeshError as error:
            answer = Answer(_status_of(error), _describe(error))
        await exchange.send(answer)

    async def _status(self, question: Question) -> Any:
        return self._node.status().to_json()

    async def _whois(self, question: Question) -> Any:
        address = _wanted(question, "addr")
        identity = self._node.whois(address)
        if identity is None:
            raise NameNotFound(f"{address} belongs to no node of this tailnet")
        return identity.to_json()

    async def _dns(self, question: Question) -> Any:
        name = _wanted(question, "name")
        return {"Name": name, "Addresses": [str(ip) for ip in self._node.resolve(name)]}

    async def _ping(self, question: Question) -> Any:
        target = _wanted(question, "ip")
        kind, text = question.query.get("kind", "disco"), question.query.get("size", "")
        if kind not in ("disco", "icmp") or not text.isascii() or not (text or "0").isdigit() or int(text or 0) > 65535:
            raise Malformed(400, "kind is disco or icmp, size 0 to 65535")
        size = int(text) if text else None
        return (await self._node.ping(target, timeout=_seconds(question, 5.0), kind=kind, size=size)).to_json()

    async def _paths(self, question: Question) -> Any:
        self._node.set_paths(_wanted(question, "mode"))
        return {"Paths": self._node.paths}

    async def _netcheck(self, question: Question) -> Any:
        await self._node.netcheck(timeout=_seconds(question, 15.0))
        return self._node.network().to_json()

    async def _metrics(self, question: Question) -> Any:
        return {"Text": self._node.metrics()}

    async def _logout(self, question: Question) -> Any:
        await self._node.logout()
        self._on_logout()
        return {}

    async def _dial(self, exchange: Exchange, question: Question) -> None:
        host, port = _wanted(question, "host"), _wanted(question, "port")
        if question.upgrade != DIAL_PROTOCOL:
            raise Malformed(400, f"this question needs Upgrade: {DIAL_PROTOCOL}")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise Malformed(400, f"{port!r} is no port")
        far_reader, far_writer = await self._node.open_connection(host, int(port), timeout=_seconds(question, 10.0))
        try:
            early = await exchange.switch()
            far_writer.write(early)
            await join_streams((exchange.reader, exchange.writer), (far_reader, far_writer))
        finally:
            far_writer.close()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def join_streams(one: Streams, other: Streams) -> None:
    """Carry bytes both ways, each direction ending with its own end of file, until both ended."""
    async with Scope("join") as scope:
        there = scope.spawn(_carry(one[0], other[1]), "there")
        back = scope.spawn(_carry(other[0], one[1]), "back")
        await asyncio.wait({there, back})


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        # A reset on either side: what remains cannot be delivered; the other direction ends by itself.
        writer.transport.abort()


def _listen(path: Path) -> socket.socket:
    """Bind, close to others, listen: nobody can connect before `listen`, so the mode is in time."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            # We hold the state directory's lock: a socket found here belongs to a dead process.
            os.unlink(path)
        sock.bind(str(path))
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot make the node's socket {path}: {error.strerror or error}") from None
    return sock


def _is_allowed(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return uid in (0, os.geteuid())


def _wanted(question: Question, name: str) -> str:
    value = question.query.get(name, "")
    if not value:
        raise Malformed(400, f"the parameter {name} is missing")
    return value


def _seconds(question: Question, default: float) -> float:
    try:
        value = float(question.query.get("timeout", default))
    except ValueError:
        raise Malformed(400, "timeout is not a number of seconds") from None
    return min(max(value, 0.01), 600.0)


def _status_of(error: MeshError) -> int:
    return next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)


def _describe(error: MeshError) -> dict[str, Any]:
    return {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
