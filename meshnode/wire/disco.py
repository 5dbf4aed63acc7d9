"""DISCO: the sealed envelope and the messages in it.

An envelope is magic, the sender's disco key in clear, a nonce and a box; `Box` holds the shared key of
one pair and seals or opens. Parsed messages are values; unknown types and versions pass by as None,
because that is the protocol's extension rule. Envelopes too short or altered are None as well: whoever
sent them is not proven to be anybody, so there is nobody to blame.
Source: docs/protocol/paths.md 6.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_box_open_afternm
from nacl.exceptions import CryptoError

from meshnode.base.addr import Endpoint, from_packed
from meshnode.base.bounds import CALL_ENTRIES_MAX
from meshnode.base.errors import LocalProtocolError, RemoteProtocolError
from meshnode.base.keys import DiscoPrivate, DiscoPublic, NodePublic
from meshnode.wire.cursor import Reader, Writer

MAGIC: Final = b"TS\xf0\x9f\x92\xac"
KEY_AT: Final = len(MAGIC)
NONCE_AT: Final = KEY_AT + 32
NONCE_LEN: Final = 24
HEADER_LEN: Final = NONCE_AT + NONCE_LEN
TAG_LEN: Final = 16
MESSAGE_MIN: Final = HEADER_LEN + TAG_LEN + 2
TXID_LEN: Final = 12
CHALLENGE_LEN: Final = 32
VERSION: Final = 0
_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
_ENTRY_LEN: Final = 18

PING: Final = 1
PONG: Final = 2
CALL_ME_MAYBE: Final = 3
BIND: Final = 4
BIND_CHALLENGE: Final = 5
BIND_ANSWER: Final = 6
CALL_ME_MAYBE_VIA: Final = 7
ALLOCATE_REQUEST: Final = 8
ALLOCATE_RESPONSE: Final = 9


class Ping(NamedTuple):
    """Prove that this path reaches you."""

    txid: bytes
    node: NodePublic | None
    """Which node pings: a hint only, proven by nothing; None from very old clients."""
    padding: int = 0


class Pong(NamedTuple):
    """The answer to a ping."""

    txid: bytes
    source: Endpoint
    """Where the ping came from, as its receiver saw it."""


class CallMeMaybe(NamedTuple):
    """Ping me at these; I am pinging you now. Comes by relay only."""

    endpoints: tuple[Endpoint, ...]


class Bind(NamedTuple):
    """One step of binding to a peer relay; `kind` is BIND, BIND_CHALLENGE or BIND_ANSWER."""

    kind: int
    vni: int
    generation: int
    remote: DiscoPublic
    challenge: bytes


class RelayBlock(NamedTuple):
    """An allocation at a peer relay."""

    server: DiscoPublic
    clients: tuple[DiscoPublic, DiscoPublic]
    lamport: int
    vni: int
    bind_lifetime_ns: int
    steady_lifetime_ns: int
    endpoints: tuple[Endpoint, ...]


class CallMeMaybeVia(NamedTuple):
    """Meet me at this peer relay. Comes by relay only."""

    block: RelayBlock


class AllocateRequest(NamedTuple):
    """Ask a peer relay for an allocation."""

    clients: tuple[DiscoPublic, DiscoPublic]
    generation: int


class AllocateResponse(NamedTuple):
    """A peer relay's answer."""

    generation: int
    block: RelayBlock


Message = Ping | Pong | CallMeMaybe | Bind | CallMeMaybeVia | AllocateRequest | AllocateResponse


def is_disco(data: bytes | memoryview) -> bool:
    """Whether a packet is DISCO by its first bytes and its length."""
    return data[:KEY_AT] == MAGIC and len(data) >= HEADER_LEN


def sender_of(data: bytes) -> bytes:
    """The sender's disco key, as it claims; look it up before spending a cipher on the packet."""
    return data[KEY_AT:NONCE_AT]


class Box:
    """The shared key of our disco key and one of theirs; made once per pair, it costs a curve operation."""

    __slots__ = ("_head", "_shared")

    def __init__(self, private: DiscoPrivate, ours: DiscoPublic, theirs: DiscoPublic) -> None:
        """LocalProtocolError if `theirs` is a key of low order."""
        try:
            self._shared = crypto_box_beforenm(theirs.raw, private.reveal())
        except (CryptoError, RuntimeError):
            raise LocalProtocolError("a peer's disco key is of low order") from None
        self._head = MAGIC + ours.raw

    def seal(self, message: Message, nonce: bytes) -> bytes:
        """The whole packet. `nonce` is 24 random bytes, never used before."""
        return self._head + nonce + crypto_box_afternm(emit_message(message), nonce, self._shared)

    def open(self, data: bytes) -> Message | None:
        """The message of a packet from `theirs`; None if it is altered, cut short or of an unknown type."""
        if len(data) < MESSAGE_MIN:
            return None
        try:
            plain = crypto_box_open_afternm(data[HEADER_LEN:], data[NONCE_AT:HEADER_LEN], self._shared)
        except CryptoError:
            return None
        return parse_message(plain)

    def __repr__(self) -> str:
        return "<Box hidden>"


def parse_message(plain: bytes) -> Message | None:
    """The message inside a box; None if its type is unknown or its body too short for it."""
    reader = Reader(plain)
    try:
        kind, version = reader.u8(), reader.u8()
        return _parse_body(kind, version, reader)
    except RemoteProtocolError:
        return None


def _parse_body(kind: int, version: int, reader: Reader) -> Message | None:
    if kind == PING:
        return _parse_ping(reader)
    if kind == PONG:
        return Pong(reader.take(TXID_LEN), _take_endpoint(reader))
    if kind == CALL_ME_MAYBE:
        return CallMeMaybe(_take_call_entries(reader) if version == VERSION else ())
    if kind in (BIND, BIND_CHALLENGE, BIND_ANSWER):
        vni, generation = reader.u32(), reader.u32()
        return Bind(kind, vni, generation, DiscoPublic(reader.take(32)), reader.take(CHALLENGE_LEN))
    if version != VERSION:
        return None  # of a layout we do not know
    if kind == CALL_ME_MAYBE_VIA:
        return CallMeMaybeVia(_take_block(reader))
    if kind == ALLOCATE_REQUEST:
        return AllocateRequest(_take_pair(reader), reader.u32())
    if kind == ALLOCATE_RESPONSE:
        return AllocateResponse(reader.u32(), _take_block(reader))
    return None


def _parse_ping(reader: Reader) -> Ping:
    txid = reader.take(TXID_LEN)
    if reader.remaining < 32:
        return Ping(txid, None, reader.remaining)
    node = NodePublic(reader.take(32))
    return Ping(txid, None if node.is_zero else node, reader.remaining)


def _take_endpoint(reader: Reader) -> Endpoint:
    return Endpoint(from_packed(reader.take(16)), reader.u16())


def _take_call_entries(reader: Reader) -> tuple[Endpoint, ...]:
    """A body of odd length counts as an empty list: it is still a call."""
    if reader.remaining % _ENTRY_LEN:
        return ()
    count = min(reader.remaining // _ENTRY_LEN, CALL_ENTRIES_MAX)
    return tuple(_take_endpoint(reader) for _ in range(count))


def _take_pair(reader: Reader) -> tuple[DiscoPublic, DiscoPublic]:
    return DiscoPublic(reader.take(32)), DiscoPublic(reader.take(32))


def _take_block(reader: Reader) -> RelayBlock:
    server, clients = DiscoPublic(reader.take(32)), _take_pair(reader)
    lamport, vni = reader.u64(), reader.u32()
    bind, steady = reader.u64(), reader.u64()
    if not reader.remaining or reader.remaining % _ENTRY_LEN:
        raise RemoteProtocolError("an allocation without a whole address")
    count = min(reader.remaining // _ENTRY_LEN, CALL_ENTRIES_MAX)
    entries = tuple(_take_endpoint(reader) for _ in range(count))
    return RelayBlock(server, clients, lamport, vni, _signed(bind), _signed(steady), entries)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def emit_message(message: Message) -> bytes:
    """Type, version and body."""
    out = Writer()
    if isinstance(message, Ping):
        node = message.node.raw if message.node else bytes(32) if message.padding >= 32 else b""
        out.u8(PING).u8(VERSION).raw(message.txid).raw(node).raw(bytes(message.padding))
    elif isinstance(message, Pong):
        _put_endpoint(out.u8(PONG).u8(VERSION).raw(message.txid), message.source)
    elif isinstance(message, CallMeMaybe):
        out.u8(CALL_ME_MAYBE).u8(VERSION)
        for endpoint in message.endpoints:
            _put_endpoint(out, endpoint)
    elif isinstance(message, Bind):
        out.u8(message.kind).u8(VERSION).u32(message.vni).u32(message.generation)
        out.raw(message.remote.raw).raw(message.challenge)
    elif isinstance(message, CallMeMaybeVia):
        _put_block(out.u8(CALL_ME_MAYBE_VIA).u8(VERSION), message.block)
    elif isinstance(message, AllocateRequest):
        out.u8(ALLOCATE_REQUEST).u8(VERSION)
        out.raw(message.clients[0].raw).raw(message.clients[1].raw).u32(message.generation)
    else:
        _put_block(out.u8(ALLOCATE_RESPONSE).u8(VERSION).u32(message.generation), message.block)
    return out.done()


def _put_endpoint(out: Writer, endpoint: Endpoint) -> None:
    packed = endpoint.ip.packed
    out.raw(packed if len(packed) == 16 else _V4_PREFIX + packed).u16(endpoint.port)


def _put_block(out: Writer, block: RelayBlock) -> None:
    out.raw(block.server.raw).raw(block.clients[0].raw).raw(block.clients[1].raw)
    out.u64(block.lamport).u32(block.vni)
    out.u64(block.bind_lifetime_ns % (1 << 64)).u64(block.steady_lifetime_ns % (1 << 64))
    for endpoint in block.endpoints:
        _put_endpoint(out, endpoint)


def ping_padding(wire: int, *, is_v6: bool) -> int:
    """Padding that makes a ping an IP packet of `wire` bytes; 0 if a bare ping is longer already."""
    bare = HEADER_LEN + TAG_LEN + 2 + TXID_LEN + 32 + (48 if is_v6 else 28)
    return max(0, wire - bare)
