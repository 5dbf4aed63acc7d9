"""HTTP/2: both halves against each other, flow control above all."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.wire.h2 import (
    BODY_WAITING_MAX,
    STREAM_WINDOW,
    ClientH2,
    Data,
    End,
    Event,
    GoneAway,
    Head,
    Pong,
    Reset,
    ServerH2,
)


class Wire:
    """A client and a server joined by two byte strings."""

    def __init__(self) -> None:
        self.client, self.server = ClientH2("hs.example"), ServerH2()
        self.pump()

    def pump(self) -> tuple[list[Event], list[Event]]:
        """(events at the client, events at the server) until both are quiet."""
        at_client: list[Event] = []
        at_server: list[Event] = []
        while True:
            up, down = self.client.to_send(), self.server.to_send()
            if not up and not down:
                return at_client, at_server
            if up:
                at_server += self.server.receive(up)
            if down:
                at_client += self.client.receive(down)


def size(events: list[Event]) -> int:
    return sum(len(e.data) for e in events if isinstance(e, Data))


def test_request_and_answer() -> None:
    wire = Wire()
    ident = wire.client.request("POST", "/machine/map", [("ts-lb", "a"), ("ts-lb", "b")], b"{}")
    _, got = wire.pump()
    head = got[0]
    assert isinstance(head, Head) and (head.method, head.path) == ("POST", "/machine/map")
    assert isinstance(got[-1], End)
    wire.server.respond(ident, 404, [("content-type", "text/plain")], b"node not found")
    got, _ = wire.pump()
    assert isinstance(got[0], Head) and got[0].status == 404 and size(got) == 14 and isinstance(got[-1], End)


def test_large_request_body_waits_for_the_window() -> None:
    wire = Wire()
    wire.client.request("POST", "/", body=b"z" * 300_000)
    _, got = wire.pump()
    assert size(got) == 300_000 and isinstance(got[-1], End)


def test_more_than_a_window_arrives_once_credited() -> None:
    wire = Wire()
    ident = wire.client.request("POST", "/")
    wire.pump()
    total = STREAM_WINDOW + 1_000_000
    wire.server.respond(ident, 200, body=None)
    wire.server.send_body(ident, b"q" * total, end=True)
    got, _ = wire.pump()
    assert size(got) == STREAM_WINDOW and wire.server.waiting_bytes(ident) == 1_000_000
    for event in got:
        if isinstance(event, Data):
            wire.client.consumed(event.stream, event.credit)
    rest, _ = wire.pump()
    assert size(rest) == 1_000_000 and isinstance(rest[-1], End)


def test_a_cancelled_stream_does_not_eat_the_window() -> None:
    wire = Wire()
    for _ in range(3):
        ident = wire.client.request("POST", "/")
        wire.pump()
        wire.server.respond(ident, 200, body=None)
        wire.server.send_body(ident, b"q" * 1_000_000, end=False)
        got, _ = wire.pump()
        wire.client.cancel(ident)
        for event in got:
            if isinstance(event, Data):
                wire.client.consumed(event.stream, event.credit)
        _, at_server = wire.pump()
        assert any(isinstance(e, Reset) for e in at_server)
    ident = wire.client.request("POST", "/")
    wire.pump()
    wire.server.respond(ident, 200, body=b"x" * STREAM_WINDOW)
    assert size(wire.pump()[0]) == STREAM_WINDOW


def test_a_reader_that_never_reads_is_dropped() -> None:
    wire = Wire()
    ident = wire.client.request("POST", "/")
    wire.pump()
    wire.server.respond(ident, 200, body=None)
    wire.server.send_body(ident, b"q" * STREAM_WINDOW, end=False)
    wire.pump()
    with pytest.raises(LocalProtocolError):
        for _ in range(3):
            wire.server.send_body(ident, b"q" * (BODY_WAITING_MAX // 2), end=False)


def test_window_lowered_in_mid_flight() -> None:
    wire = Wire()
    wire.server._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
    wire.pump()
    wire.client.request("POST", "/", body=b"z" * 100)
    _, got = wire.pump()
    assert size(got) == 10
    for event in got:
        if isinstance(event, Data):
            wire.server._h2.increment_flow_control_window(1000, event.stream)
    _, got = wire.pump()
    assert size(got) == 90 and isinstance(got[-1], End)


def test_ping_is_answered_inside() -> None:
    wire = Wire()
    wire.server.ping(b"01234567")
    wire.client.ping(b"76543210")
    at_client, at_server = wire.pump()
    assert Pong(b"01234567") in at_server and Pong(b"76543210") in at_client


def test_going_away_leaves_open_streams_alone() -> None:
    wire = Wire()
    ident = wire.client.request("POST", "/")
    wire.pump()
    wire.server._h2.close_connection(ErrorCodes.NO_ERROR, additional_data=b"restarting", last_stream_id=ident)
    got, _ = wire.pump()
    assert got == [GoneAway(0, ident, "restarting")]
    with pytest.raises(LocalProtocolError):
        wire.client.request("POST", "/")


def test_push_is_refused() -> None:
    wire = Wire()
    ident = wire.client.request("POST", "/")
    wire.pump()
    payload = (2).to_bytes(4, "big") + b"\x88"
    frame = len(payload).to_bytes(3, "big") + b"\x05\x04" + ident.to_bytes(4, "big") + payload
    with pytest.raises(RemoteProtocolError):
        wire.client.receive(frame)


def test_an_overlong_frame_is_refused_before_it_is_complete() -> None:
    wire = Wire()
    with pytest.raises(RemoteProtocolError, match="more than"):
        for _ in range(5):
            wire.client.receive(b"\x7f\xff\xff\0\0\0\0\0\1" + bytes(8000))


def test_server_answers_to_a_stream_that_is_gone() -> None:
    wire = Wire()
    ident = wire.client.request("POST", "/")
    wire.pump()
    wire.client.cancel(ident)
    wire.pump()
    wire.server.respond(ident, 200, body=b"late")  # nobody is there: no error, no bytes
    assert wire.pump() == ([], [])


@given(st.binary(max_size=200))
def test_garbage_never_crashes(data: bytes) -> None:
    for half in (Wire().client, Wire().server):
        try:
            half.receive(data)
        except RemoteProtocolError:
            half.to_send()
