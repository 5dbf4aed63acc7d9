"""Helpers for doors: a stand-in for a node on plain loopback sockets, and a small exact HTTP client.

The stand-in offers what doors ask of a node (`listen`, `whois`, `connect`), so that everything above
the tunnel is tested without it; the tests that need the tunnel use `town`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11

from meshnode.netmap.model import Node as NetmapNode
from meshnode.netmap.model import User
from meshnode.node.status import Identity

ADA = User(1, "ada@example.com", "Ada Lovelace")


class Loopback:
    """A listener on 127.0.0.1 that iterates over accepted sockets, as the engine's does."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._sock.setblocking(False)
        self.port = self._sock.getsockname()[1]
        self._closed = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[socket.socket]:
        return self

    async def __anext__(self) -> socket.socket:
        try:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
        except (OSError, ValueError):
            raise StopAsyncIteration from None
        return sock

    def close(self) -> None:
        self._sock.close()


def identity(name: str = "laptop.mesh.test", user: User | None = ADA, tags: tuple[str, ...] = ()) -> Identity:
    """Somebody, as whois would describe them."""
    from ipaddress import ip_network

    from meshnode.base.addr import RegionId
    from meshnode.base.keys import NodePublic

    prefix = (ip_network("100.64.0.9/32"),)
    node = NetmapNode(
        9, "9", name, user.id if user else 0, NodePublic(bytes(31) + b"\x09"), None, None, prefix, prefix, (),
        RegionId(0), tags=tags,
    )  # fmt: skip
    return Identity(node, user, {})


@dataclass
class StandIn:
    """What a door needs of a node, without a tunnel."""

    who: Identity | None = None
    listeners: dict[int, Loopback] = field(default_factory=dict)

    async def listen(self, port: int) -> Loopback:
        self.listeners[port] = Loopback()
        return self.listeners[port]

    def whois(self, _: Any) -> Identity | None:
        return self.who

    def port(self, port: int) -> int:
        """The real port behind a tailnet port."""
        return self.listeners[port].port


@dataclass
class Answer:
    """A complete HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    fields: list[tuple[str, str]]
    continued: bool = False


@asynccontextmanager
async def site(door: Any, node: Any) -> AsyncIterator[Any]:
    """An entered http door that takes requests."""
    entered: AbstractAsyncContextManager[Any] = door(node)
    async with entered as found:
        async with asyncio.timeout(10):
            await found.serving.wait()
        yield found


async def call(
    port: int, path: str, *, method: str = "GET", headers: list[tuple[str, str]] | None = None, body: bytes = b""
) -> Answer:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(reader, writer, path, method=method, headers=headers, body=body)
    finally:
        writer.close()


async def exchange(
    reader: asyncio.StreamReader,
    writer: Any,
    path: str,
    *,
    method: str = "GET",
    headers: list[tuple[str, str]] | None = None,
    body: bytes = b"",
) -> Answer:
    """One request and its answer, strict on both."""
    http = h11.Connection(h11.CLIENT)
    fields = [("Host", "site.test"), ("Connection", "close"), *(headers or [])]
    if body:
        fields.append(("Content-Length", str(len(body))))
    writer.write(http.send(h11.Request(method=method, target=path, headers=fields)))
    if body:
        writer.write(http.send(h11.Data(body)))
    writer.write(http.send(h11.EndOfMessage()))
    await writer.drain()
    return await read_answer(http, reader)


async def read_answer(http: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    """Read until the answer is complete."""
    head: h11.Response | None = None
    parts = bytearray()
    continued = False
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(1 << 20))
        elif isinstance(event, h11.InformationalResponse):
            continued = True
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            parts += event.data
        else:
            assert head is not None, event
            fields = [(n.decode(), v.decode("latin-1")) for n, v in head.headers]
            return Answer(head.status_code, dict(fields), bytes(parts), fields, continued)


async def raw(port: int, data: bytes, *, until: bytes = b"") -> bytes:
    """Send bytes as they are; what comes back until the end, or until it holds `until`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        out = b""
        async with asyncio.timeout(10):
            while (part := await reader.read(65536)) and (out := out + part):
                if until and until in out:
                    break
        return out
    finally:
        writer.close()
