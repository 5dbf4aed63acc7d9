"""Inbox: events of the native engine, served in order on the loop, one after another.

An event fd is a reader of the loop. What a handler raises goes to the loop's exception handler and the next event
is still served. Source: docs/protocol/dataplane.md 6.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meshnode.engine import _native

BATCH = 256


class Inbox:
    """Owns the handlers by kind of event. `start` begins, `finish` serves the rest and ends it."""

    def __init__(self, native: _native.Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._native = native
        self._loop = loop
        self._closed = False
        self._held: deque[tuple[Any, ...]] = deque()
        self._handlers: dict[int, Callable[..., None]] = {}

    def serve(self, handlers: Mapping[int, Callable[..., None]]) -> None:
        """Call these with the fields of their kind of event."""
        self._handlers.update(handlers)

    def start(self) -> None:
        """Read the event fd from now on."""
        self._loop.add_reader(self._native.event_fd, self.on_readable)

    def finish(self) -> None:
        """The engine's thread has ended: what it left is served, nothing comes after. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._native.event_fd)
        while self._held:
            self._each([self._held.popleft()])
        while self._each(self._native.poll_events(BATCH)):
            pass

    @property
    def is_holding(self) -> bool:
        """Whether `ask` took events that were not served yet."""
        return bool(self._held)

    def on_readable(self) -> None:
        """Serve what waits, at most one batch of it."""
        while self._held:
            self._each([self._held.popleft()])
        self._each(self._native.poll_events(BATCH))

    def ask(self) -> None:
        """A socket reached its end: see now whether the engine has said why. Any thread."""
        held = False
        for event in self._native.poll_events(BATCH):
            if event[0] == _native.EV_FLOW_ENDED:
                self._handlers[event[0]](*event[1:])
            else:
                self._held.append(event)
                held = True
        if held and not self._closed:
            self._loop.call_soon_threadsafe(self.on_readable)

    def _each(self, events: Sequence[tuple[Any, ...]]) -> int:
        handlers = self._handlers
        for event in events:
            try:
                handlers[event[0]](*event[1:])
            except Exception as error:
                context = {"message": f"engine event {event[0]} could not be served", "exception": error}
                self._loop.call_exception_handler(context)
        return len(events)
