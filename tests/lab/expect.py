"""What two nodes behind two kinds of NAT can have at best without guessing ports: direct or the relay.

Source: docs/nat.md; measured with a prober of pings alone, in this lab.
"""

from __future__ import annotations

from tests.lab.rules import Nat

KINDS = (
    Nat.ONE_TO_ONE,
    Nat.FULL_CONE,
    Nat.ADDRESS_RESTRICTED,
    Nat.PORT_RESTRICTED,
    Nat.PORT_RESTRICTED_OPEN,
    Nat.ADDRESS_DEPENDENT,
    Nat.SYMMETRIC,
    Nat.UDP_BLOCKED,
)
_MOVES = (Nat.PORT_RESTRICTED_OPEN, Nat.ADDRESS_DEPENDENT, Nat.SYMMETRIC)
"""Kinds whose mapping towards the peer is not the one that STUN saw, or need not be."""


def is_direct(one: Nat, other: Nat) -> bool:
    """Whether a direct path must be found."""
    if Nat.UDP_BLOCKED in (one, other):
        return False
    if one in _MOVES or other in _MOVES:
        # The other end lets in a packet from a port it never asked.
        return any(nat in KINDS[:3] for nat in (one, other))
    return True


def may_be_direct(one: Nat, other: Nat) -> bool:
    """Whether it depends on who probes first, so that either is right."""
    hard = Nat.PORT_RESTRICTED_OPEN
    return hard in (one, other) and not is_direct(one, other) and Nat.UDP_BLOCKED not in (one, other)
