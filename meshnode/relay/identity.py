"""What a relay keeps: its key, and a certificate of its own when nobody else gives it one.

The key file is derper's: {"PrivateKey": "privkey:…"}, mode 0600. The meta-certificate rides behind the real chain
and tells clients the relay's key within the TLS handshake, which saves them a round trip.
Source: docs/protocol/paths.md 1.12, 1.14.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from meshnode.base.errors import ConfigError, StateError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.wire import derp

KEY_FILE: Final = "relay.key.json"
PEM_FILE: Final = "relay.pem"
SELF_SIGNED_DAYS: Final = 3650
RENEW_DAYS: Final = 30
META_DAYS: Final = 30
_log = get_logger("derp")


def load_key(folder: Path, clock: Clock) -> NodePrivate:
    """The relay's key from `folder`, made at the first start. StateError if it cannot be read or kept."""
    path = folder / KEY_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            if path.stat().st_mode & 0o077:
                _log.warning("others on this machine can read the relay's key", file=str(path), mend="chmod 600")
            return _parse_key(path.read_bytes(), path)
        key = NodePrivate.generate(clock.entropy)
        write_secret(path, json.dumps({"PrivateKey": key.reveal_text()}).encode())
        return key
    except OSError as error:
        raise StateError(f"cannot keep the relay's key in {folder}: {error.strerror}; choose another --dir") from None


def _parse_key(content: bytes, path: Path) -> NodePrivate:
    try:
        return NodePrivate.parse(json.loads(content)["PrivateKey"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StateError(f"{path} does not hold a relay's key; move it away to make a new one") from None


def write_secret(path: Path, content: bytes) -> None:
    """Replace a file at once, readable by its owner alone."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def self_signed(folder: Path, names: Sequence[str]) -> bytes:
    """A kept certificate for these host names and addresses, with its key, as PEM; made anew when it no longer fits.

    StateError if it cannot be kept, or what is kept is damaged: a new one has another pin, which somebody must tell
    the clients.
    """
    path = folder / PEM_FILE
    try:
        if path.exists():
            kept = path.read_bytes()
            if _fits(_sound(kept, path), names):
                return kept
            _log.warning("a new certificate, for other names or more days: relay maps need its pin", file=str(path))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = make_self_signed(names)
        write_secret(path, made)
        return made
    except OSError as error:
        raise StateError(f"cannot keep a certificate in {folder}: {error.strerror}; choose another --dir") from None


def make_self_signed(
    names: Sequence[str], *, days: int = SELF_SIGNED_DAYS, proof: x509.ExtensionType | None = None
) -> bytes:
    """A fresh certificate for these host names and addresses, and its key, as PEM; kept nowhere.

    proof: a critical extension besides, of an answer to an ACME server.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64])])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    )
    if proof is not None:
        builder = builder.add_extension(proof, True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private_pem(key)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as it stands behind its certificate in a file: PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def general_name(name: str) -> x509.GeneralName:
    """A host name or an address, as certificates have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _sound(pem: bytes, path: Path) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, None)
        if key.public_key() == certificate.public_key():
            return certificate
    except (ValueError, TypeError):
        pass
    raise StateError(
        f"{path} does not hold a certificate and its key; move it away to make a new one, which has another pin"
    )


def _fits(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    lasts = certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=RENEW_DAYS)
    return lasts and set(names) <= set(names_of(certificate))


def names_of(certificate: x509.Certificate) -> list[str]:
    """Host names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *found.get_values_for_type(x509.DNSName),
        *(str(address) for address in found.get_values_for_type(x509.IPAddress)),
    ]


def first_certificate(pem: bytes, where: str) -> x509.Certificate:
    """The leaf of a PEM chain. ConfigError if there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"cert: {where} holds no certificate in PEM") from None


def pin_of(certificate: x509.Certificate) -> str:
    """How a relay map pins it."""
    return "sha256-raw:" + hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def meta_certificate(key: NodePublic) -> bytes:
    """The certificate that names the relay's key, as DER."""
    signer = ed25519.Ed25519PrivateKey.generate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its common name is longer than X.509 wants, and clients know it so
        attribute = x509.NameAttribute(x509.NameOID.COMMON_NAME, "derpkey" + key.raw.hex(), _validate=False)
    name = x509.Name([attribute])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(signer.public_key())
        .serial_number(derp.VERSION)
        .not_valid_before(now - timedelta(days=META_DAYS))
        .not_valid_after(now + timedelta(days=META_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(signer, None)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def region_entry(
    *, number: int, code: str, host: str, port: int, stun_port: int, pin: str = "", insecure: bool = False
) -> dict[str, Any]:
    """A region of a relay map that holds this relay alone, in the map's own names."""
    node: dict[str, Any] = {"Name": f"{number}a", "RegionID": number, "HostName": host, "DERPPort": port}
    node["STUNPort"] = stun_port if stun_port else -1
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(host).version
        node["IPv4"] = host if version == 4 else "none"
        node["IPv6"] = host if version == 6 else "none"
    if pin:
        node["CertName"] = pin
    if insecure:
        node["InsecureForTests"] = True
    return {"RegionID": number, "RegionCode": code, "RegionName": code, "Nodes": [node]}


def headscale_yaml(region: dict[str, Any]) -> str:
    """The same as a file for Headscale's `derp.paths`."""
    number = region["RegionID"]
    lines = [
        "regions:",
        f"  {number}:",
        f"    regionid: {number}",
        f"    regioncode: {json.dumps(region['RegionCode'])}",
        f"    regionname: {json.dumps(region['RegionName'])}",
        "    nodes:",
    ]
    for node in region["Nodes"]:
        mark = "      - "
        for name, value in node.items():
            lines.append(f"{mark}{name.lower()}: {json.dumps(value)}")
            mark = "        "
    return "\n".join(lines) + "\n"
