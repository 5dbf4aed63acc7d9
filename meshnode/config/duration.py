"""Lengths of time as people write them: `500ms`, `2s`, `1m30s`, or a bare number of seconds."""

from __future__ import annotations

import re
from typing import Final

_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART: Final = r"[0-9]+(?:\.[0-9]+)?"
_WRITTEN: Final = re.compile("".join(rf"(?:({_PART}){unit})?" for unit in _UNITS_S))
LONGEST_S: Final = 1e9


def parse_duration(value: str | float) -> float:
    """Seconds. Each unit once, the greatest first; ValueError for anything else, and for what is negative."""
    text = str(value)
    try:
        seconds = float(text)
    except ValueError:
        found = _WRITTEN.fullmatch(text)
        if found is None or not text:
            raise ValueError(f"{text!r} is no length of time") from None
        seconds = sum(float(part) * unit for part, unit in zip(found.groups("0"), _UNITS_S.values(), strict=True))
    if not 0 <= seconds < LONGEST_S:
        raise ValueError(f"{text!r} is no length of time that could be waited")
    return seconds
