"""What a relay keeps: a damaged file is refused, never replaced; nobody else may read it."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest
from cryptography import x509

from meshnode.base.errors import StateError
from meshnode.relay import identity
from meshnode.run.clock import Clock

CLOCK = Clock()
DERPERS = {"PrivateKey": "privkey:" + "40" * 32}


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"PrivateKey": 5}', b'{"PrivateKey": "privkey:00"}', b"\xff\xfe", b"[" * 9999],
)
def test_a_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / identity.KEY_FILE
    path.write_bytes(content)
    with pytest.raises(StateError, match="does not hold a relay's key; move it away"):
        identity.load_key(tmp_path, CLOCK)
    assert path.read_bytes() == content


def test_a_new_key_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    key = identity.load_key(tmp_path / "d", CLOCK)
    path = tmp_path / "d" / identity.KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert identity.load_key(tmp_path / "d", CLOCK).public() == key.public()


def test_derpers_file_is_taken_and_its_readers_are_told_of(tmp_path: Path, logged: io.StringIO) -> None:
    path = tmp_path / identity.KEY_FILE
    path.write_text(json.dumps(DERPERS, indent="\t"))
    path.chmod(0o644)
    assert identity.load_key(tmp_path, CLOCK).reveal_text() == DERPERS["PrivateKey"]
    assert "others on this machine can read" in logged.getvalue()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("meshnode.relay.identity.os.fsync", full)
    with pytest.raises(StateError, match="No space left on device; choose another --dir"):
        identity.load_key(tmp_path, CLOCK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 200, -60])
def test_a_damaged_certificate_is_refused_for_its_pin_is_known(tmp_path: Path, keep: int) -> None:
    whole = identity.self_signed(tmp_path, ["127.0.0.1"])
    assert identity.self_signed(tmp_path, ["127.0.0.1"]) == whole
    (tmp_path / identity.PEM_FILE).write_bytes(whole[:keep])
    with pytest.raises(StateError, match="move it away to make a new one, which has another pin"):
        identity.self_signed(tmp_path, ["127.0.0.1"])


def test_the_key_of_another_certificate_does_not_fit(tmp_path: Path) -> None:
    one, other = (identity.make_self_signed(["a.example"]) for _ in range(2))
    certificate = one[: one.index(b"-----BEGIN PRIVATE")]
    (tmp_path / identity.PEM_FILE).write_bytes(certificate + other[other.index(b"-----BEGIN PRIVATE") :])
    with pytest.raises(StateError, match="does not hold a certificate and its key"):
        identity.self_signed(tmp_path, ["a.example"])


def test_addresses_and_names_stand_in_the_certificate() -> None:
    made = x509.load_pem_x509_certificate(identity.make_self_signed(["relay.lan", "::1", "192.0.2.1"]))
    assert identity.names_of(made) == ["relay.lan", "::1", "192.0.2.1"]
