"""A private certificate authority for a lab, made with the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """A CA of one lab: `ca` is what clients are told to trust (SSL_CERT_FILE)."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @classmethod
    def create(cls, folder: Path) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        authority = cls(folder)
        words = ["req", "-x509", *_new_key(folder / "ca.key"), "-out", str(authority.ca)]
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        _openssl(*words, "-days", "2", "-subj", "/CN=lab authority", *extensions)
        return authority

    def issue(self, name: str, *addresses: str) -> tuple[Path, Path]:
        """A certificate for these IP addresses; returns (certificate, key)."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        names = ",".join(f"IP:{address}" for address in addresses)
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        _openssl("req", *_new_key(key), "-out", str(request), "-subj", f"/CN={name}")
        signer = ["-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key"), "-CAcreateserial"]
        signed = ["-days", "2", "-extfile", str(extensions), "-out", str(certificate)]
        _openssl("x509", "-req", "-in", str(request), *signer, *signed)
        return certificate, key


def _new_key(path: Path) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {words[0]} failed: {done.stderr.strip()}")
