"""Relay frames and both ends of the login.

Frames cuts a byte stream into (type, payload) and skips what it does not know without keeping it.
ClientLogin and ServerLogin turn the first frames into a session; after that frames are parsed by the
small functions here, because a hot loop wants no object per packet. Both ends close on what breaks
the rules: RemoteProtocolError.
Source: docs/protocol/paths.md 1.1 to 1.5, 1.15.
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Any, Final, NamedTuple

from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_box_open_afternm
from nacl.exceptions import CryptoError

from meshnode.base.addr import Endpoint, from_packed
from meshnode.base.bounds import DERP_CLIENT_INFO_MAX, DERP_FRAME_MAX, DERP_PACKET_MAX
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import KEY_LEN, NodePrivate, NodePublic

MAGIC: Final = b"DERP\xf0\x9f\x94\x91"
VERSION: Final = 2
NONCE_LEN: Final = 24
HEADER_LEN: Final = 5
PING_LEN: Final = 8
PING_MAX: Final = 1000
SERVER_KEY_MAX: Final = 1024
SERVER_INFO_MAX: Final = 1 << 20
_BOX_MIN: Final = NONCE_LEN + 16

SERVER_KEY: Final = 0x01
CLIENT_INFO: Final = 0x02
SERVER_INFO: Final = 0x03
SEND_PACKET: Final = 0x04
RECV_PACKET: Final = 0x05
KEEP_ALIVE: Final = 0x06
NOTE_PREFERRED: Final = 0x07
PEER_GONE: Final = 0x08
PEER_PRESENT: Final = 0x09
FORWARD_PACKET: Final = 0x0A
WATCH_CONNS: Final = 0x10
CLOSE_PEER: Final = 0x11
PING: Final = 0x12
PONG: Final = 0x13
HEALTH: Final = 0x14
RESTARTING: Final = 0x15

GONE_DISCONNECTED: Final = 0x00
GONE_NOT_HERE: Final = 0x01
GONE_MESH_BROKE: Final = 0xF0
"""Never on the wire: made up by a mesh client whose link broke."""

TO_CLIENT: Final = frozenset({SERVER_KEY, SERVER_INFO, RECV_PACKET, KEEP_ALIVE, PEER_GONE, PEER_PRESENT, PING, PONG,
                              HEALTH, RESTARTING})  # fmt: skip
TO_SERVER: Final = frozenset({CLIENT_INFO, SEND_PACKET, NOTE_PREFERRED, FORWARD_PACKET, WATCH_CONNS, CLOSE_PEER, PING,
                              PONG})  # fmt: skip

_HEADER: Final = Struct(">BI")
_RESTARTING: Final = Struct(">II")


class Frames:
    """Cuts one direction of a connection into frames.

    `known` are the types to hand out; any other is skipped, its bytes never kept. A frame longer than
    `limit` is refused from its header alone.
    """

    __slots__ = ("_kept", "_known", "_limit", "_skip", "skipped")

    def __init__(self, known: frozenset[int], limit: int = DERP_FRAME_MAX) -> None:
        self._known = known
        self._limit = limit
        self._kept = b""
        self._skip = 0
        self.skipped = 0
        """Frames of unknown type seen so far."""

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Every frame complete by now. RemoteProtocolError on an impossible length."""
        if self._skip:
            if len(data) <= self._skip:
                self._skip -= len(data)
                return []
            data, self._skip = data[self._skip :], 0
        if self._kept:
            data, self._kept = self._kept + data, b""
        out: list[tuple[int, bytes]] = []
        pos, end, known, header = 0, len(data), self._known, _HEADER.unpack_from
        while end - pos >= HEADER_LEN:
            kind, length = header(data, pos)
            start = pos + HEADER_LEN
            pos = start + length
            if kind not in known:
                self._pass_by(kind, length, pos - end)
                continue
            if length > self._limit:
                raise RemoteProtocolError(f"relay frame of {length} bytes; at most {self._limit} are allowed")
            if pos > end:
                pos = start - HEADER_LEN
                break
            out.append((kind, data[start:pos]))
        if pos < end:
            self._kept = data[pos:]
        return out

    def give_up(self) -> bytes:
        """What is kept of a frame that is not whole yet, for whoever reads on; this object is done."""
        if self._skip:
            raise RemoteProtocolError("a frame of unknown type during the login")
        kept, self._kept = self._kept, b""
        return kept

    def _pass_by(self, kind: int, length: int, missing: int) -> None:
        if length > DERP_FRAME_MAX:
            raise RemoteProtocolError(f"relay frame of unknown type {kind:#04x} claims {length} bytes")
        self.skipped += 1
        self._skip = max(0, missing)


class ServerInfo(NamedTuple):
    """What a relay says of itself after login."""

    version: int
    rate_bytes_per_s: int
    """Announced token bucket; 0: none."""
    rate_burst_bytes: int


class ClientInfo(NamedTuple):
    """What a client says of itself."""

    version: int
    can_ack_pings: bool
    is_prober: bool
    mesh_key: str
    """64 hex digits, or '' for an ordinary client."""
    app_name: str


class Present(NamedTuple):
    """A client is connected, as watchers are told."""

    key: NodePublic
    source: Endpoint | None
    flags: int


def emit_frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def emit_send(target: bytes, data: bytes) -> bytes:
    """SendPacket: to whom, what. `target` is the raw node key."""
    return _HEADER.pack(SEND_PACKET, KEY_LEN + len(data)) + target + data


def emit_recv(source: bytes, data: bytes) -> bytes:
    """RecvPacket: from whom, what. `source` is the raw node key."""
    return _HEADER.pack(RECV_PACKET, KEY_LEN + len(data)) + source + data


def split_packet(payload: bytes) -> tuple[bytes, bytes]:
    """(raw key, packet) of a SendPacket or RecvPacket. RemoteProtocolError if short or too long."""
    if not KEY_LEN <= len(payload) <= KEY_LEN + DERP_PACKET_MAX:
        raise RemoteProtocolError(f"relay packet frame of {len(payload)} bytes")
    return payload[:KEY_LEN], payload[KEY_LEN:]


def emit_preferred(home: bool) -> bytes:
    """NotePreferred: whether this relay is our home."""
    return emit_frame(NOTE_PREFERRED, b"\x01" if home else b"\x00")


def parse_preferred(payload: bytes) -> bool:
    """Exactly one byte, else RemoteProtocolError."""
    if len(payload) != 1:
        raise RemoteProtocolError(f"NotePreferred of {len(payload)} bytes")
    return payload != b"\x00"


def emit_gone(key: bytes, reason: int) -> bytes:
    """PeerGone with its reason."""
    return emit_frame(PEER_GONE, key + bytes([reason]))


def parse_gone(payload: bytes) -> tuple[NodePublic, int]:
    """(peer, reason); old servers send no reason, unknown ones mean disconnected."""
    if len(payload) < KEY_LEN:
        raise RemoteProtocolError(f"PeerGone of {len(payload)} bytes")
    reason = payload[KEY_LEN] if len(payload) > KEY_LEN else GONE_DISCONNECTED
    if reason not in (GONE_DISCONNECTED, GONE_NOT_HERE):
        reason = GONE_DISCONNECTED
    return NodePublic(payload[:KEY_LEN]), reason


def parse_present(payload: bytes) -> Present:
    """PeerPresent in each of its lengths."""
    if len(payload) < KEY_LEN:
        raise RemoteProtocolError(f"PeerPresent of {len(payload)} bytes")
    key, rest = NodePublic(payload[:KEY_LEN]), payload[KEY_LEN:]
    source = Endpoint(from_packed(rest[:16]), int.from_bytes(rest[16:18], "big")) if len(rest) >= 18 else None
    return Present(key, source, rest[18] if len(rest) > 18 else 0)


def parse_ping(payload: bytes) -> bytes:
    """The eight bytes to echo. RemoteProtocolError outside 8 to 1000 bytes."""
    if not PING_LEN <= len(payload) <= PING_MAX:
        raise RemoteProtocolError(f"Ping of {len(payload)} bytes")
    return payload[:PING_LEN]


def parse_restarting(payload: bytes) -> tuple[float, float]:
    """(seconds to wait before reconnecting, seconds to keep trying)."""
    if len(payload) < _RESTARTING.size:
        raise RemoteProtocolError(f"Restarting of {len(payload)} bytes")
    wait_ms, try_ms = _RESTARTING.unpack_from(payload)
    return wait_ms / 1000, try_ms / 1000


def emit_restarting(wait_ms: int, try_ms: int) -> bytes:
    """Restarting: when to come back, and how long to go on trying."""
    return emit_frame(RESTARTING, _RESTARTING.pack(wait_ms, try_ms))


class ClientLogin:
    """The client's half: consume ServerKey, create ClientInfo; ServerInfo comes whenever it comes."""

    __slots__ = ("_private", "server")

    def __init__(self, private: NodePrivate, server: NodePublic | None = None) -> None:
        """server: the relay's key, where it is known before the relay's first frame."""
        self._private = private
        self.server = server
        """The relay's key, once known."""

    def consume_server_key(self, payload: bytes) -> None:
        """RemoteProtocolError if this is no relay's greeting, or a second one with another key."""
        if len(payload) < len(MAGIC) + KEY_LEN or payload[: len(MAGIC)] != MAGIC or len(payload) > SERVER_KEY_MAX:
            raise RemoteProtocolError("the greeting is not a relay's")
        key = NodePublic(payload[len(MAGIC) : len(MAGIC) + KEY_LEN])
        if self.server is not None and key != self.server:
            raise RemoteProtocolError("the relay says another key than before")
        self.server = key

    def create_client_info(
        self, nonce: bytes, *, can_ack_pings: bool = True, is_prober: bool = False, mesh_key: str = ""
    ) -> bytes:
        """The whole ClientInfo frame. `nonce` is 24 random bytes."""
        info: dict[str, Any] = {"meshKey": mesh_key} if mesh_key else {}
        info |= {"version": VERSION, "CanAckPings": can_ack_pings}
        if is_prober:
            info["IsProber"] = True
        assert self.server is not None, "ServerKey comes first"
        box = _seal(info, nonce, _shared(self.server, self._private))
        return emit_frame(CLIENT_INFO, self._private.public().raw + nonce + box)

    def consume_server_info(self, payload: bytes) -> ServerInfo:
        """RemoteProtocolError if the box was not made by the relay we greeted."""
        if self.server is None:
            raise RemoteProtocolError("ServerInfo before ServerKey")
        if not _BOX_MIN <= len(payload) <= SERVER_INFO_MAX:
            raise RemoteProtocolError(f"ServerInfo of {len(payload)} bytes")
        info = _open(payload[NONCE_LEN:], payload[:NONCE_LEN], _shared(self.server, self._private))
        return ServerInfo(
            _number(info, "version"),
            _number(info, "TokenBucketBytesPerSecond"),
            _number(info, "TokenBucketBytesBurst"),
        )


class ServerLogin:
    """The relay's half: create ServerKey, consume ClientInfo, create ServerInfo."""

    __slots__ = ("_box_key", "_private", "client")

    def __init__(self, private: NodePrivate) -> None:
        self._private = private
        self._box_key = b""
        """With the client, once its ClientInfo was opened."""
        self.client: NodePublic | None = None
        """Who logged in: the box proves it."""

    def create_server_key(self) -> bytes:
        """The greeting frame."""
        return emit_frame(SERVER_KEY, MAGIC + self._private.public().raw)

    def consume_client_info(self, payload: bytes) -> ClientInfo:
        """RemoteProtocolError if the box was not made by the key it names, or its JSON is damaged."""
        if not KEY_LEN + _BOX_MIN <= len(payload) <= DERP_CLIENT_INFO_MAX:
            raise RemoteProtocolError(f"ClientInfo of {len(payload)} bytes")
        client = NodePublic(payload[:KEY_LEN])
        nonce = payload[KEY_LEN : KEY_LEN + NONCE_LEN]
        shared = _shared(client, self._private)
        info = _open(payload[KEY_LEN + NONCE_LEN :], nonce, shared)
        mesh_key = info.get("meshKey", "")
        if not isinstance(mesh_key, str) or (mesh_key and not _is_mesh_key(mesh_key)):
            raise RemoteProtocolError("ClientInfo: meshKey is not 64 hex digits")
        self.client, self._box_key = client, shared
        app = info.get("AppName", "")
        return ClientInfo(
            _number(info, "version"),
            info.get("CanAckPings") is True,
            info.get("IsProber") is True,
            mesh_key,
            app[:64] if isinstance(app, str) else "",
        )

    def create_server_info(self, nonce: bytes, *, rate_bytes_per_s: int = 0, rate_burst_bytes: int = 0) -> bytes:
        """The whole ServerInfo frame, once the client is admitted."""
        info: dict[str, Any] = {"version": VERSION}
        if rate_bytes_per_s:
            info |= {"TokenBucketBytesPerSecond": rate_bytes_per_s, "TokenBucketBytesBurst": rate_burst_bytes}
        assert self.client is not None, "ClientInfo comes first"
        shared = self._box_key or _shared(self.client, self._private)
        return emit_frame(SERVER_INFO, nonce + _seal(info, nonce, shared))


def _is_mesh_key(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdefABCDEF" for c in text)


def _number(info: dict[str, Any], name: str) -> int:
    value = info.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise RemoteProtocolError(f"relay login: {name} is not a number")
    return value


def _shared(theirs: NodePublic, ours: NodePrivate) -> bytes:
    """The key of the boxes between two ends: the login's one costly step."""
    try:
        return crypto_box_beforenm(theirs.raw, ours.reveal())
    except (CryptoError, RuntimeError):
        raise RemoteProtocolError("relay login: a key of low order") from None


def _seal(info: dict[str, Any], nonce: bytes, shared: bytes) -> bytes:
    return crypto_box_afternm(json.dumps(info, separators=(",", ":")).encode(), nonce, shared)


def _open(box: bytes, nonce: bytes, shared: bytes) -> dict[str, Any]:
    try:
        text = crypto_box_open_afternm(box, nonce, shared)
    except (CryptoError, RuntimeError):
        raise RemoteProtocolError("relay login: the box does not open; it was made for another key") from None
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("relay login: not JSON") from None
    if not isinstance(info, dict):
        raise RemoteProtocolError("relay login: not a JSON object")
    return info
