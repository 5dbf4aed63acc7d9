"""A served tailnet port: `Server`, with the meaning of asyncio's.

Owns one engine listener and a task per connection, all in one scope: closing stops accepting at
once, `wait_closed` waits for handlers, and leaving the node ends them. The engine's backlog bounds
what waits; CONNECTIONS_MAX bounds what runs, beyond it connections stay in the backlog.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl as ssl_module
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.engine.flow import TunnelSocket
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.tunnel.streams import STREAM_LIMIT, TunnelWriter, accept_streams

if TYPE_CHECKING:
    from meshnode.engine.listener import Listener

_log = get_logger("tunnel")
BACKLOG: Final = 128
CONNECTIONS_MAX: Final = 4096
HANDSHAKE_TIMEOUT_S: Final = 15.0

Callback = Callable[[asyncio.StreamReader, TunnelWriter], Awaitable[None] | None]


class Server:
    """Calls `callback(reader, writer)` for every connection; a coroutine runs as its own task."""

    def __init__(
        self,
        listener: Listener,
        callback: Callback,
        *,
        ssl: ssl_module.SSLContext | None = None,
        limit: int = STREAM_LIMIT,
    ) -> None:
        self._listener = listener
        self._callback = callback
        self._ssl = ssl
        self._limit = limit
        self._scope = Scope(f"server:{listener.port}")
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._active = 0
        self._unserved: set[TunnelSocket] = set()
        """Handed to a task that has not begun: ended before it begins, nobody else would close them."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = asyncio.Event()
        self._scope.spawn(self._accept(), "accept")

    @property
    def port(self) -> int:
        """The tailnet port."""
        return self._listener.port

    def is_serving(self) -> bool:
        """Whether new connections are taken."""
        return not self._closed.is_set()

    def close(self) -> None:
        """Take no more connections; those open go on."""
        self._listener.close()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until it was closed and every handler is done."""
        await self._closed.wait()
        await self._idle.wait()

    async def serve_forever(self) -> None:
        """Wait until closed; cancelled: close."""
        try:
            await self._closed.wait()
        finally:
            self.close()

    async def aclose(self) -> None:
        """Close, and end every handler."""
        self.close()
        await self._scope.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    async def _accept(self) -> None:
        while True:
            await self._slots.acquire()
            try:
                sock = await anext(self._listener)
            except StopAsyncIteration:
                return
            self._active += 1
            self._idle.clear()
            self._unserved.add(sock)
            task = self._scope.spawn(self._handle(sock), str(sock.remote))
            task.add_done_callback(partial(self._on_handled, sock))

    def _on_handled(self, sock: TunnelSocket, _: asyncio.Task[Any]) -> None:
        if sock in self._unserved:
            self._unserved.discard(sock)
            sock.close()
        self._slots.release()
        self._active -= 1
        if not self._active:
            self._idle.set()

    async def _handle(self, sock: TunnelSocket) -> None:
        self._unserved.discard(sock)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                reader, writer = await accept_streams(sock, ssl=self._ssl, limit=self._limit)
        except (OSError, TimeoutError) as error:
            _log.debug("connection ended before it was served", peer=str(sock.remote), error=str(error))
            return
        try:
            result = self._callback(reader, writer)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            # As asyncio's start_server: the handler's fault is reported and ends this connection only.
            context = {"message": "a connection's handler failed", "exception": error, "transport": writer.transport}
            asyncio.get_running_loop().call_exception_handler(context)
            writer.transport.abort()
        except BaseException:
            writer.transport.abort()
            raise
