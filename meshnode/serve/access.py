"""Who may: bearer tokens and rates.

Tokens are kept as digests and compared in constant time, all of them each time, so that neither a
wrong guess nor the number of live tokens shows in the timing. Rates are sliding windows per caller in
a table that is bounded: the caller longest silent goes first.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict, deque
from typing import Final

from meshnode.base.errors import ConfigError

TOKEN_MIN: Final = 8
TOKENS_MAX: Final = 16
CALLERS_MAX: Final = 4096
HEADER_MAX: Final = 4096


class Tokens:
    """The tokens that are good now: a comma-separated list, so that one can be rotated while both work."""

    def __init__(self, text: str) -> None:
        """ConfigError, without the text, if a token is missing or guessable by its length."""
        tokens = [token.strip() for token in text.split(",") if token.strip()]
        if not tokens:
            raise ConfigError("token: it is empty; nobody could be told from anybody. Set CAPABILITY_TOKEN")
        if len(tokens) > TOKENS_MAX:
            raise ConfigError(f"token: more than {TOKENS_MAX} tokens; drop the old ones")
        for token in tokens:
            if len(token) < TOKEN_MIN:
                raise ConfigError(f"token: shorter than {TOKEN_MIN} characters; try: openssl rand -hex 24")
            if not token.isascii() or not token.isprintable() or " " in token:
                raise ConfigError("token: holds characters that no Authorization header can carry")
        self._digests = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)

    def check(self, header: str | None) -> int | None:
        """Which token an Authorization header bears; None: none of ours."""
        scheme, _, given = (header or "").partition(" ")
        is_bearer = scheme.lower() == "bearer" and len(given) <= HEADER_MAX
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape") if is_bearer else b"").digest()
        found: int | None = None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(known, digest):
                found = index
        return found if is_bearer else None

    def __repr__(self) -> str:
        return f"<Tokens {len(self._digests)} hidden>"


class Rate:
    """At most `count` events per caller within any `window_s` seconds."""

    def __init__(self, count: int, window_s: float) -> None:
        self.count = count
        self.window_s = window_s
        self._callers: OrderedDict[object, deque[float]] = OrderedDict()

    def wait_s(self, caller: object, now: float) -> float:
        """Seconds until this caller may come again; 0: now. Counts nothing."""
        times = self._callers.get(caller)
        if times is None:
            return 0.0
        self._expire(times, now)
        return times[0] + self.window_s - now if len(times) >= self.count else 0.0

    def add(self, caller: object, now: float) -> None:
        """Count one event."""
        times = self._callers.setdefault(caller, deque(maxlen=self.count))
        times.append(now)
        self._callers.move_to_end(caller)
        if len(self._callers) > CALLERS_MAX:
            self._callers.popitem(last=False)

    def _expire(self, times: deque[float], now: float) -> None:
        while times and times[0] + self.window_s <= now:
            times.popleft()
