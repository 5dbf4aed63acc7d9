"""A relay's certificate in files that somebody else renews."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshnode.base.errors import ConfigError
from meshnode.relay import identity
from meshnode.relay.certificate import CertificateFiles


def test_a_change_is_seen_once_whatever_came_of_it(tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(identity.make_self_signed(["a.example"]))
    files = CertificateFiles(str(path), "", ["a.example"])
    assert files.read().startswith(b"-----BEGIN") and not files.has_changed()
    path.write_bytes(b"half of it")
    assert files.has_changed()
    with pytest.raises(ConfigError, match="holds no certificate in PEM"):
        files.read()
    assert not files.has_changed(), "a bad file is told of once"
    path.unlink()
    assert files.has_changed()
    with pytest.raises(ConfigError, match="cert: cannot read .*chain.pem: No such file"):
        files.read()
    assert not files.has_changed()
    fresh = tmp_path / "new"
    fresh.write_bytes(identity.make_self_signed(["a.example"]))
    os.utime(fresh, (0, 0))
    fresh.rename(path)
    assert files.has_changed(), "another file, if an older one"


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(identity.make_self_signed(["a.example"]))
    files = CertificateFiles(str(path), str(tmp_path / "none.pem"), [])
    with pytest.raises(ConfigError, match="key: cannot read .*none.pem"):
        files.read()
    said = str(files.unfit(ValueError("no private key")))
    assert "chain.pem with the key in " in said and "--key names its private key, without a passphrase" in said


@pytest.mark.parametrize(
    ("days", "hosts", "words"),
    [
        (-1, ["a.example"], "past its date"),
        (30, ["b.example"], "for other names"),
        (30, ["A.example"], ""),
    ],
)
def test_what_an_operator_wants_to_know_is_told(
    tmp_path: Path, logged: io.StringIO, days: int, hosts: list[str], words: str
) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(certificate("a.example", days))
    CertificateFiles(str(path), "", hosts).read()
    said = logged.getvalue()
    assert words in said and bool(said) is bool(words)


def certificate(name: str, days: int) -> bytes:
    """Self-signed; days: until its end, negative if that is over."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=90))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([identity.general_name(name)]), False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM) + identity.private_pem(key)
