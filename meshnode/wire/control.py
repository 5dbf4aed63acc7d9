"""TS2021 framing: initiation, answer, early payload, records.

Channel is the state machine of one connection after the 101: Handshaking (client only) → Open →
Dead. Bytes from the socket go into `receive`, which returns the plaintext stream of the layer above
(HTTP/2); `seal` turns plaintext into records. The client's Channel also peels the optional early
payload off the front of the stream. Any error leaves it Dead: the connection must be closed.
Source: docs/protocol/control.md 2.5 to 2.7, 2.11.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Final

from meshnode.base.bounds import EARLY_PAYLOAD_MAX, NOISE_FRAME_MAX
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.base.keys import Entropy, MachinePrivate, MachinePublic
from meshnode.wire.noise import INITIATION_LEN, RESPONSE_LEN, TAG_LEN, Initiator, Pair, Responder

UPGRADE_PROTOCOL: Final = "tailscale-control-protocol"
HANDSHAKE_HEADER: Final = "x-tailscale-handshake"
UPGRADE_PATH: Final = "/ts2021"
EARLY_MAGIC: Final = b"\xff\xff\xffTS"
EARLY_HEADER_LEN: Final = 9
INITIATION, RESPONSE, ERROR, RECORD = 1, 2, 3, 4
HEADER_LEN: Final = 3
CIPHERTEXT_MAX: Final = NOISE_FRAME_MAX - HEADER_LEN
PLAINTEXT_MAX: Final = CIPHERTEXT_MAX - TAG_LEN


class Channel:
    """Records of one connection, both directions."""

    def __init__(self, pair: Pair | None = None, *, expect_early: bool = False) -> None:
        self._pair = pair
        self._buffer = bytearray()
        self._early: bytearray | None = bytearray() if expect_early else None
        self._dead = False
        self.early_payload: bytes | None = None
        """JSON of the early payload, once it came."""

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and nothing broke."""
        return self._pair is not None and not self._dead

    @property
    def has_partial(self) -> bool:
        """Whether the stream would end in the middle of a frame if it ended now."""
        return bool(self._buffer)

    @property
    def transcript(self) -> bytes:
        """The handshake hash."""
        return self._opened().transcript

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """Plaintext of every record that is complete now, b'' if none. RemoteProtocolError: now Dead."""
        if self._dead:
            raise LocalProtocolError("receive on a dead control channel")
        self._buffer += data
        try:
            return self._drain()
        except Exception:
            self._dead = True
            raise

    def seal(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """The records that carry `plaintext`."""
        pair = self._opened()
        out = bytearray()
        view = memoryview(plaintext)
        for start in range(0, len(view), PLAINTEXT_MAX):
            ciphertext = pair.send.seal(bytes(view[start : start + PLAINTEXT_MAX]))
            out += _header(RECORD, len(ciphertext))
            out += ciphertext
        return bytes(out)

    def _opened(self) -> Pair:
        if self._pair is None or self._dead:
            raise LocalProtocolError("the control channel is not open")
        return self._pair

    def _on_handshake_frame(self, kind: int, body: bytes) -> Pair:
        raise LocalProtocolError("this side of the channel takes no handshake frame")

    def _drain(self) -> bytes:
        out = bytearray()
        start, have = 0, len(self._buffer)
        view = memoryview(self._buffer)
        try:
            while have - start >= HEADER_LEN:
                kind = view[start]
                length = int.from_bytes(view[start + 1 : start + HEADER_LEN], "big")
                self._check(kind, length)
                end = start + HEADER_LEN + length
                if have < end:
                    break
                body = bytes(view[start + HEADER_LEN : end])
                if self._pair is None:
                    self._pair = self._on_handshake_frame(kind, body)
                else:
                    out += self._pair.receive.open(body)
                start = end
        finally:
            view.release()
        del self._buffer[:start]
        return self._peel(out) if self._early is not None else bytes(out)

    def _check(self, kind: int, length: int) -> None:
        if self._pair is None:
            return
        if kind != RECORD:
            raise RemoteProtocolError(f"frame of type {kind} inside the control channel")
        if not TAG_LEN <= length <= CIPHERTEXT_MAX:
            raise RemoteProtocolError(f"record of {length} bytes; at most {CIPHERTEXT_MAX} are allowed")

    def _peel(self, data: bytearray) -> bytes:
        """Take the early payload off the front; b'' until it is known whether there is one."""
        early = self._early
        assert early is not None
        early += data
        if not EARLY_MAGIC.startswith(bytes(early[: len(EARLY_MAGIC)])):
            self._early = None
            return bytes(early)
        if len(early) < EARLY_HEADER_LEN:
            return b""
        length = int.from_bytes(early[5:EARLY_HEADER_LEN], "big")
        if length > EARLY_PAYLOAD_MAX:
            raise RemoteProtocolError(f"early payload of {length} bytes; at most {EARLY_PAYLOAD_MAX} are allowed")
        end = EARLY_HEADER_LEN + length
        if len(early) < end:
            return b""
        self.early_payload = bytes(early[EARLY_HEADER_LEN:end])
        self._early = None
        return bytes(early[end:])


class ClientChannel(Channel):
    """The client's half: `initiation` travels in the upgrade request."""

    def __init__(self, machine: MachinePrivate, server: MachinePublic, version: int, entropy: Entropy) -> None:
        super().__init__(expect_early=True)
        self.version = version
        self._initiator = Initiator(machine, server, version, entropy)
        message = self._initiator.message
        self.initiation: bytes = version.to_bytes(2, "big") + _header(INITIATION, len(message)) + message

    @property
    def header_value(self) -> str:
        """The initiation as the handshake header wants it."""
        return b64encode(self.initiation).decode()

    def _check(self, kind: int, length: int) -> None:
        if self._pair is not None:
            super()._check(kind, length)
        elif kind == RESPONSE and length != RESPONSE_LEN:
            raise RemoteProtocolError(f"handshake answer of {length} bytes, expected {RESPONSE_LEN}")
        elif kind not in (RESPONSE, ERROR) or length > CIPHERTEXT_MAX:
            raise RemoteProtocolError(f"frame of type {kind} where the handshake answer was expected")

    def _on_handshake_frame(self, kind: int, body: bytes) -> Pair:
        if kind == ERROR:
            # Not authenticated: a hint for people, no more.
            hint = " ".join(body[:200].decode("utf-8", "replace").split())
            raise RemoteProtocolError(f'the control server refused the handshake: "{hint}"')
        return self._initiator.consume(body)


def accept(initiation: bytes, server: MachinePrivate, entropy: Entropy) -> tuple[int, MachinePublic, bytes, Channel]:
    """The server's half: (version, client's machine key, bytes to send, channel). RemoteProtocolError."""
    version = int.from_bytes(initiation[:2], "big")
    body = initiation[5:]
    if initiation[2:5] != _header(INITIATION, INITIATION_LEN) or len(body) != INITIATION_LEN:
        raise RemoteProtocolError("invalid tailscale handshake header")
    responder = Responder(server)
    client = responder.consume(body, version)
    answer, pair = responder.answer(entropy)
    return version, client, _header(RESPONSE, RESPONSE_LEN) + answer, Channel(pair)


def parse_handshake_header(value: str) -> bytes:
    """The initiation out of its header. RemoteProtocolError if it is not one."""
    try:
        raw = b64decode(value, validate=True)
    except ValueError:
        raise RemoteProtocolError("invalid tailscale handshake header") from None
    if len(raw) != 5 + INITIATION_LEN:
        raise RemoteProtocolError("invalid tailscale handshake header")
    return raw


def emit_early(payload: bytes) -> bytes:
    """The early payload as the first plaintext a server seals."""
    return EARLY_MAGIC + len(payload).to_bytes(4, "big") + payload


def emit_error(text: str) -> bytes:
    """A refusal in place of the handshake answer."""
    body = text.encode()[:CIPHERTEXT_MAX]
    return _header(ERROR, len(body)) + body


def _header(kind: int, length: int) -> bytes:
    return bytes((kind, length >> 8, length & 0xFF))
