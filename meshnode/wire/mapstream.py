"""Length-prefixed map responses out of a byte stream.

MapFrames cuts the stream into payloads; `inflate` undoes zstd where a payload is compressed, with a
bound that a bomb cannot pass. Nothing here knows JSON. Lengths are little-endian, unlike all else.
Source: docs/protocol/control.md 4.3.
"""

from __future__ import annotations

from typing import Final

from meshnode.base.bounds import MAP_FRAME_MAX, MAP_INFLATED_MAX
from meshnode.base.errors import RemoteProtocolError

LENGTH_LEN: Final = 4
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class MapFrames:
    """Cuts one poll's body into payloads."""

    __slots__ = ("_buffer", "_wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = -1

    @property
    def has_partial(self) -> bool:
        """Whether the stream would end inside a frame if it ended now."""
        return bool(self._buffer)

    def receive(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now. RemoteProtocolError on an impossible length."""
        buffer = self._buffer
        buffer += data
        out: list[bytes] = []
        start = 0
        while len(buffer) - start >= LENGTH_LEN:
            length = int.from_bytes(buffer[start : start + LENGTH_LEN], "little")
            if not 0 < length <= MAP_FRAME_MAX:
                raise RemoteProtocolError(f"map message of {length} bytes; 1 to {MAP_FRAME_MAX} are allowed")
            end = start + LENGTH_LEN + length
            if len(buffer) < end:
                break
            out.append(bytes(memoryview(buffer)[start + LENGTH_LEN : end]))
            start = end
        if start:
            del buffer[:start]
        return out


def inflate(payload: bytes) -> bytes:
    """The JSON of a payload, decompressed if it is a zstd frame. RemoteProtocolError on a bomb or rubbish."""
    if not payload.startswith(ZSTD_MAGIC):
        return payload
    import zstandard  # late: most servers send plain JSON

    try:
        size = zstandard.get_frame_parameters(payload).content_size
        if size not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) and size > MAP_INFLATED_MAX:
            raise RemoteProtocolError(f"map message inflates to {size} bytes; at most {MAP_INFLATED_MAX} are allowed")
        context = zstandard.ZstdDecompressor(max_window_size=MAP_INFLATED_MAX)
        return context.decompress(payload, max_output_size=MAP_INFLATED_MAX)
    except zstandard.ZstdError as error:
        raise RemoteProtocolError(f"map message is not readable zstd: {error}") from None


def emit_frame(payload: bytes) -> bytes:
    """A payload with its length before it."""
    return len(payload).to_bytes(LENGTH_LEN, "little") + payload


def deflate(payload: bytes) -> bytes:
    """The payload as one zstd frame, as a server sends it."""
    import zstandard

    return zstandard.ZstdCompressor().compress(payload)
