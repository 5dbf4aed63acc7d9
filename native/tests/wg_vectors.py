"""Writes wg_vectors.h: one whole WireGuard conversation with fixed randomness, computed by other code than ours.

hashlib's BLAKE2s, cryptography's X25519 and ChaCha20-Poly1305 and libsodium's XChaCha20-Poly1305 (by PyNaCl), put
together from the WireGuard paper. `python native/tests/wg_vectors.py > native/tests/wg_vectors.h`
"""

import hashlib
import hmac
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as xseal


def fixed(label: str, n: int = 32) -> bytes:
    """Bytes that anybody can make again."""
    return hashlib.sha256(label.encode()).digest()[:n]


def digest(*parts: bytes) -> bytes:
    """HASH of the paper."""
    return hashlib.blake2s(b"".join(parts)).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """MAC of the paper."""
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def kdf(n: int, key: bytes, data: bytes) -> list[bytes]:
    """KDF_n of the paper."""
    secret = hmac.new(key, data, hashlib.blake2s).digest()
    out = [b""]
    for i in range(1, n + 1):
        out.append(hmac.new(secret, out[-1] + bytes([i]), hashlib.blake2s).digest())
    return out[1:]


def public(private: bytes) -> bytes:
    """The public half."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, point: bytes) -> bytes:
    """DH of the paper."""
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(point))


def seal(key: bytes, counter: int, text: bytes, ad: bytes) -> bytes:
    """AEAD of the paper."""
    return ChaCha20Poly1305(key).encrypt(bytes(4) + counter.to_bytes(8, "little"), text, ad)


def conversation() -> Iterator[tuple[str, bytes]]:
    """Every value in order: what is fixed, then what follows from it."""
    si, sr, ei, er, psk = (fixed(x) for x in ("initiator", "responder", "ephemeral i", "ephemeral r", "psk"))
    timestamp = bytes.fromhex("400000006553f10a3b000000")
    index_i, index_r = bytes.fromhex("01020304"), bytes.fromhex("a1a2a3a4")
    yield from {"priv_i": si, "priv_r": sr, "eph_i": ei, "eph_r": er, "psk": psk, "timestamp": timestamp}.items()

    c = digest(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
    h = digest(digest(c, b"WireGuard v1 zx2c4 Jason@zx2c4.com"), public(sr))
    h, (c,) = digest(h, public(ei)), kdf(1, c, public(ei))
    c, k = kdf(2, c, dh(ei, public(sr)))
    sealed_static = seal(k, 0, public(si), h)
    h = digest(h, sealed_static)
    c, k = kdf(2, c, dh(si, public(sr)))
    sealed_timestamp = seal(k, 0, timestamp, h)
    h = digest(h, sealed_timestamp)
    initiation = b"\1\0\0\0" + index_i + public(ei) + sealed_static + sealed_timestamp
    mac1 = mac(digest(b"mac1----", public(sr)), initiation)
    yield "initiation", initiation + mac1 + bytes(16)

    secret, nonce = fixed("cookie secret"), fixed("cookie nonce", 24)
    source = bytes(2) + bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1]) + (41641).to_bytes(2, "big")
    cookie = mac(secret, source)
    reply = b"\3\0\0\0" + index_i + nonce + xseal(cookie, mac1, nonce, digest(b"cookie--", public(sr)))
    yield from {"cookie_secret": secret, "cookie_nonce": nonce, "cookie_reply": reply}.items()
    yield "initiation_mac2", initiation + mac1 + mac(cookie, initiation + mac1)

    h, (c,) = digest(h, public(er)), kdf(1, c, public(er))
    (c,) = kdf(1, c, dh(er, public(ei)))
    (c,) = kdf(1, c, dh(er, public(si)))
    c, t, k = kdf(3, c, psk)
    h = digest(h, t)
    response = b"\2\0\0\0" + index_r + index_i + public(er) + seal(k, 0, b"", h)
    yield "response", response + mac(digest(b"mac1----", public(si)), response) + bytes(16)

    send_i, send_r = kdf(2, c, b"")
    yield from {"key_i": send_i, "key_r": send_r}.items()
    text = bytes(range(48))
    for name, key, index, counter in (("data_i", send_i, index_r, 0), ("data_r", send_r, index_i, 0x0102030405060708)):
        header = b"\4\0\0\0" + index + counter.to_bytes(8, "little")
        yield name, header + seal(key, counter, text, b"")
    yield "keepalive_i", b"\4\0\0\0" + index_r + (1).to_bytes(8, "little") + seal(send_i, 1, b"", b"")


def main() -> None:
    """Print the header."""
    print("/* Made by wg_vectors.py; see there. */")
    print("#ifndef MN_TESTS_WG_VECTORS_H\n#define MN_TESTS_WG_VECTORS_H\n")
    print("#include <stdint.h>\n\n/* clang-format off */")
    for name, value in conversation():
        print(f"static const uint8_t vector_{name}[{len(value)}] = {{")
        for at in range(0, len(value), 16):
            print("    " + " ".join(f"0x{b:02x}," for b in value[at : at + 16]))
        print("};")
    print("/* clang-format on */\n\n#endif")


if __name__ == "__main__":
    main()
