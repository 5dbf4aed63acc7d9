"""LinkWatch: says when the machine's network may have changed, or the machine has woken.

The kernel's notices only ring the bell: bursts are joined, and whoever is told looks at the state of now, so that
neither a lost notice nor a storm of them matters. Besides there is a look every minute, and every few seconds where
notices cannot be had.
States: closed → watching (notices) or polling → closed.
Source: docs/protocol/paths.md 7.6, 8.8; rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from meshnode.core.network import VIRTUAL
from meshnode.core.settle import Settle
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.wire import rtnetlink

TICK_S: Final = 2.0
"""How soon sleep is noticed by somebody who does nothing else."""
POLL_S: Final = 10.0
WATCHED_POLL_S: Final = 60.0
RECEIVE: Final = 64 * 1024
READS_MAX: Final = 64

_log = get_logger("links")


class LinkWatch:
    """Made inside a running loop; ended by `close`."""

    def __init__(self, clock: Clock, *, on_change: Callable[[], None], on_tick: Callable[[float], None]) -> None:
        """on_change: look now. on_tick: asked every TICK_S whether the machine slept, with the time it was due."""
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._on_change = on_change
        self._on_tick = on_tick
        self._settle = Settle()
        self._socket: socket.socket | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._polled_at = clock.now()
        self.counters: dict[str, int] = {"link_notices": 0, "link_overruns": 0, "link_looks": 0}

    @property
    def is_watching(self) -> bool:
        """Whether the kernel sends notices."""
        return self._socket is not None

    def start(self) -> None:
        """Listen, or poll where that is refused."""
        try:
            self._socket = _subscribe()
        except OSError as error:
            _log.info("the system sends no notices of network changes; polling", error=str(error), every_s=POLL_S)
        else:
            self._loop.add_reader(self._socket, self._on_readable)
        self._tick_later()

    def close(self) -> None:
        """Idempotent."""
        self._unsubscribe()
        for timer in (self._look_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        self._look_timer = self._tick_timer = None

    def note(self) -> None:
        """Something may have changed: look soon."""
        self._settle.note(self._clock.now())
        self._look_later()

    # --- notices ---

    def _on_readable(self) -> None:
        for _ in range(READS_MAX):
            assert self._socket is not None
            try:
                data = self._socket.recv(RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    _log.warning("no more notices of network changes; polling", error=str(error), every_s=POLL_S)
                    self._unsubscribe()
                    return
                self.counters["link_overruns"] += 1
                self.note()
                continue
            if any(_matters(kind, body) for kind, body in rtnetlink.messages(data)):
                self.counters["link_notices"] += 1
                self.note()

    def _unsubscribe(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    # --- looks and ticks ---

    def _look_later(self) -> None:
        due_at = self._settle.due_at()
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        if due_at is not None:
            self._look_timer = self._loop.call_at(due_at, self._look)

    def _look(self) -> None:
        self._look_timer = None
        started = self._clock.now()
        self.counters["link_looks"] += 1
        self._polled_at = started
        self._on_change()
        now = self._clock.now()
        self._settle.looked(now, now - started)

    def _tick_later(self) -> None:
        due_at = self._clock.now() + TICK_S
        self._tick_timer = self._loop.call_at(due_at, self._tick, due_at)

    def _tick(self, due_at: float) -> None:
        self._tick_later()
        if self._clock.now() - self._polled_at >= (WATCHED_POLL_S if self.is_watching else POLL_S):
            self._look()
        self._on_tick(due_at)


def _subscribe() -> socket.socket:
    """A socket that gets the notices. OSError where there are none."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError("this system has no netlink")
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        sock.bind((0, rtnetlink.GROUPS))
    except OSError:
        sock.close()
        raise
    return sock


def _matters(kind: int, body: bytes) -> bool:
    """Whether a notice can mean that some path is touched."""
    if kind in (rtnetlink.NEWLINK, rtnetlink.DELLINK):
        link = rtnetlink.parse_link(body)
        return link is None or not link.name.startswith(VIRTUAL)
    if kind in (rtnetlink.NEWROUTE, rtnetlink.DELROUTE):
        return not rtnetlink.is_clone(body)
    return kind in (rtnetlink.NEWADDR, rtnetlink.DELADDR, rtnetlink.NEWRULE, rtnetlink.DELRULE)
