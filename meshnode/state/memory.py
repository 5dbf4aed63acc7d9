"""A store for ephemeral nodes: nothing touches a disk, nothing survives the process."""

from __future__ import annotations

from meshnode.state.store import State


class MemoryStore:
    """Holds the State while the process lives."""

    def __init__(self) -> None:
        self._state: State | None = None

    def lock(self) -> None:
        """Nobody else can reach this store."""

    def load(self) -> State | None:
        """What was saved in this process."""
        return self._state

    def save(self, state: State) -> None:
        """Remember it until the process ends."""
        self._state = state

    def erase(self) -> None:
        """Forget it now."""
        self._state = None

    def close(self) -> None:
        """Nothing to release."""
