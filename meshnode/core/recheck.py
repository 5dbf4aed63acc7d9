"""When to ask again whether those whom a relay serves may still be there.

Owns who is due and how many at once: every member's last answer is at most `every_s` old when it is asked about again,
the oldest first. A question without an answer is repeated soon; while the last question had none, few are asked, so a
verifier that is down is not stormed. Time and members are handed in, questions are the caller's.
Source: docs/protocol/paths.md 1.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EVERY_S: Final = 30.0
"""With a turn's delay, an answer's bound, and one question lost, a removed node is gone within a minute."""
RETRIES: Final = 6
"""A question without an answer comes again after this part of `every_s`."""
TURNS: Final = 10
"""Turns in `every_s`."""
PROBES: Final = 8
"""Questions of a turn while nobody answers."""
TURN_MIN: Final = 32


class Rechecks:
    """The plan for the members of one relay; keys are raw."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self.turn_s = every_s / TURNS
        """How often to call `due`."""
        self._at: dict[bytes, float] = {}
        self._asking: set[bytes] = set()
        self._is_answered = True

    def due(self, now: float, members: Mapping[bytes, float]) -> list[bytes]:
        """Whom to ask about in this turn. members: when each was last answered for; others are forgotten."""
        self._at = {key: self._at.get(key, at + self.every_s) for key, at in members.items()}
        waiting = sorted((at, key) for key, at in self._at.items() if at <= now and key not in self._asking)
        most = max(TURN_MIN, 2 * len(members) // TURNS) if self._is_answered else PROBES
        chosen = [key for _, key in waiting[:most]]
        self._asking.update(chosen)
        return chosen

    def note(self, now: float, key: bytes, *, is_answered: bool) -> None:
        """The question about this key ended, with an answer or without."""
        self._asking.discard(key)
        self._is_answered = is_answered
        self._at[key] = now + (self.every_s if is_answered else self.every_s / RETRIES)
