"""Flows: an engine's connections, listeners, UDP ports and pings, from the request to the event that answers it."""

from __future__ import annotations

import asyncio
import errno
import os
import weakref
from collections.abc import Callable
from typing import Any

from meshnode.base.addr import IP, Endpoint, from_packed
from meshnode.base.errors import DialError, ListenError, TimedOut
from meshnode.base.keys import NodePublic
from meshnode.engine import _native
from meshnode.engine.failures import dial_error, ping_error
from meshnode.engine.flow import TunnelSocket
from meshnode.engine.inbox import Inbox
from meshnode.engine.listener import Datagram, Datagrams, Listener, Received

BACKLOG_MAX = 65535
TAKEN_AGAIN_S = 0.05


class Flows:
    """Tables by request number. The errors of its methods are those of Engine's methods of the same names."""

    def __init__(self, native: _native.Engine, inbox: Inbox, key_of: Callable[[bytes], NodePublic]) -> None:
        self._native = native
        self._inbox = inbox
        self._key_of = key_of
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._next_req = 0
        self._connects: dict[int, tuple[asyncio.Future[TunnelSocket], Endpoint]] = {}
        self._starts: dict[int, asyncio.Future[int]] = {}
        self._pings: dict[int, tuple[asyncio.Future[int], IP]] = {}
        self._listeners: dict[int, Listener] = {}
        self._datagrams: dict[int, Datagrams] = {}
        self._flows: weakref.WeakValueDictionary[int, TunnelSocket] = weakref.WeakValueDictionary()
        self._ended: dict[int, int] = {}
        inbox.serve(
            {
                _native.EV_ACCEPTED: self._on_accepted,
                _native.EV_CONNECTED: self._on_connected,
                _native.EV_CONNECT_FAILED: self._on_connect_failed,
                _native.EV_FLOW_ENDED: self._on_flow_ended,
                _native.EV_LISTENING: self._on_listening,
                _native.EV_PING: self._on_ping,
                _native.EV_UDP: self._on_udp,
                _native.EV_UDP_ERROR: self._on_udp_error,
            }
        )

    def request(self) -> int:
        """A number for a request. DialError: the engine is closed."""
        if self._is_closed:
            raise DialError("this node's engine is closed")
        self._next_req += 1
        return self._next_req

    def refuse(self) -> None:
        """No further request is taken."""
        self._is_closed = True

    def close(self) -> None:
        """The engine has stopped: whoever waits is told, whatever is open ends."""
        self._is_closed = True
        for future, target in list(self._connects.values()):
            if not future.done():
                future.set_exception(dial_error(errno.ENETDOWN, target))
        for waiting in [*self._starts.values(), *(future for future, _ in self._pings.values())]:
            waiting.cancel()
        for listener in list(self._listeners.values()):
            listener.close()
        for flow in list(self._datagrams.values()):
            flow.close()
        self._connects.clear()

    async def connect(self, ip: IP, port: int) -> TunnelSocket:
        """A TCP connection inside the tunnel; cancelling leaves nothing behind."""
        req = self.request()
        future: asyncio.Future[TunnelSocket] = self._loop.create_future()
        self._connects[req] = (future, Endpoint(ip, port))
        try:
            self._native.connect(req, ip.packed, port)
            return await future
        except asyncio.CancelledError:
            if self._connects.pop(req, None) is not None:
                if not self._is_closed:
                    self._native.abort(req)
            elif future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
            raise
        finally:
            self._connects.pop(req, None)

    async def listen(self, ip: IP | None, port: int, backlog: int) -> Listener:
        """Take TCP connections."""
        req = self.request()
        backlog = min(max(1, backlog), BACKLOG_MAX)
        listener = Listener(self._unlisten, self._taken, req, Endpoint(ip, port) if ip else None, port, backlog)
        self._listeners[req] = listener
        try:
            self._native.listen(req, ip.packed if ip else b"", port, backlog)
            number = await self._started(req)
        except BaseException:
            listener.close()
            raise
        if number:
            self._listeners.pop(req, None)
            text = os.strerror(number)
            error = ListenError(f"tailnet port {port} cannot be listened on: {text}; try another port")
            error.errno = number
            raise error
        return listener

    async def open_datagrams(
        self, ip: IP | None, port: int, received: Received, failed: Callable[[Endpoint, int], None] | None
    ) -> Datagrams:
        """UDP inside the tunnel."""
        req = self.request()
        flow = Datagrams(self._native, self._forget_datagrams, req, received, failed)
        self._datagrams[req] = flow
        try:
            self._native.udp_open(req, ip.packed if ip else b"", port)
            number = await self._started(req)
        except BaseException:
            flow.close()
            raise
        if number:
            self._datagrams.pop(req, None)
            text = os.strerror(number)
            error = ListenError(f"tailnet UDP port {port} cannot be opened: {text}; try another port, or 0 for any")
            error.errno = number
            raise error
        return flow

    async def ping(self, ip: IP, size: int, timeout_s: float) -> float:
        """Round-trip seconds of an ICMP echo."""
        req = self.request()
        future: asyncio.Future[int] = self._loop.create_future()
        self._pings[req] = (future, ip)
        try:
            self._native.ping(req, ip.packed, size)
            async with asyncio.timeout(timeout_s):
                return await future / 1e9
        except TimeoutError:
            raise TimedOut(f"{ip} did not answer {size} bytes of ping within {timeout_s:g} s") from None
        finally:
            self._pings.pop(req, None)

    # --- events ---

    async def _started(self, req: int) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        self._starts[req] = future
        try:
            return await future
        finally:
            self._starts.pop(req, None)

    def _unlisten(self, req: int) -> None:
        if self._listeners.pop(req, None) is not None and not self._is_closed:
            self._native.unlisten(req)

    def _taken(self, req: int, count: int) -> None:
        if self._is_closed or req not in self._listeners:
            return
        try:
            self._native.taken(req, count)
        except RuntimeError:  # too many commands wait
            self._loop.call_later(TAKEN_AGAIN_S, self._taken, req, count)

    def _forget_datagrams(self, req: int) -> None:
        if self._datagrams.pop(req, None) is not None and not self._is_closed:
            self._native.udp_close(req)

    def _socket(self, flow: int, fd: int, lip: bytes, lport: int, rip: bytes, rport: int, key: bytes) -> TunnelSocket:
        sock = TunnelSocket(
            fd,
            local=Endpoint(from_packed(lip), lport),
            remote=Endpoint(from_packed(rip), rport),
            peer_key=self._key_of(key),
            flow_id=flow,
            ask=self._inbox.ask,
        )
        sock.error = self._ended.pop(flow, 0)
        self._flows[flow] = sock
        return sock

    def _on_accepted(self, req: int, flow: int, fd: int, *names: Any) -> None:
        sock = self._socket(flow, fd, *names)
        listener = self._listeners.get(req)
        if listener is None or not listener.offer(sock):
            sock.close()

    def _on_connected(self, req: int, flow: int, fd: int, *names: Any) -> None:
        sock = self._socket(flow, fd, *names)
        future, _ = self._connects.pop(req, (None, None))
        if future is None or future.done():
            sock.close()
        else:
            future.set_result(sock)

    def _on_connect_failed(self, req: int, number: int) -> None:
        future, target = self._connects.pop(req, (None, None))
        if future is not None and target is not None and not future.done():
            future.set_exception(dial_error(number, target))

    def _on_flow_ended(self, flow: int, number: int) -> None:
        sock = self._flows.get(flow)
        if sock is not None:
            sock.error = number
        elif number and self._inbox.is_holding:
            self._ended[flow] = number

    def _on_listening(self, req: int, number: int, port: int) -> None:
        future = self._starts.get(req)
        flow = self._datagrams.get(req)
        if flow is not None and not number:
            flow.port = port
        if future is not None and not future.done():
            future.set_result(number)

    def _on_ping(self, req: int, rtt_ns: int, number: int) -> None:
        future, ip = self._pings.get(req, (None, None))
        if future is None or ip is None or future.done():
            return
        if number:
            future.set_exception(ping_error(number, ip))
        else:
            future.set_result(rtt_ns)

    def _on_udp(self, req: int, ip: bytes, port: int, to: bytes, key: bytes, data: bytes) -> None:
        flow = self._datagrams.get(req)
        if flow is not None:
            flow.received(Datagram(data, Endpoint(from_packed(ip), port), from_packed(to), self._key_of(key)))

    def _on_udp_error(self, req: int, ip: bytes, port: int, number: int) -> None:
        flow = self._datagrams.get(req)
        if flow is not None and flow.failed is not None:
            flow.failed(Endpoint(from_packed(ip), port), number)
