"""The node's memory: one State, changed in place of itself, saved soon or at once.

What must survive a crash is saved before it is used (`now`); the rest shortly after. A full disk is a
warning: the node goes on and tries again at the next change.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from meshnode.base.errors import StateError
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.state.file import FileStore
from meshnode.state.memory import MemoryStore
from meshnode.state.store import State, Store

SAVE_DELAY_S: Final = 0.05
"""Changes of one start come in a burst; one write takes them all."""

_log = get_logger("state")


class Keeper:
    """Owns the store and the newest State."""

    def __init__(self, directory: str, control_url: str, clock: Clock) -> None:
        """directory: '' keeps nothing. Locks and reads: StateError."""
        self._clock = clock
        self._control_url = control_url
        self._store: Store = FileStore(directory) if directory else MemoryStore()
        self._is_dirty = asyncio.Event()
        self._is_over = False
        self._store.lock()
        try:
            self.state = self._load()
        except BaseException:
            self._store.close()
            raise

    def _load(self) -> State:
        state = self._store.load()
        if state is not None and state.control_url == self._control_url:
            return state
        if state is None:
            state = State.fresh(self._clock.entropy, self._control_url)
        else:
            _log.info("another control server than last time: joining as a new node", was=state.control_url)
            state = state.moved_to(self._control_url, self._clock.entropy)
        # Saved before control hears of it: a crash in between finds the same identity again.
        self._store.save(state)
        return state

    def change(self, *, now: bool = False, **fields: Any) -> None:
        """Remember fields of State; `now` returns after they are on disk."""
        if all(getattr(self.state, name) == value for name, value in fields.items()):
            return
        self.state = replace(self.state, **fields)
        self._is_dirty.set()
        if now:
            self.save()

    def save(self) -> None:
        """Write what changed. A failure is logged and tried again at the next change."""
        if self._is_over or not self._is_dirty.is_set():
            return
        self._is_dirty.clear()
        self.state = replace(self.state, updated_at=self._clock.wall())
        try:
            self._store.save(self.state)
        except StateError as error:
            _log.warning("state not saved", error=str(error))

    async def keep_saving(self) -> None:
        """Save shortly after each change, for ever."""
        while True:
            await self._is_dirty.wait()
            await asyncio.sleep(SAVE_DELAY_S)
            self.save()

    def start_over(self) -> None:
        """After a logout: the machine stays the same, so that a later login gets its name back."""
        self.state = self.state.moved_to(self._control_url, self._clock.entropy)
        self._is_dirty.set()
        self.save()
        self._is_over = True

    def erase(self) -> None:
        """Forget everything; nothing is saved any more."""
        self._is_over = True
        self._store.erase()

    def close(self) -> None:
        """Release the lock."""
        self._store.close()
