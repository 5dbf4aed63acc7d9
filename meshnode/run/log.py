"""Structured log lines on stderr, without secrets, rate-limited.

A line is a time, a level, a room, a sentence and fields: `12:00:01.123 info control: netmap
received peers=3`; with `--log json` one JSON object. Values that look like keys or tokens are
replaced whoever logs them. Nothing is written until `configure` was called: a library stays quiet.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from typing import Any, Final, TextIO

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}
REPEAT_S: Final = 10.0
BURST: Final = 20
"""Equal sentences of one room within REPEAT_S; further ones are counted, not written."""
_SECRET: Final = re.compile(
    r"(privkey:|nlpriv:|tskey-[a-z]+-|hskey-(?!authreq-)[a-z]+-|Bearer\s+)[A-Za-z0-9_\-./+=]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """The text with private keys, auth keys and bearer tokens replaced by `…`."""
    return _SECRET.sub(lambda m: m.group(1) + "…", text)


class _Sink:
    """Where lines go; one per process, quiet until configured."""

    def __init__(self) -> None:
        self.threshold = LEVELS["off"]
        self.as_json = False
        self.stream: TextIO | None = None
        self.dropped: Counter[str] = Counter()
        self._recent: dict[tuple[str, str], tuple[float, int]] = {}

    def allows(self, room: str, sentence: str, now: float) -> bool:
        since, count = self._recent.get((room, sentence), (now, 0))
        if now - since > REPEAT_S:
            since, count = now, 0
        if len(self._recent) > 1000:
            self._recent.clear()
        self._recent[room, sentence] = (since, count + 1)
        if count >= BURST:
            self.dropped[room] += 1
            return False
        return True

    def write(self, level: str, room: str, sentence: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] < self.threshold or not self.allows(room, sentence, time.monotonic()):
            return
        stream = self.stream or sys.stderr
        wall = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall)) + f".{int(wall * 1000) % 1000:03d}Z"
        if self.as_json:
            record: dict[str, Any] = {"time": stamp, "level": level, "room": room, "message": redact(sentence)}
            record |= {k: redact(str(v)) if not isinstance(v, int | float | bool) else v for k, v in fields.items()}
            line = json.dumps(record, ensure_ascii=False)
        else:
            tail = "".join(f" {k}={_shown(v)}" for k, v in fields.items())
            line = redact(f"{stamp} {level} {room}: {sentence}{tail}").replace("\n", "\\n")
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            self.dropped["stderr"] += 1


def _shown(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c in '"=' for c in text) else text


_sink = _Sink()


def configure(*, level: str = "info", as_json: bool = False, stream: TextIO | None = None) -> None:
    """Switch logging on for this process. `level` is one of LEVELS."""
    _sink.threshold = LEVELS[level]
    _sink.as_json = as_json
    _sink.stream = stream


class Logger:
    """Writes lines of one room; keyword arguments become fields."""

    __slots__ = ("room",)

    def __init__(self, room: str) -> None:
        self.room = room

    def debug(self, sentence: str, **fields: Any) -> None:
        """For whoever looks for a fault."""
        _sink.write("debug", self.room, sentence, fields)

    def info(self, sentence: str, **fields: Any) -> None:
        """What an operator wants to have seen."""
        _sink.write("info", self.room, sentence, fields)

    def warning(self, sentence: str, **fields: Any) -> None:
        """Something failed and is being retried or worked around."""
        _sink.write("warning", self.room, sentence, fields)

    def error(self, sentence: str, **fields: Any) -> None:
        """Something failed and stays failed."""
        _sink.write("error", self.room, sentence, fields)


def get_logger(room: str) -> Logger:
    """The logger of a room."""
    return Logger(room)
