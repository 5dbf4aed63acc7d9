"""Who may use our relay: asked at each login, and again while a client stays.

An Admit is any coroutine function of (node key, source address); an exception means that it does not know, which is
no for a stranger and changes nothing for a member. `Gate` adds memory to one: answers are kept for a short time, a
member that it cannot ask about stays, everything else is closed.
Source: docs/protocol/paths.md 1.9.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from meshnode.base.errors import ConfigError, KeyFormatError
from meshnode.base.keys import NodePublic
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger

Admit = Callable[[NodePublic, str], Awaitable[bool]]
"""(who, from which address) → may it? An exception: it cannot be known now."""

ADMIT_S: Final = 5.0
"""An answer later than this is none."""
YES_S: Final = 30.0
"""How long a yes is believed without asking again."""
NO_S: Final = 5.0
"""How long a no is."""
STALE_YES_S: Final = 600.0
"""While nobody can be asked: how long the last yes still lets its node back in."""
REMEMBERED_MAX: Final = 65536
"""Members, and as many strangers: a flood of unknown keys makes nobody forget a member."""
LOG_EVERY_S: Final = 60.0
NEVER: Final = -1e9
KEYS_FILE_MAX: Final = 8 << 20
_log = get_logger("relay-admit")


async def allow_everybody(key: NodePublic, source: str) -> bool:
    """An open relay: for tests and for networks that keep strangers out by other means."""
    return True


def allow_keys(keys: Iterable[NodePublic]) -> Admit:
    """Only these node keys."""
    known = frozenset(keys)

    async def admit(key: NodePublic, source: str) -> bool:
        return key in known

    return admit


class KeysFile:
    """The node keys of a text file, one a line, `#` comments; read again when it changes."""

    def __init__(self, path: Path) -> None:
        """ConfigError if it cannot be read or a line is no node key."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: frozenset[NodePublic] = frozenset()
        self._said = ""
        self._load()

    def __len__(self) -> int:
        return len(self._keys)

    async def __call__(self, key: NodePublic, source: str) -> bool:
        """Whether the file has the key now. A file that cannot be read any more keeps what it said last."""
        try:
            self._load()
            self._said = ""
        except ConfigError as error:
            if str(error) != self._said:  # once, and not for every client
                _log.warning("the list of keys keeps its last contents", error=str(error))
            self._said = str(error)
        return key in self._keys

    def _load(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            if found.st_size > KEYS_FILE_MAX:
                raise ConfigError(f"allow_keys: {self._path} has more than {KEYS_FILE_MAX} bytes")
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"allow_keys: cannot read {self._path}: {reason}") from None
        self._keys = frozenset(_keys_of(text, self._path))
        self._stamp = stamp


def _keys_of(text: str, path: Path) -> Iterable[NodePublic]:
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            yield NodePublic.parse(word)
        except KeyFormatError:
            raise ConfigError(
                f"allow_keys: not a node key; write nodekey: and 64 hex digits, one a line  ({path}:{number})"
            ) from None


class Gate:
    """An Admit with a memory, closed while it cannot ask."""

    def __init__(self, ask: Admit, *, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._members: OrderedDict[bytes, float] = OrderedDict()
        self._strangers: OrderedDict[bytes, float] = OrderedDict()
        self._failed_at = -LOG_EVERY_S
        self.failures = 0
        """Questions without an answer."""

    async def __call__(self, key: NodePublic, source: str) -> bool:
        """May this node come in? While nobody can be asked: only if it was let in not long ago."""
        now = self._clock.now()
        if now - self.allowed_at(key) < YES_S:
            return True
        if now - self._strangers.get(key.raw, NEVER) < NO_S:
            return False
        answer = await self._asked(key, source)
        return self._clock.now() - self.allowed_at(key) < STALE_YES_S if answer is None else answer

    async def recheck(self, key: NodePublic, source: str) -> bool | None:
        """May this member stay? None: nobody can be asked, so it does."""
        return await self._asked(key, source)

    def allowed_at(self, key: NodePublic) -> float:
        """When this node was last said to be a member."""
        return self._members.get(key.raw, NEVER)

    def forget(self) -> None:
        """Ask anew from now on, of members too. Who was let in not long ago may still return while nobody answers."""
        self._strangers.clear()
        stale = self._clock.now() - YES_S
        for key, at in self._members.items():
            self._members[key] = min(at, stale)

    async def _asked(self, key: NodePublic, source: str) -> bool | None:
        try:
            async with asyncio.timeout(ADMIT_S):
                answer = await self._ask(key, source)
        except Exception as error:
            self._report(error)
            return None
        known, other = (self._members, self._strangers) if answer else (self._strangers, self._members)
        other.pop(key.raw, None)
        known.pop(key.raw, None)
        known[key.raw] = self._clock.now()
        if len(known) > REMEMBERED_MAX:
            known.popitem(last=False)
        return answer

    def _report(self, error: Exception) -> None:
        self.failures += 1
        now = self._clock.now()
        if now - self._failed_at < LOG_EVERY_S:
            return
        self._failed_at = now
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        _log.warning("nobody can be asked who may use this relay: strangers stay out", error=reason)
