"""Noise IK of the control channel: handshake, then seal and open.

`Noise_IK_25519_ChaChaPoly_BLAKE2s` with two peculiarities of this protocol: the prologue carries
the claimed capability version, and transport nonces are big-endian. An Initiator or a Responder
lives for one handshake and yields a Pair of Ciphers; frames and records around them are in `control`.
Curve, cipher and hash are libsodium's and hashlib's.
Source: docs/protocol/control.md 2.5, 2.6.
"""

from __future__ import annotations

import hmac
from hashlib import blake2s
from typing import Final, NamedTuple

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.base.keys import Entropy, MachinePrivate, MachinePublic

PROTOCOL: Final = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
TAG_LEN: Final = 16
INITIATION_LEN: Final = 96
RESPONSE_LEN: Final = 48
COUNTER_MAX: Final = 2**64 - 1
_ZERO_NONCE: Final = bytes(12)


class HandshakeError(RemoteProtocolError):
    """The other side does not hold the key we expect, or the handshake was altered."""


class Cipher:
    """One direction of the channel: a key and its counter. `repr` shows the counter only."""

    __slots__ = ("_key", "counter")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.counter = 0

    def seal(self, plaintext: bytes) -> bytes:
        """The ciphertext of one record. LocalProtocolError when the counter is used up."""
        return crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, b"", self._nonce(), self._key)

    def open(self, ciphertext: bytes) -> bytes:
        """The plaintext of one record. RemoteProtocolError if it was altered or comes out of turn."""
        nonce = self._nonce()
        try:
            return crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, b"", nonce, self._key)
        except CryptoError:
            raise RemoteProtocolError("a record of the control channel was altered on its way") from None

    def _nonce(self) -> bytes:
        if self.counter >= COUNTER_MAX:
            raise LocalProtocolError("the control channel has used up its nonces")
        nonce = self.counter.to_bytes(12, "big")
        self.counter += 1
        return nonce

    def __repr__(self) -> str:
        return f"<Cipher counter={self.counter}>"


class Pair(NamedTuple):
    """What a finished handshake yields."""

    send: Cipher
    receive: Cipher
    transcript: bytes
    """The handshake hash: the same on both sides of one channel, different on every channel."""


class _Symmetric:
    """Chaining key and transcript hash, as the Noise specification names them."""

    __slots__ = ("ck", "h")

    def __init__(self, version: int, server: MachinePublic) -> None:
        self.h = self.ck = blake2s(PROTOCOL).digest()
        self.mix_hash(b"Tailscale Control Protocol v%d" % version)
        self.mix_hash(server.raw)

    def mix_hash(self, data: bytes) -> None:
        self.h = blake2s(self.h + data).digest()

    def mix_key(self, shared: bytes) -> bytes:
        self.ck, key = _hkdf2(self.ck, shared)
        return key

    def seal(self, key: bytes, plaintext: bytes) -> bytes:
        ciphertext = crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, self.h, _ZERO_NONCE, key)
        self.mix_hash(ciphertext)
        return ciphertext

    def open(self, key: bytes, ciphertext: bytes) -> bytes:
        try:
            plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, self.h, _ZERO_NONCE, key)
        except CryptoError:
            raise HandshakeError("the handshake does not open: the other side holds another key") from None
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        return _hkdf2(self.ck, b"")


def _hkdf2(ck: bytes, material: bytes) -> tuple[bytes, bytes]:
    root = hmac.digest(ck, material, "blake2s")
    first = hmac.digest(root, b"\x01", "blake2s")
    return first, hmac.digest(root, first + b"\x02", "blake2s")


def _dh(private: bytes, public: bytes) -> bytes:
    try:
        shared = crypto_scalarmult(private, public)
    except (CryptoError, RuntimeError):
        raise HandshakeError("the other side sent a key of low order") from None
    if shared == bytes(32):
        raise HandshakeError("the other side sent a key of low order")
    return shared


class Initiator:
    """The client's half: `message` goes out, `consume` takes the answer."""

    __slots__ = ("_ephemeral", "_machine", "_state", "message")

    def __init__(self, machine: MachinePrivate, server: MachinePublic, version: int, entropy: Entropy) -> None:
        """HandshakeError if `server` is a key of low order."""
        secret = self._ephemeral = entropy(32)
        self._machine = machine.reveal()
        state = self._state = _Symmetric(version, server)
        ephemeral = crypto_scalarmult_base(secret)
        state.mix_hash(ephemeral)
        static = state.seal(state.mix_key(_dh(secret, server.raw)), machine.public().raw)
        proof = state.seal(state.mix_key(_dh(self._machine, server.raw)), b"")
        self.message: bytes = ephemeral + static + proof

    def consume(self, response: bytes) -> Pair:
        """Take the 48-byte answer. HandshakeError if it was not made by the holder of the server key."""
        if len(response) != RESPONSE_LEN:
            raise RemoteProtocolError(f"handshake answer of {len(response)} bytes, expected {RESPONSE_LEN}")
        state, ephemeral = self._state, response[:32]
        state.mix_hash(ephemeral)
        state.mix_key(_dh(self._ephemeral, ephemeral))
        state.open(state.mix_key(_dh(self._machine, ephemeral)), response[32:])
        to_server, to_client = state.split()
        return Pair(Cipher(to_server), Cipher(to_client), state.h)


class Responder:
    """The server's half: `consume` takes the initiation and learns who asks, `answer` completes it."""

    __slots__ = ("_peer_ephemeral", "_server", "_state", "client")

    def __init__(self, server: MachinePrivate) -> None:
        self._server = server
        self.client: MachinePublic | None = None

    def consume(self, initiation: bytes, version: int) -> MachinePublic:
        """Take the 96-byte initiation; returns the client's machine key. HandshakeError if it lies."""
        if len(initiation) != INITIATION_LEN:
            raise RemoteProtocolError(f"initiation of {len(initiation)} bytes, expected {INITIATION_LEN}")
        secret = self._server.reveal()
        state = self._state = _Symmetric(version, self._server.public())
        ephemeral = self._peer_ephemeral = initiation[:32]
        state.mix_hash(ephemeral)
        machine = state.open(state.mix_key(_dh(secret, ephemeral)), initiation[32:80])
        state.open(state.mix_key(_dh(secret, machine)), initiation[80:])
        self.client = MachinePublic(machine)
        return self.client

    def answer(self, entropy: Entropy) -> tuple[bytes, Pair]:
        """The 48-byte answer and the channel; call once, after `consume`."""
        if self.client is None:
            raise LocalProtocolError("answer before an initiation was consumed")
        state, secret = self._state, entropy(32)
        ephemeral = crypto_scalarmult_base(secret)
        state.mix_hash(ephemeral)
        state.mix_key(_dh(secret, self._peer_ephemeral))
        proof = state.seal(state.mix_key(_dh(secret, self.client.raw)), b"")
        to_server, to_client = state.split()
        return ephemeral + proof, Pair(Cipher(to_client), Cipher(to_server), state.h)
