"""Map frames and zstd: any cutting, impossible lengths, bombs."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.bounds import MAP_FRAME_MAX, MAP_INFLATED_MAX
from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.mapstream import MapFrames, deflate, emit_frame, inflate

KEEP_ALIVE = bytes.fromhex("120000007b224b656570416c697665223a747275657d")


def test_documented_frame() -> None:
    assert MapFrames().receive(KEEP_ALIVE) == [b'{"KeepAlive":true}']
    assert emit_frame(b'{"KeepAlive":true}') == KEEP_ALIVE


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.integers(1, 64))
def test_any_cutting_yields_the_same_payloads(payloads: list[bytes], step: int) -> None:
    stream = b"".join(map(emit_frame, payloads))
    frames = MapFrames()
    out = [p for i in range(0, len(stream), step) for p in frames.receive(stream[i : i + step])]
    assert out == payloads and not frames.has_partial


@pytest.mark.parametrize("length", [0, MAP_FRAME_MAX + 1, 2**32 - 1])
def test_impossible_lengths(length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        MapFrames().receive(length.to_bytes(4, "little"))


def test_a_partial_frame_is_known() -> None:
    frames = MapFrames()
    assert frames.receive(KEEP_ALIVE[:-1]) == [] and frames.has_partial


@pytest.mark.parametrize("write_size", [True, False])
def test_zstd_round_trip(write_size: bool) -> None:
    text = b'{"Peers":[]}' * 1000
    packed = zstandard.ZstdCompressor(write_content_size=write_size).compress(text)
    assert inflate(packed) == text and inflate(deflate(text)) == text and inflate(text) == text


@pytest.mark.parametrize("write_size", [True, False])
def test_a_bomb_stops_at_the_bound(write_size: bool) -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=write_size).compressobj(
        size=MAP_INFLATED_MAX + 1 if write_size else -1
    )
    block = bytes(1 << 20)
    bomb = b"".join(compressor.compress(block) for _ in range(MAP_INFLATED_MAX >> 20))
    bomb += compressor.compress(b"\0") + compressor.flush()
    assert len(bomb) < 100_000
    with pytest.raises(RemoteProtocolError):
        inflate(bomb)


@given(st.binary(max_size=100))
def test_garbage_after_the_magic(data: bytes) -> None:
    packed = b"\x28\xb5\x2f\xfd" + data
    try:
        inflate(packed)
    except RemoteProtocolError:
        return


def test_a_frame_cut_short() -> None:
    with pytest.raises(RemoteProtocolError):
        inflate(deflate(b"x" * 1000)[:-2])
