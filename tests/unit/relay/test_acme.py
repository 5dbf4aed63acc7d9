"""When a certificate is kept, when it is due, and the proof by TLS; the rest is shown against a real ACME server."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnode.base.errors import ConfigError, StateError
from meshnode.base.units import Unix
from meshnode.relay import acme
from meshnode.relay.acme import CERTIFICATE_FILE, Acme, Wish, proof_certificate
from meshnode.relay.identity import general_name, names_of
from meshnode.run.clock import Clock

START = datetime(2026, 11, 21, tzinfo=UTC)
DAY_S = 86400.0


class At(Clock):
    """A clock that stands so many days after START."""

    __slots__ = ("days",)

    def __init__(self, days: float) -> None:
        super().__init__()
        self.days = days

    def wall(self) -> Unix:
        return Unix(START.timestamp() + self.days * DAY_S)


def certificate(days: float, *names: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([general_name(n) for n in names]), False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def order(folder: Path, days: float, *names: str) -> Acme:
    return Acme(Wish(acme.LETSENCRYPT, names, folder), present=lambda _: None, clock=At(days))


def test_it_is_due_when_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    pem = certificate(90, "a.example")
    assert order(tmp_path, 0, "a.example").due_in_s(pem) == pytest.approx(60 * DAY_S)
    assert order(tmp_path, 59, "a.example").due_in_s(pem) == pytest.approx(DAY_S)
    assert order(tmp_path, 61, "a.example").due_in_s(pem) == 0
    assert order(tmp_path, 0, "a.example").due_in_s(certificate(6, "a.example")) == pytest.approx(4 * DAY_S)


class Stop(Exception):
    """The end of a story that never ends."""


def renewals(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pem: bytes, clock: At, jump_days: float = 0.0
) -> list[float]:
    """Days at which a new certificate was asked for, the first three; the clock jumps during the first sleep."""
    asked: list[float] = []
    made = Acme(Wish(acme.LETSENCRYPT, ("a.example",), folder), present=lambda _: None, clock=clock)
    jumps = [jump_days]

    async def sleep(seconds: float) -> None:
        clock.days += seconds / DAY_S + (jumps.pop() if jumps else 0.0)

    async def obtain() -> bytes:
        asked.append(clock.days)
        if len(asked) == 3:
            raise Stop
        return pem

    monkeypatch.setattr("meshnode.relay.acme.asyncio.sleep", sleep)
    monkeypatch.setattr(made, "obtain", obtain)
    with pytest.raises(Stop):
        asyncio.run(made.renew_for_ever(pem, lambda _: None))
    return asked


def test_a_clock_that_was_set_does_not_make_a_renewal_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(90, "a.example")
    (first, *_) = renewals(tmp_path, monkeypatch, pem, At(0))
    assert 54 <= first <= 60, "a third of its life is left, or a little more"
    (first, *_) = renewals(tmp_path, monkeypatch, pem, At(0), jump_days=70)
    assert 70 <= first < 70.1, "at the next look"


def test_a_clock_far_ahead_asks_no_server_without_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = renewals(tmp_path, monkeypatch, certificate(90, "a.example"), At(4000))
    assert first == 4000 and min(second - first, third - second) >= 0.9 * acme.RETRY_S / DAY_S


def test_what_is_kept_is_used_while_it_fits(tmp_path: Path) -> None:
    assert order(tmp_path, 0, "a.example").kept() is None
    pem = certificate(90, "a.example", "192.0.2.1")
    (tmp_path / CERTIFICATE_FILE).write_bytes(pem)
    assert order(tmp_path, 89, "a.example", "192.0.2.1").kept() == pem
    assert order(tmp_path, 89, "192.0.2.1").kept() == pem
    assert order(tmp_path, 90, "a.example").kept() is None
    assert order(tmp_path, 0, "a.example", "b.example").kept() is None
    (tmp_path / CERTIFICATE_FILE).write_text("nothing of the kind")
    with pytest.raises(StateError, match=r"acme\.pem cannot be used: .*; move it away"):
        order(tmp_path, 0, "a.example").kept()


@pytest.mark.parametrize("name", ["relay.example", "192.0.2.1", "2001:db8::1"])
def test_the_proof_names_what_is_proved(name: str) -> None:
    """RFC 8737 3: that name alone, and the digest of the key authorization in a critical extension."""
    made = x509.load_pem_x509_certificate(proof_certificate(name, "token.thumbprint"))
    proof = made.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert names_of(made) == [name] and proof.critical
    assert isinstance(proof.value, x509.UnrecognizedExtension)
    assert proof.value.value == b"\x04\x20" + hashlib.sha256(b"token.thumbprint").digest()


def test_names_that_cannot_be_proved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs names or addresses"):
        order(tmp_path, 0)
    with pytest.raises(ConfigError, match="a wildcard cannot be proved"):
        order(tmp_path, 0, "*.example")
