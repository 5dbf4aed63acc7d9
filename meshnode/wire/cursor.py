"""Bounds-checked Reader and Writer under every binary format.

A Reader never copies more than it returns and raises RemoteProtocolError at the end of its data,
so that no parser needs an index of its own. Big-endian unless a name says `le`.
"""

from __future__ import annotations

from meshnode.base.errors import RemoteProtocolError


class Reader:
    """Takes values from the front of a buffer."""

    __slots__ = ("_data", "_pos")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)
        self._pos = 0

    @property
    def remaining(self) -> int:
        """Bytes not taken yet."""
        return len(self._data) - self._pos

    def take(self, count: int) -> bytes:
        """The next `count` bytes. RemoteProtocolError if there are fewer."""
        if count < 0 or count > self.remaining:
            raise RemoteProtocolError(f"message is cut short: {count} bytes wanted, {self.remaining} left")
        start = self._pos
        self._pos += count
        return bytes(self._data[start : self._pos])

    def rest(self) -> bytes:
        """Everything left."""
        return self.take(self.remaining)

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        self.take(count)

    def u8(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Two bytes, big-endian."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Four bytes, big-endian."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Eight bytes, big-endian."""
        return int.from_bytes(self.take(8), "big")

    def u32le(self) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.take(4), "little")

    def done(self, what: str) -> None:
        """RemoteProtocolError if bytes are left over after `what`."""
        if self.remaining:
            raise RemoteProtocolError(f"{what}: {self.remaining} bytes too many")


class Writer:
    """Builds a message; every method returns the writer."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out = bytearray()

    def raw(self, data: bytes | bytearray | memoryview) -> Writer:
        """Bytes as they are."""
        self._out += data
        return self

    def u8(self, value: int) -> Writer:
        """One byte."""
        self._out += value.to_bytes(1, "big")
        return self

    def u16(self, value: int) -> Writer:
        """Two bytes, big-endian."""
        self._out += value.to_bytes(2, "big")
        return self

    def u32(self, value: int) -> Writer:
        """Four bytes, big-endian."""
        self._out += value.to_bytes(4, "big")
        return self

    def u64(self, value: int) -> Writer:
        """Eight bytes, big-endian."""
        self._out += value.to_bytes(8, "big")
        return self

    def u32le(self, value: int) -> Writer:
        """Four bytes, little-endian."""
        self._out += value.to_bytes(4, "little")
        return self

    def done(self) -> bytes:
        """The message."""
        return bytes(self._out)
