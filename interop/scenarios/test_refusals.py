"""Refusals: each bad start is one sentence and an exit code of its own, and no key is ever printed."""

from __future__ import annotations

import pytest

from interop.bed import Bed
from interop.certs import Authority
from interop.conftest import Town
from interop.lab import LabError
from interop.peers.headscale import Headscale
from interop.peers.meshnode import Meshnode


def _refusal(bed: Bed, name: str, key: str) -> tuple[int, str]:
    """Join with a bad key; returns the exit code and what was said."""
    host = bed.lab.host(name)
    node = Meshnode(host, name, bed.headscale.url, key=key, socks5=False)
    process = node.launch()
    code = process.wait(20.0)
    said = process.err()
    assert key not in said + process.out(), "the key was printed"
    return code, said


@pytest.fixture(scope="module")
def refusals(town: Town) -> dict[str, tuple[int, str]]:
    """Exit code and words for each kind of key that control refuses."""
    headscale = town.bed.headscale
    spent = headscale.key(reusable=False)
    user = Meshnode(town.bed.lab.host("once"), "once", headscale.url, key=spent, socks5=False)
    user.start().stop()
    return {
        "wrong": _refusal(town.bed, "wrongkey", "hskey-auth-0123456789ab-" + "f" * 64),
        "expired": _refusal(town.bed, "expiredkey", headscale.expired_key()),
        "used": _refusal(town.bed, "usedkey", spent),
    }


@pytest.mark.parametrize("kind", ["wrong", "expired", "used"])
def test_refused_key_ends_at_once_with_a_sentence(refusals: dict[str, tuple[int, str]], kind: str) -> None:
    code, said = refusals[kind]
    assert code not in (0, 1), f"no exit code of its own: {code}\n{said}"
    last = said.strip().splitlines()[-1]
    assert "key" in last.lower(), last
    assert "Traceback" not in said


def test_expired_and_used_are_told_apart(refusals: dict[str, tuple[int, str]]) -> None:
    assert "expired" in refusals["expired"][1]
    assert "used" in refusals["used"][1]


def test_no_control_server_there(town: Town) -> None:
    """A plain web server in place of control is named as such, with its own exit code."""
    host = town.bed.lab.host("nocontrol")
    node = Meshnode(host, "nocontrol", f"http://{town.stock.host.v4}:80", key="hskey-auth-x-y", socks5=False)
    process = node.launch()
    try:
        code = process.wait(20.0)
    except LabError as error:
        raise AssertionError("still trying something that is no control server") from error
    assert code not in (0, 1)
    assert town.stock.host.v4 in process.err()
    assert "Traceback" not in process.err()


def test_certificate_of_an_unknown_authority(town: Town) -> None:
    """Control over TLS whose authority we were not given: one sentence, at once; with it, we join."""
    authority = Authority.create(town.bed.lab.folder / "another-ca")
    headscale = Headscale(town.bed.lab.hub, embedded_relay=True, port=8443, authority=authority).start()
    key = headscale.key()
    node = Meshnode(town.bed.lab.host("distrust"), "distrust", headscale.url, key=key, socks5=False)
    process = node.launch()
    code = process.wait(20.0)
    assert code not in (0, 1)
    assert "certificate" in process.err().strip().splitlines()[-1]
    assert "Traceback" not in process.err()
    node.ca = authority.ca
    node.start().stop()
    headscale.stop()


def test_name_that_does_not_resolve(town: Town) -> None:
    node = Meshnode(town.bed.lab.host("noname"), "noname", "http://control.invalid", key="hskey-auth-x-y", socks5=False)
    node.extra = ["--timeout", "5"]
    process = node.launch()
    code = process.wait(20.0)
    assert code not in (0, 1)
    assert "control.invalid" in process.err()
    assert "Traceback" not in process.err()
