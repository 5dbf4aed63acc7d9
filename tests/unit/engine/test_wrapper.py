"""Engine, Listener and TunnelSocket against a native engine played here: no thread, no packets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from meshnode.base.addr import Endpoint
from meshnode.base.errors import AccessDenied, DialError, ListenError, PeerOffline, Refused, TimedOut
from meshnode.base.keys import NodePublic
from meshnode.engine import _native
from meshnode.engine.engine import Engine
from meshnode.engine.failures import dial_error
from meshnode.engine.flow import TunnelSocket
from meshnode.engine.listener import Datagram

KEY = bytes(range(32))
HERE, THERE = IPv4Address("100.64.0.1"), IPv4Address("100.64.0.2")


class FakeNative:
    """Records calls and hands out the events a test put in."""

    def __init__(self) -> None:
        self.event_fd, self._write = os.pipe()
        self.port4, self.port6 = 41641, 0
        self.calls: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.closed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def record(*args: Any) -> None:
            self.calls.append((name, *args))

        return record

    def poll_events(self, limit: int = 256) -> list[tuple[Any, ...]]:
        taken, self.events = self.events[:limit], self.events[limit:]
        return taken

    def stats(self) -> dict[str, int]:
        return {"flows_ending": 0}

    def close(self, timeout_s: float) -> None:
        self.closed = True


def run(work: Callable[[Engine, FakeNative], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        native = FakeNative()
        engine = Engine(native, asyncio.get_running_loop())  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await work(engine, native)
        os.close(native.event_fd)
        os.close(native._write)

    asyncio.run(body())


def serve(engine: Engine, native: FakeNative, *events: tuple[Any, ...]) -> None:
    native.events += events
    engine._inbox.on_readable()


def flow_event(kind: int, req: int, flow: int, fd: int) -> tuple[Any, ...]:
    return (kind, req, flow, fd, HERE.packed, 50000, THERE.packed, 80, KEY)


async def request_of(native: FakeNative, name: str) -> int:
    while not [c for c in native.calls if c[0] == name]:
        await asyncio.sleep(0)
    return int(native.calls[-1][1])


def test_connect_makes_a_socket_that_knows_its_names() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        ours, app = socket.socketpair()
        attempt = asyncio.ensure_future(engine.connect(THERE, 80))
        req = await request_of(native, "connect")
        serve(engine, native, flow_event(_native.EV_CONNECTED, req, 7, app.detach()))
        sock = await attempt
        assert (sock.local, sock.remote) == (Endpoint(HERE, 50000), Endpoint(THERE, 80))
        assert sock.peer_key == NodePublic(KEY) and sock.flow_id == 7 and not sock.getblocking()
        assert sock.getpeername() == ("100.64.0.2", 80) and sock.getsockname() == ("100.64.0.1", 50000)
        ours.close()
        sock.close()

    run(work)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNREFUSED, Refused),
        (errno.ETIMEDOUT, TimedOut),
        (errno.EHOSTUNREACH, PeerOffline),
        (errno.ENETUNREACH, PeerOffline),
        (errno.EACCES, AccessDenied),
        (errno.EMFILE, DialError),
    ],
)
def test_failures_have_their_own_exceptions(number: int, kind: type[DialError]) -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        attempt = asyncio.ensure_future(engine.connect(THERE, 80))
        req = await request_of(native, "connect")
        serve(engine, native, (_native.EV_CONNECT_FAILED, req, number))
        with pytest.raises(kind, match=r"100\.64\.0\.2:80") as caught:
            await attempt
        assert caught.value.errno == number
        assert isinstance(caught.value, OSError)

    run(work)
    assert type(dial_error(number, Endpoint(THERE, 80))) is kind


def test_cancelled_connect_aborts_and_closes_what_comes_late() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        ours, app = socket.socketpair()
        attempt = asyncio.ensure_future(engine.connect(THERE, 80))
        req = await request_of(native, "connect")
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert ("abort", req) in native.calls
        serve(engine, native, flow_event(_native.EV_CONNECTED, req, 7, app.detach()))
        assert ours.recv(1) == b""
        ours.close()

    run(work)


def test_cancelled_just_after_the_answer_closes_the_socket() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        ours, app = socket.socketpair()
        attempt = asyncio.ensure_future(engine.connect(THERE, 80))
        req = await request_of(native, "connect")
        serve(engine, native, flow_event(_native.EV_CONNECTED, req, 7, app.detach()))
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert ours.recv(1) == b""
        ours.close()

    run(work)


def test_listener_is_bounded_and_ends() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        starting = asyncio.ensure_future(engine.listen(None, 80, backlog=2))
        req = await request_of(native, "listen")
        assert native.calls[-1] == ("listen", req, b"", 80, 2)
        serve(engine, native, (_native.EV_LISTENING, req, 0, 80))
        listener = await starting
        pairs = [socket.socketpair() for _ in range(3)]
        serve(engine, native, *(flow_event(_native.EV_ACCEPTED, req, i, p[1].detach()) for i, p in enumerate(pairs)))
        assert not [c for c in native.calls if c[0] == "taken"]
        (await anext(listener)).close()
        assert native.calls[-1] == ("taken", req, 1)
        listener.close()
        listener.close()
        assert pairs[1][0].recv(1) == b""
        assert [c for c in native.calls if c[0] == "unlisten"] == [("unlisten", req)]
        with pytest.raises(StopAsyncIteration):
            await anext(listener)
        for ours, _ in pairs:
            ours.close()

    run(work)


def test_the_engine_hears_of_places_in_the_backlog_when_it_matters() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        starting = asyncio.ensure_future(engine.listen(None, 80, backlog=6))
        req = await request_of(native, "listen")
        serve(engine, native, (_native.EV_LISTENING, req, 0, 80))
        listener = await starting
        pairs = [socket.socketpair() for _ in range(10)]
        told = []

        def arrive(first: int, end: int) -> None:
            events = [flow_event(_native.EV_ACCEPTED, req, i, pairs[i][1].detach()) for i in range(first, end)]
            serve(engine, native, *events)

        for arrived, taken, wanted in (
            (2, 2, []),
            (5, 0, []),
            (6, 0, [2]),
            (6, 2, [2]),
            (6, 1, [2, 3]),
            (6, 1, [2, 3]),
        ):
            arrive(len(told), arrived)
            told += [None] * (arrived - len(told))
            for _ in range(taken):
                (await anext(listener)).close()
            assert [c[2] for c in native.calls if c[0] == "taken"] == wanted, (arrived, taken)
        listener.close()
        for ours, app in pairs:
            ours.close()
            app.close()

    run(work)


def test_listen_refused() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        starting = asyncio.ensure_future(engine.listen(HERE, 80))
        req = await request_of(native, "listen")
        serve(engine, native, (_native.EV_LISTENING, req, errno.EADDRINUSE, 0))
        with pytest.raises(ListenError, match="port 80") as caught:
            await starting
        assert caught.value.errno == errno.EADDRINUSE

    run(work)


def test_end_of_stream_asks_the_engine_first() -> None:
    """The news of a reset may still wait in the engine when the socket already reads its end."""

    async def work(engine: Engine, native: FakeNative) -> None:
        ours, app = socket.socketpair()
        attempt = asyncio.ensure_future(engine.connect(THERE, 80))
        req = await request_of(native, "connect")
        serve(engine, native, flow_event(_native.EV_CONNECTED, req, 7, app.detach()))
        sock = await attempt
        heard: list[Any] = []
        engine.on_handshake = lambda peer, ok: heard.append(ok)
        native.events += [(_native.EV_HANDSHAKE, KEY, 1), (_native.EV_FLOW_ENDED, 7, errno.ECONNRESET)]
        ours.close()
        with pytest.raises(ConnectionResetError, match="100.64.0.2"):
            sock.recv(1)
        with pytest.raises(ConnectionResetError):
            sock.recv_into(bytearray(1))
        assert heard == []
        while not heard:
            await asyncio.sleep(0)
        assert heard == [True]
        sock.close()

    run(work)


def test_clean_end_is_an_end() -> None:
    ours, app = socket.socketpair()
    sock = TunnelSocket(
        app.detach(), local=Endpoint(HERE, 1), remote=Endpoint(THERE, 2), peer_key=NodePublic(KEY), flow_id=1
    )
    ours.close()
    assert sock.recv(10) == b"" and sock.recv_into(bytearray(4)) == 0
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    assert KEY.hex() not in repr(sock)
    sock.close()


def test_one_bad_callback_does_not_cost_the_next_event() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        heard: list[Any] = []
        engine.on_disco = lambda ip, port, data: 1 // 0  # type: ignore[func-returns-value, assignment]
        engine.on_extra = lambda *got: heard.append(got)
        engine.on_peer_recv = lambda *got: heard.append(got)
        serve(
            engine,
            native,
            (_native.EV_DISCO, THERE.packed, 5, b"x", 0),
            (_native.EV_DISCO, THERE.packed, 5, b"y", 3),
            (_native.EV_PEER_RECV, KEY, THERE.packed, 41641, 7, 0, 0, _native.WHAT_DATA),
            (_native.EV_PEER_RECV, KEY, bytes(16), 0, 0, 0, 9, _native.WHAT_KEEPALIVE),
            (_native.EV_LOST, 3),
        )
        assert isinstance(failures[0]["exception"], ZeroDivisionError)
        peer = NodePublic(KEY)
        assert heard.pop(0) == (Endpoint(THERE, 5, socket=3), b"y")
        assert heard == [(peer, Endpoint(THERE, 41641, vni=7), 0, 1), (peer, None, 9, 0)]
        assert engine.lost_count == 3

    run(work)


def test_commands_are_packed() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        peer = NodePublic(KEY)
        engine.set_path(peer, Endpoint(ip_address("fd00::1"), 9), 3, _native.PATH_BOTH)
        further = (Endpoint(ip_address("10.0.0.2"), 258), Endpoint(ip_address("fd00::1"), 7))
        engine.set_path(peer, Endpoint(ip_address("10.0.0.1"), 9), 3, _native.PATH_DIRECT, 1280, further)
        engine.set_path(peer, None, 3, _native.PATH_RELAY)
        engine.set_path(peer, Endpoint(THERE, 40000, vni=7), 3, _native.PATH_DIRECT)
        engine.set_path(peer, Endpoint(THERE, 40000, socket=256), 0, _native.PATH_DIRECT)
        engine.set_extra(5, 2, is_open=True)
        engine.send_extra(Endpoint(THERE, 40000, socket=5), b"ping")
        engine.inject(3, peer, b"data")
        others = bytes(10) + b"\xff\xff\x0a\0\0\2\1\2" + ip_address("fd00::1").packed + b"\0\7"
        assert native.calls == [
            ("set_path", KEY, ip_address("fd00::1").packed, 9, 0, 0, 3, 3, 0, b""),
            ("set_path", KEY, ip_address("10.0.0.1").packed, 9, 0, 0, 3, 1, 1280, others),
            ("set_path", KEY, bytes(4), 0, 0, 0, 3, 2, 0, b""),
            ("set_path", KEY, THERE.packed, 40000, 7, 0, 3, 1, 0, b""),
            ("set_path", KEY, THERE.packed, 40000, 0, 256, 0, 1, 0, b""),
            ("set_extra", 5, 2, 1),
            ("send_extra", 5, THERE.packed, 40000, b"ping"),
            ("inject", 3, KEY, b"data"),
        ]

    run(work)


def test_closing_fails_what_waits() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        asyncio.get_running_loop().add_reader(native.event_fd, lambda: None)
        attempt = asyncio.ensure_future(engine.connect(THERE, 80))
        await request_of(native, "connect")
        await engine.aclose()
        await engine.aclose()
        assert native.closed
        with pytest.raises(DialError, match="shutting down"):
            await attempt
        with pytest.raises(DialError, match="closed"):
            await engine.connect(THERE, 80)

    run(work)


def test_datagrams_carry_who_and_where_and_errors_find_their_port() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        got: list[Any] = []
        opening = asyncio.ensure_future(engine.open_datagrams(None, 0, got.append, lambda *error: got.append(error)))
        req = await request_of(native, "udp_open")
        serve(engine, native, (_native.EV_LISTENING, req, 0, 40000))
        flow = await opening
        assert flow.port == 40000
        serve(engine, native, (_native.EV_UDP, req, THERE.packed, 53, HERE.packed, KEY, b"x"))
        serve(engine, native, (_native.EV_UDP_ERROR, req, THERE.packed, 53, errno.ECONNREFUSED))
        assert got == [
            Datagram(b"x", Endpoint(THERE, 53), HERE, NodePublic(KEY)),
            (Endpoint(THERE, 53), errno.ECONNREFUSED),
        ]
        flow.send(THERE, 53, b"y", HERE)
        assert native.calls[-1] == ("udp_send", req, THERE.packed, 53, HERE.packed, b"y")
        flow.close()
        assert native.calls[-1] == ("udp_close", req)
        assert flow.send(THERE, 53, b"z") is False
        serve(engine, native, (_native.EV_UDP, req, THERE.packed, 53, HERE.packed, KEY, b"late"))
        assert len(got) == 2

    run(work)


def test_a_ping_that_cannot_leave_says_why() -> None:
    async def work(engine: Engine, native: FakeNative) -> None:
        attempt = asyncio.ensure_future(engine.ping(THERE))
        req = await request_of(native, "ping")
        serve(engine, native, (_native.EV_PING, req, 0, errno.EHOSTUNREACH))
        with pytest.raises(PeerOffline, match=r"100\.64\.0\.2 cannot be reached"):
            await attempt

    run(work)
