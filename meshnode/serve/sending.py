"""A file's bytes into a connection, by sendfile(2), past Python's buffers.

Works under asyncio and uvloop: the transport's own buffer is emptied first, then the kernel copies
from the page cache to a duplicate of the connection's descriptor, SLICE bytes at most per call, so that
other connections get their turn. A file that shrinks under us ends the connection: its length was promised.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final

from meshnode.serve.ingress import NamedTransport

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest, StreamResponse

SLICE: Final = 512 * 1024
STALL_S: Final = 60.0
"""A reader that takes nothing for this long is gone."""


async def send_file(request: BaseRequest, response: StreamResponse, fd: int, first: int, count: int) -> None:
    """Send `count` bytes of `fd` from `first` as the body of a prepared response. OSError: the reader left."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the connection is gone")
    # The head leaves with the first bytes; what follows must not overtake it.
    lead = min(count, 16 * 1024)
    await response.write(os.pread(fd, lead, first))
    await _flushed(transport)
    sink = os.dup(transport.get_extra_info("socket").fileno())
    named = transport if isinstance(transport, NamedTransport) else None
    try:
        if named is not None:
            named.is_sending = True
        await _copy(transport, sink, fd, first + lead, count - lead)
    finally:
        if named is not None:
            named.is_sending = False
        os.close(sink)


async def _copy(transport: Any, sink: int, fd: int, offset: int, count: int) -> None:
    while count:
        if transport.is_closing():
            raise ConnectionResetError("the connection is gone")
        try:
            sent = os.sendfile(sink, fd, offset, min(count, SLICE))
        except BlockingIOError:
            await _writable(sink)
            continue
        if sent == 0:
            transport.abort()
            raise ConnectionResetError("the file became shorter while it was sent")
        offset += sent
        count -= sent
        await asyncio.sleep(0)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        async with asyncio.timeout(STALL_S):
            await ready.wait()
    except TimeoutError:
        raise ConnectionResetError("the reader takes nothing any more") from None
    finally:
        loop.remove_writer(fd)


async def _flushed(transport: Any) -> None:
    """Wait until everything written so far is in the kernel's hands."""
    if not transport.get_write_buffer_size():
        return
    sink = os.dup(transport.get_extra_info("socket").fileno())
    try:
        while transport.get_write_buffer_size():
            if transport.is_closing():
                raise ConnectionResetError("the connection is gone")
            await _writable(sink)
            await asyncio.sleep(0)
    finally:
        os.close(sink)
