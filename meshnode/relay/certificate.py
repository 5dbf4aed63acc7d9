"""CertificateFiles: a relay's certificate and key as PEM files that somebody else renews.

Read whole, looked at for what an operator wants to know (other names, past its date), and read again when a file is
another one than before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from meshnode.base.errors import ConfigError
from meshnode.relay.identity import first_certificate, names_of
from meshnode.relay.trust import matches_name
from meshnode.run.log import get_logger

_log = get_logger("derp")


class CertificateFiles:
    """The file of the chain, and that of its key if it has one of its own."""

    def __init__(self, chain: str, key: str, hosts: Sequence[str]) -> None:
        """hosts: by which clients reach us."""
        self.chain = chain
        self._names = [name for name in (chain, key) if name]
        self._hosts = hosts
        self._stamp: list[tuple[int, int, int]] = []

    def read(self) -> bytes:
        """Chain and key. ConfigError if a file cannot be read, or holds no certificate."""
        pem = b""
        self._stamp = self._stamps()
        for name in self._names:
            try:
                pem += Path(name).read_bytes() + b"\n"
            except OSError as error:
                which = "cert" if name == self.chain else "key"
                raise ConfigError(f"{which}: cannot read {name}: {error.strerror}") from None
        leaf = first_certificate(pem, self.chain)
        self._tell(leaf)
        return pem

    def has_changed(self) -> bool:
        """Since the last `read`, whatever came of it."""
        return self._stamps() != self._stamp

    def unfit(self, error: ValueError) -> ConfigError:
        """What to say when TLS does not take what was read."""
        where = " with the key in ".join(self._names)
        reason, _, code = str(error).partition(": error:")  # of OpenSSL's codes only the words say anything
        reason += f" ({code.rpartition(':')[2]})" if code else ""
        return ConfigError(f"cert: {where} cannot be used: {reason}; --key names its private key, without a passphrase")

    def _stamps(self) -> list[tuple[int, int, int]]:
        return [_stamp_of(name) for name in self._names]

    def _tell(self, leaf: x509.Certificate) -> None:
        names = names_of(leaf)
        missing = [host for host in self._hosts if not any(matches_name(name, host) for name in names)]
        if missing:
            _log.warning("the certificate is for other names", missing=", ".join(missing), has=", ".join(names))
        now = datetime.now(UTC)
        if now > leaf.not_valid_after_utc:
            _log.warning("the certificate is past its date: clients refuse it", file=self.chain)
        elif now < leaf.not_valid_before_utc:
            _log.warning("the certificate is not valid yet; is this machine's clock right?", file=self.chain)


def _stamp_of(name: str) -> tuple[int, int, int]:
    """Zeros: it cannot be looked at."""
    try:
        found = os.stat(name)
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
