"""Registration: each reply of control.md 12.2, rotation, D-01's order, Retry-After."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from meshnode.base.errors import AuthError, ControlError, KeyExpired, KeyRejected, RemoteProtocolError, VersionRejected
from meshnode.base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from meshnode.base.units import Unix
from meshnode.core.login import (
    REPROMPTS_MAX,
    RETRY_AFTER_DEFAULT_S,
    Again,
    Keys,
    Later,
    Login,
    Refused,
    Registered,
    Step,
    Visit,
    emit_logout,
    retry_after_s,
)

WALL = Unix(1_800_000_000.0)
KEY = "hskey-auth-secret"
URL = "https://hs.example/register/abc"
OK = {"User": {"ID": 1, "DisplayName": "alice"}, "Login": {"LoginName": "alice"}, "MachineAuthorized": True}


def entropy() -> Any:
    numbers = count(1)
    return lambda n: bytes([next(numbers)]) * n


def login(**options: Any) -> Login:
    draw = entropy()
    keys = Keys(MachinePrivate.generate(draw), NodePrivate.generate(draw), DiscoPrivate.generate(draw).public())
    return Login(keys, {"Hostname": "n"}, draw, **options)


def sent(machine: Login) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(machine.request())
    return request


def reply(machine: Login, body: Any, status: int = 200, **headers: str) -> Step:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return machine.on_reply(status, headers, raw, WALL)


def error(machine: Login, text: str) -> Exception:
    step = reply(machine, {"Error": text})
    assert isinstance(step, Refused), step
    return step.error


def test_first_join_sends_the_key_and_everything_about_us() -> None:
    machine = login(auth_key=KEY, ephemeral=True)
    request = sent(machine)
    assert request["Auth"] == {"AuthKey": KEY} and request["Ephemeral"] is True
    assert request["Version"] == 131 and request["Hostinfo"] == {"Hostname": "n"}
    assert request["NodeKey"] == str(machine.keys.node.public()) and request["Expiry"].startswith("0001")
    assert request["OldNodeKey"] == "nodekey:" + "0" * 64
    done = reply(machine, OK)
    assert isinstance(done, Registered) and done.keys is machine.keys
    assert done.result.user is not None and done.result.user.login == "alice" and done.result.used_auth_key


def test_known_identity_is_tried_without_the_key_first() -> None:
    machine = login(auth_key=KEY, known=True)
    assert "Auth" not in sent(machine)
    done = reply(machine, OK)
    assert isinstance(done, Registered) and not done.result.used_auth_key
    forgotten = login(auth_key=KEY, known=True)
    assert isinstance(reply(forgotten, {"AuthURL": URL}), Again)
    assert sent(forgotten)["Auth"] == {"AuthKey": KEY}
    ignored = reply(forgotten, {"AuthURL": URL})
    assert isinstance(ignored, Visit) and ignored.ignored_key


def test_no_key_means_a_human() -> None:
    machine = login()
    step = reply(machine, {"AuthURL": URL})
    assert step == Visit(URL, ignored_key=False)
    assert sent(machine)["Followup"] == URL
    assert isinstance(reply(machine, {"AuthURL": URL}), Later)
    fresh = reply(machine, {"AuthURL": URL + "2"})
    assert isinstance(fresh, Visit) and sent(machine)["Followup"] == URL + "2"
    assert isinstance(reply(machine, OK), Registered)


def test_a_login_that_never_completes_ends() -> None:
    machine = login()
    steps = [reply(machine, {"AuthURL": f"{URL}{n}"}) for n in range(REPROMPTS_MAX + 2)]
    assert all(isinstance(step, Visit) for step in steps[:-1]) and isinstance(steps[-1], Refused)


def test_login_address_must_be_a_web_address() -> None:
    step = reply(login(), {"AuthURL": "file:///etc/passwd"})
    assert isinstance(step, Refused) and isinstance(step.error, RemoteProtocolError)


def test_expired_key_rotates_once() -> None:
    machine = login(auth_key=KEY, known=True)
    old = machine.keys.node
    assert isinstance(reply(machine, {"NodeKeyExpired": True}), Again)
    request = sent(machine)
    assert request["OldNodeKey"] == str(old.public()) != request["NodeKey"]
    assert request["Auth"] == {"AuthKey": KEY}
    assert [value for _, value in machine.headers()] == [request["OldNodeKey"], request["NodeKey"]]
    assert machine.keys.node == old, "not current before the server accepted it"
    done = reply(machine, OK)
    assert isinstance(done, Registered)
    assert done.keys.old_node == old and str(done.keys.node.public()) == request["NodeKey"]
    again = login(known=True)
    reply(again, {"NodeKeyExpired": True})
    step = reply(again, {"NodeKeyExpired": True})
    assert isinstance(step, Refused) and isinstance(step.error, KeyExpired)


def test_the_same_candidate_is_offered_while_a_human_is_waited_for() -> None:
    machine = login()
    reply(machine, {"NodeKeyExpired": True})
    offered = sent(machine)["NodeKey"]
    reply(machine, {"AuthURL": URL})
    assert sent(machine)["NodeKey"] == offered


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("invalid pre auth key", KeyRejected),
        ("handling register with auth key: invalid auth key: crypto/bcrypt", KeyRejected),
        ("failed to parse auth-key: key too short", KeyRejected),
        ("invalid authkey", KeyRejected),
        ("AuthKey expired", KeyExpired),
        ("authkey already used", KeyRejected),
        ("authkey revoked", KeyRejected),
        ("requested tags [tag:x] are invalid or not permitted", KeyRejected),
        ("extending key is not allowed", AuthError),
        ("something new", AuthError),
    ],
)
def test_refusals_say_what_to_do_and_what_the_server_said(text: str, kind: type[Exception]) -> None:
    found = error(login(auth_key=KEY), text)
    assert type(found) is kind and text.split(":")[0] in str(found)
    assert KEY not in str(found) and "\n" not in str(found)


@pytest.mark.parametrize(
    "text", ["node exists with a different machine key", "node key already in use by another machine"]
)
def test_a_mixed_up_node_key_is_replaced_once(text: str) -> None:
    machine = login(auth_key=KEY)
    before = sent(machine)["NodeKey"]
    assert isinstance(reply(machine, {"Error": text}), Again) and sent(machine)["NodeKey"] != before
    assert isinstance(error(machine, text), AuthError)


@pytest.mark.parametrize("text", ["registration timed out", "followup registration not found", "node not found"])
def test_stale_followup_is_dropped(text: str) -> None:
    machine = login()
    reply(machine, {"AuthURL": URL})
    assert isinstance(reply(machine, {"Error": text}), Later) and sent(machine)["Followup"] == ""


def test_null_is_a_node_the_server_forgot_and_has_an_end() -> None:
    machine = login(auth_key=KEY, known=True)
    steps = [reply(machine, b"null") for _ in range(REPROMPTS_MAX + 1)]
    assert isinstance(steps[0], Later) and sent(machine)["Auth"] and isinstance(steps[-1], Refused)


def test_statuses() -> None:
    limited = reply(login(), b"", 429, **{"retry-after": "30"})
    assert isinstance(limited, Later) and limited.delay_s == 30
    assert isinstance(reply(login(), b"internal server error", 500), Later)
    for status, kind in ((400, VersionRejected), (403, AuthError), (404, ControlError)):
        step = reply(login(), b"unsupported client version: v1", status)
        assert isinstance(step, Refused) and isinstance(step.error, kind)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("0", RETRY_AFTER_DEFAULT_S),
        ("-5", RETRY_AFTER_DEFAULT_S),
        ("", RETRY_AFTER_DEFAULT_S),
        ("soon", RETRY_AFTER_DEFAULT_S),
        ("999999999999", RETRY_AFTER_DEFAULT_S),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2021 08:01:00 GMT", RETRY_AFTER_DEFAULT_S),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after_s(value, WALL) == seconds


def test_tailnet_lock_wants_a_signature() -> None:
    step = reply(login(), {"NodeKeySignature": "AAAA"})
    assert isinstance(step, Refused) and "nodekey:" in str(step.error)


def test_nulls_everywhere() -> None:
    names = ("User", "Login", "NodeKeyExpired", "MachineAuthorized", "AuthURL", "NodeKeySignature", "Error")
    done = reply(login(), dict.fromkeys(names))
    assert isinstance(done, Registered) and not done.result.authorized and done.result.user is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"Error":1}', b'{"User":[]}', b"[" * 10_000])
def test_rubbish_is_refused(body: bytes) -> None:
    step = reply(login(), body)
    assert isinstance(step, Refused) and isinstance(step.error, RemoteProtocolError)


def test_logout_is_in_the_past() -> None:
    machine = login(auth_key=KEY)
    request = json.loads(emit_logout(machine.keys, {"Hostname": "n"}))
    assert request["Expiry"].startswith("1970-01-01") and "Auth" not in request
    assert request["NodeKey"] == str(machine.keys.node.public())


def test_nothing_prints_a_secret() -> None:
    machine = login(auth_key=KEY)
    assert KEY not in repr(machine) and machine.keys.node.reveal().hex() not in repr(machine)
