"""What the demo's parts need on paper: a certificate for the relay, a spec, a file to download."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

BLOCK: Final = 1 << 20

SPEC: Final = """\
# What callers may run here, and nothing else. Values fill the {places}; there is no shell.
[capabilities.hello]
description = "Says hello"
argv = ["echo", "hello,", "{who}"]
[capabilities.hello.params.who]
type = "string"
pattern = "[A-Za-z ]{1,40}"

[capabilities.checksum]
description = "SHA-256 of a file that this node serves"
argv = ["sha256sum", PLACE]
[capabilities.checksum.params.file]
type = "string"
choices = ["FILE"]
"""


def write_spec(path: Path, directory: Path, name: str) -> None:
    """The capability file, with the served directory in it."""
    place = f"{directory}/".replace("{", "{{").replace("}", "}}") + "{file}"
    # A JSON text is a TOML text too, whatever is in the directory's name.
    path.write_text(SPEC.replace("PLACE", json.dumps(place)).replace("FILE", name))


def write_file(path: Path, mebibytes: int) -> str:
    """A file that compresses badly; returns its SHA-256. OSError if the disk is full."""
    digest = hashlib.sha256()
    block = bytearray(os.urandom(BLOCK))
    with open(path, "wb", buffering=0) as file:
        for number in range(mebibytes):
            # Fresh noise everywhere would cost a second; a block that differs each time proves as much.
            block[:4096] = os.urandom(4096)
            block[4096:4104] = number.to_bytes(8, "big")
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def relay_certificate() -> tuple[bytes, str]:
    """A certificate and its key as PEM, and the pin by which the relay map names it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "meshnode demo relay")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain + secret, "sha256-raw:" + certificate.fingerprint(hashes.SHA256()).hex()
