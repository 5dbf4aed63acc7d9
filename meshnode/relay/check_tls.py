"""What `meshnode derp --check` finds about the certificate: for whom it is, until when, who vouches for it, its pin.

Also what every step is made of: a Finding, and the Way to the relay, through a proxy if one leads there.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509

from meshnode.base.proxy import Proxy
from meshnode.relay.identity import names_of, pin_of
from meshnode.relay.trust import matches_name
from meshnode.run.connect import connect_through

STEP_S: Final = 5.0
EXPIRY_WARNING: Final = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    step: str
    ok: bool
    text: str
    mend: str = ""
    """What to do about it; '' if nothing."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the relay."""

    address: tuple[str, int]
    """Through a proxy the name, which the proxy resolves."""
    proxy: Proxy | None
    ca_file: str

    async def open(self, **tls: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, with TLS if `ssl` and `server_hostname` say so."""
        if self.proxy is None:
            return await asyncio.open_connection(*self.address, **tls)
        sock = await connect_through(self.proxy, *self.address, ca_file=self.ca_file)
        return await asyncio.open_connection(sock=sock, **tls)


def trusting() -> ssl.SSLContext:
    """TLS with anybody: what is shown is judged afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def judge(host: str, way: Way, der: bytes, pin: str) -> list[Finding]:
    """Of the certificate that was shown. pin: of the relay map; '' if that has none."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names, shown = names_of(certificate), pin_of(certificate)
    except ValueError as error:
        return [Finding("certificate", False, f"it cannot be read: {error}", "give the relay another certificate")]
    about, problem = _dates_and_names(host, certificate, names)
    if problem is not None:
        return [problem, *_pinned(pin, shown)]
    if pin:
        return [Finding("certificate", True, about), *_pinned(pin, shown)]
    return [await _vouched(host, way, certificate, about, shown)]


def _dates_and_names(host: str, certificate: x509.Certificate, names: list[str]) -> tuple[str, Finding | None]:
    now = datetime.now(UTC)
    left = certificate.not_valid_after_utc - now
    about = f"for {', '.join(names) or 'no name'}, {left.days} days left"
    wrong = ""
    if left < timedelta(0):
        wrong, mend = (
            f"expired at {certificate.not_valid_after_utc:%F %T} UTC",
            "renew it; the relay reads the file again",
        )
    elif certificate.not_valid_before_utc > now:
        wrong = f"not valid before {certificate.not_valid_before_utc:%F %T} UTC"
        mend = "is this machine's clock right, and that of whoever issued it?"
    elif not any(matches_name(name, host) for name in names):
        wrong, mend = about, f"get one for {host}, or add {host} with --host"
    return about, Finding("certificate", False, wrong, mend) if wrong else None


def _pinned(pin: str, shown: str) -> list[Finding]:
    if not pin:
        return []
    if hmac.compare_digest(pin.lower(), shown):
        return [Finding("pin", True, "it is the certificate that the relay map pins")]
    return [Finding("pin", False, f"the certificate's is {shown}", "put this into the relay map as CertName")]


async def _vouched(host: str, way: Way, certificate: x509.Certificate, about: str, shown: str) -> Finding:
    context = ssl.create_default_context()
    if way.ca_file:
        context.load_verify_locations(cafile=way.ca_file)
    try:
        async with asyncio.timeout(STEP_S):
            _, writer = await way.open(ssl=context, server_hostname=host)
        writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "certificate", True, f"{about}; no authority vouches for it ({error.verify_message})",
            f"pin it in the relay map, CertName: {shown}",
        )  # fmt: skip
    except (OSError, TimeoutError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        return Finding("certificate", False, f"{about}; a second connection failed: {why}")
    if certificate.not_valid_after_utc - datetime.now(UTC) < EXPIRY_WARNING:
        return Finding("certificate", True, about, "it expires soon: is its renewal working?")
    return Finding("certificate", True, about)
