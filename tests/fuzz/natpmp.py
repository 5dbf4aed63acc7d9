"""Fuzz NAT-PMP: replies as a gateway, or somebody in its place, may send them."""

from __future__ import annotations

from meshnode.wire import natpmp


def target(data: bytes) -> None:
    """One input."""
    natpmp.parse_reply(data)


SEEDS = [
    bytes.fromhex("008000000000002a0b4d0002"),
    bytes.fromhex("008100000000002ba2a9a2aa00001c20"),
    bytes.fromhex("0080000100000000"),
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("natpmp", target, SEEDS)
