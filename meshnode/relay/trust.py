"""What the certificates of a relay must be, and what they tell: its name or its pin, and the relay's own key.

Certificates are never skipped silently: the map's InsecureForTests counts only when the node's owner allowed it. A pin
is judged on the relay's own certificate alone, whatever else it sends.
Source: docs/protocol/paths.md 1.12, 2.1.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final

from meshnode.base.errors import RelayError
from meshnode.engine import _native
from meshnode.netmap.model import RelayNode
from meshnode.relay.options import PIN

_DER: Final = 2
"""The encoding, to Python's `_ssl`."""


def check_certificate(node: RelayNode, tls: ssl.SSLObject, *, allow_insecure: bool) -> None:
    """What OpenSSL was told to leave to us: pin, or name. RelayError if it is not the relay's certificate."""
    if node.cert_name.startswith(PIN):
        check_pin(node, tls.getpeercert(binary_form=True) or b"")
    elif not (node.insecure and allow_insecure):
        wanted = node.cert_name or node.host
        certificate: dict[str, Any] = tls.getpeercert() or {}
        names = [str(text) for _, text in certificate.get("subjectAltName", ())]
        if not any(matches_name(name, wanted) for name in names):
            raise RelayError(f"its certificate is for {', '.join(names) or 'no name'}, not for {wanted}")


def told_key(tls: ssl.SSLObject) -> bytes:
    """The relay's key as the last certificate of its chain tells it under TLS 1.3; b'' if none does.

    What this rests on is the handshake, so the caller has checked the relay's own certificate.
    """
    chain = _chain_of(tls) if tls.version() == "TLSv1.3" else []
    return _native.relay_key_of(chain[-1]) if len(chain) > 1 else b""


def _chain_of(tls: Any) -> list[bytes]:
    """Every certificate the relay sent, as DER; empty where Python does not show them."""
    if hasattr(tls, "get_unverified_chain"):  # Python 3.13
        return list(tls.get_unverified_chain())
    shown = getattr(getattr(tls, "_sslobj", None), "get_unverified_chain", None)
    return [certificate.public_bytes(_DER) for certificate in shown() or ()] if shown is not None else []


def matches_name(pattern: str, name: str) -> bool:
    """Whether a certificate's name covers `name`; `*` stands for exactly the first label."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    with suppress(ValueError):
        return ip_address(pattern) == ip_address(name)
    if pattern.startswith("*."):
        label, dot, rest = name.partition(".")
        return bool(label and dot) and rest == pattern[2:]
    return pattern == name


def check_pin(node: RelayNode, der: bytes) -> None:
    """Exactly this certificate, for this host, within its dates; who signed it does not matter."""
    from cryptography import x509  # late: only pinned relays need it

    if not hmac.compare_digest(hashlib.sha256(der).hexdigest(), node.cert_name[len(PIN) :].lower()):
        raise RelayError("its certificate is not the one pinned in the relay map")
    certificate = x509.load_der_x509_certificate(der)
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise RelayError("its pinned certificate is outside its dates")
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise RelayError("its pinned certificate names no host") from None
    names = [str(n) for n in extension.get_values_for_type(x509.DNSName)]
    names += [str(ip) for ip in extension.get_values_for_type(x509.IPAddress)]
    if not any(matches_name(name, node.host) for name in names):
        raise RelayError(f"its pinned certificate is for {', '.join(names)}, not for {node.host}")
