"""Fuzz PCP: replies as a gateway, or somebody in its place, may send them."""

from __future__ import annotations

from meshnode.wire import pcp


def target(data: bytes) -> None:
    """One input."""
    pcp.parse_reply(data)


SEEDS = [
    bytes.fromhex("0280000000001c200000002a") + bytes(12),
    bytes.fromhex("0281000000001c200000002a") + bytes(24) + bytes.fromhex("11000000a2a9a2aa") + bytes(16),
    bytes.fromhex("0281000c00001c200000002a") + bytes(12),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("pcp", target, SEEDS)
