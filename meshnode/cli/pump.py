"""Bytes between a socket and two file descriptors, blocking, for `meshnode nc`.

Each direction ends with its own end of file: stdin's end half-closes the socket, the socket's end
ends the command. At most one chunk waits per direction.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from typing import Final

CHUNK: Final = 65536


def pump(sock: socket.socket, early: bytes, source: int, sink: int) -> None:
    """Copy until the socket's end of file. OSError of the socket passes through."""
    write_all(sink, early)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if _is_regular(source):
        # poll(2) calls regular files always ready; /dev/null and files are simply read out first.
        while data := os.read(source, CHUNK):
            _send_draining(sock, data, sink)
        sock.shutdown(socket.SHUT_WR)
    else:
        poller.register(source, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if source in ready:
            data = os.read(source, CHUNK)
            if data:
                _send_draining(sock, data, sink)
            else:
                poller.unregister(source)
                sock.shutdown(socket.SHUT_WR)
        if sock.fileno() in ready:
            data = sock.recv(CHUNK)
            if not data:
                return
            write_all(sink, data)


def _send_draining(sock: socket.socket, data: bytes, sink: int) -> None:
    """Send all of `data` while taking what arrives, so that an echoing peer cannot lock us up."""
    view = memoryview(data)
    while view:
        readable, writable, _ = select.select([sock], [sock], [])
        if readable:
            arrived = sock.recv(CHUNK)
            if not arrived:
                # The other side ended its direction; ours may still be wanted: just send.
                sock.sendall(view)
                return
            write_all(sink, arrived)
        if writable:
            with contextlib.suppress(BlockingIOError):  # ready for less than all of it
                view = view[sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]


def write_all(sink: int, data: bytes) -> None:
    """Write every byte to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
