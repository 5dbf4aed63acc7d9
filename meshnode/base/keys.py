"""Keys: opaque, compared in constant time, never printed.

Owns the text forms of the control protocol (`nodekey:` + 64 hex and friends) and the X25519 pairs
behind them. A private key's `repr` shows only its kind; a public key's `str` is its text form.
Randomness arrives as an argument, so that tests are exact.
Source: docs/protocol/control.md 1.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import ClassVar, Self

from nacl.bindings import crypto_scalarmult_base

from meshnode.base.errors import KeyFormatError

KEY_LEN = 32
BASE64_LEN = 44
Entropy = Callable[[int], bytes]
"""Returns that many random bytes; `run.clock` hands the system's out."""


class _Key:
    """Thirty-two bytes of one kind. Immutable; equality takes constant time."""

    __slots__ = ("_raw",)
    prefix: ClassVar[str] = ""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LEN:
            raise KeyFormatError(f"{type(self).__name__}: {len(raw)} bytes, expected {KEY_LEN}")
        self._raw = bytes(raw)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash((type(self).prefix, self._raw))

    @property
    def is_zero(self) -> bool:
        """Whether this is the all-zero key, the protocol's way to say "no key"."""
        return self._raw == bytes(KEY_LEN)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Raises KeyFormatError naming the kind, never the content."""
        if not text.startswith(cls.prefix):
            raise KeyFormatError(f"{cls.__name__}: text does not start with {cls.prefix!r}")
        digits = text[len(cls.prefix) :]
        if len(digits) != 2 * KEY_LEN:
            raise KeyFormatError(f"{cls.__name__}: {len(digits)} digits, expected {2 * KEY_LEN}")
        try:
            return cls(bytes.fromhex(digits))
        except ValueError:
            raise KeyFormatError(f"{cls.__name__}: not hexadecimal") from None

    @classmethod
    def parse_base64(cls, text: str) -> Self:
        """Read WireGuard's own text form, 44 characters of base64. KeyFormatError never repeats the text."""
        if len(text) != BASE64_LEN or not text.isascii():
            raise KeyFormatError(f"{cls.__name__}: {len(text)} characters, expected {BASE64_LEN} of base64")
        try:
            key = cls(base64.b64decode(text, validate=True))
        except ValueError:
            raise KeyFormatError(f"{cls.__name__}: not base64") from None
        if base64.b64encode(key._raw).decode() != text:
            raise KeyFormatError(f"{cls.__name__}: not base64 of {KEY_LEN} bytes")
        return key


class _Public(_Key):
    """A public key: may be shown, sorted and used as a dictionary key."""

    __slots__ = ()

    @property
    def raw(self) -> bytes:
        """The 32 bytes, as the wire wants them."""
        return self._raw

    @property
    def short(self) -> str:
        """The first eight hex digits, enough to tell peers apart in a log."""
        return self._raw[:4].hex()

    @property
    def base64(self) -> str:
        """WireGuard's text form, as `wg show` prints it."""
        return base64.b64encode(self._raw).decode()

    def __str__(self) -> str:
        return self.prefix + self._raw.hex()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.short}>"

    def __lt__(self, other: Self) -> bool:
        return self._raw < other._raw

    @classmethod
    def zero(cls) -> Self:
        """The "no key" value."""
        return cls(bytes(KEY_LEN))


class _Private(_Key):
    """A private key: `repr` shows its kind only; `reveal` is the one way to the bytes."""

    __slots__ = ("_half",)
    prefix = "privkey:"

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self._half = b""

    def reveal(self) -> bytes:
        """The secret bytes, for the cipher or the state file; never for a log or an error."""
        return self._raw

    def reveal_text(self) -> str:
        """The `privkey:` text form, for the state file."""
        return self.prefix + self._raw.hex()

    def _public_bytes(self) -> bytes:
        """Computed once: a relay shows its own to every client."""
        if not self._half:
            self._half = crypto_scalarmult_base(self._raw)
        return self._half

    def __repr__(self) -> str:
        return f"<{type(self).__name__} hidden>"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError(f"{type(self).__name__} cannot be pickled")

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """A fresh key, clamped at rest as the Go client does (control.md 1)."""
        raw = bytearray(entropy(KEY_LEN))
        raw[0] &= 248
        raw[31] = (raw[31] & 127) | 64
        return cls(bytes(raw))


class MachinePublic(_Public):
    """Who an installation is, to control; also the form of a control server's Noise key."""

    __slots__ = ()
    prefix = "mkey:"


class NodePublic(_Public):
    """Who a node is to its peers: its WireGuard key and its relay address."""

    __slots__ = ()
    prefix = "nodekey:"


class DiscoPublic(_Public):
    """Who seals a node's DISCO messages during one process run."""

    __slots__ = ()
    prefix = "discokey:"


class MachinePrivate(_Private):
    """The installation's key; lives as long as the state directory."""

    __slots__ = ()

    def public(self) -> MachinePublic:
        """The public half."""
        return MachinePublic(self._public_bytes())


class NodePrivate(_Private):
    """One login's WireGuard key; lives until expiry, logout or rotation."""

    __slots__ = ()

    def public(self) -> NodePublic:
        """The public half."""
        return NodePublic(self._public_bytes())


class DiscoPrivate(_Private):
    """Fresh at each start, never stored."""

    __slots__ = ()

    def public(self) -> DiscoPublic:
        """The public half."""
        return DiscoPublic(self._public_bytes())


class PresharedKey(_Private):
    """What two WireGuard peers share beside their key pairs."""

    __slots__ = ()
    prefix = "psk:"
