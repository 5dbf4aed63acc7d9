"""Metrics and health of a node over plain HTTP, for Prometheus and for container runtimes.

GET /metrics is the page, GET /healthz 200 while the node is running and 503 otherwise. One request a connection, at
most CONNECTIONS_MAX at once; who asks is not checked, so listen where only those can connect who may know.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from meshnode.base.addr import split_host_port
from meshnode.base.errors import ListenError, RemoteProtocolError
from meshnode.run.scope import Scope
from meshnode.wire.http1 import ServerHttp

CONNECTIONS_MAX: Final = 16
REQUEST_S: Final = 5.0
READ_BYTES: Final = 4096
TEXT: Final = [("Content-Type", "text/plain; version=0.0.4"), ("Connection", "close")]


def metrics_door(address: str) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    """Serves `node.metrics()` and `node.is_healthy` at HOST:PORT while entered. ListenError."""

    @contextlib.asynccontextmanager
    async def door(node: Any) -> AsyncIterator[None]:
        host, port = split_host_port(address)
        async with Scope("metrics") as scope:
            busy = 0

            def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal busy
                if busy >= CONNECTIONS_MAX:
                    writer.transport.abort()
                    return
                busy += 1
                scope.spawn(serve(reader, writer), "caller")

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal busy
                try:
                    async with asyncio.timeout(REQUEST_S):
                        writer.write(await _answer(node, reader))
                        await writer.drain()
                except (OSError, TimeoutError):
                    pass  # nobody is left to tell
                finally:
                    busy -= 1
                    writer.close()

            try:
                server = await asyncio.start_server(on_connection, host, port, limit=READ_BYTES)
            except OSError as error:
                reason = os.strerror(error.errno).lower() if error.errno else str(error)
                raise ListenError(f"metrics: cannot listen on {address}: {reason}; choose another --metrics") from None
            try:
                yield
            finally:
                server.close()

    return door


async def _answer(node: Any, reader: asyncio.StreamReader) -> bytes:
    http = ServerHttp(body_limit=0)
    try:
        while (request := http.receive(data := await reader.read(READ_BYTES))) is None:
            if not data:
                return b""
    except RemoteProtocolError as error:
        return http.respond(400, f"{error}\n".encode(), TEXT)
    if request.method not in ("GET", "HEAD"):
        return http.respond(405, b"only GET\n", TEXT)
    if request.path == "/metrics":
        return http.respond(200, node.metrics().encode(), TEXT)
    if request.path == "/healthz":
        return http.respond(200, b"ok\n", TEXT) if node.is_healthy else http.respond(503, b"not running\n", TEXT)
    return http.respond(404, b"/metrics or /healthz\n", TEXT)
