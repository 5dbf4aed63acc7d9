"""The dialect's small things: times, claims, requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.netmap import tailcfg


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-07-21T10:00:00Z", 1784628000.0),
        ("2026-07-21T10:00:00.5Z", 1784628000.5),
        ("2026-07-21T10:00:00.123456789Z", 1784628000.123456789),
        ("2026-07-21t12:00:00+02:00", 1784628000.0),
        ("1970-01-01T00:02:03Z", 123.0),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        (None, None),
        ("yesterday", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-07-21T10:00:00", None),
    ],
)
def test_times(text: str | None, seconds: float | None) -> None:
    found = tailcfg.parse_time(text)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_none(text: str) -> None:
    tailcfg.parse_time(text)
    tailcfg.parse_http_date(text)


def test_what_we_claim() -> None:
    """131: everything up to it is built; 144 would promise disco adverts over TSMP, which are not."""
    assert tailcfg.CAPABILITY_VERSION == 131


def test_map_requests_say_whether_they_stream() -> None:
    def request(stream: bool) -> dict[str, object]:
        raw = tailcfg.emit_map_request(
            version=131,
            node_key=NodePublic(b"\1" * 32),
            disco_key=DiscoPublic(b"\2" * 32),
            hostinfo={"OS": "linux"},
            endpoints=[(Endpoint.parse("[2001:db8::1]:7"), tailcfg.EndpointKind.STUN)],
            stream=stream,
            compress=True,
        )
        parsed: dict[str, object] = json.loads(raw)
        return parsed

    stream, lite = request(True), request(False)
    assert (stream["Stream"], stream["OmitPeers"], stream["Compress"]) == (True, False, "zstd")
    assert (lite["Stream"], lite["OmitPeers"], lite["Compress"]) == (False, True, "")
    assert lite["Endpoints"] == ["[2001:db8::1]:7"] and lite["EndpointTypes"] == [2]
    assert str(lite["DiscoKey"]).startswith("discokey:02") and str(lite["NodeKey"]).startswith("nodekey:01")


def test_net_info_is_added_only_when_there_is_some() -> None:
    assert tailcfg.with_net_info({"OS": "linux"}, RegionId(0), {}) == {"OS": "linux"}
    assert tailcfg.with_net_info({}, RegionId(9), {"UPnP": False})["NetInfo"] == {"UPnP": False, "PreferredDERP": 9}


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"publicKey":5}', b"<html>"])
def test_key_replies_that_are_none(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        tailcfg.parse_key_reply(body)


def test_errors_name_the_field_and_not_the_value() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        tailcfg.parse_map(b'{"Domain":{"secret":"hunter2"}}')
    assert "hunter2" not in str(caught.value)
