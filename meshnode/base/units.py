"""Types that keep units apart.

Rules: instants end in `_at`, durations in `_s`, `_ms` or `_ns`; `now` is always an argument.
"""

from typing import NewType

Seconds = NewType("Seconds", float)
"""A duration, or an instant of the loop's monotonic clock, in seconds."""

Nanos = NewType("Nanos", int)
"""A duration, or an instant of the boot clock, in nanoseconds."""

Unix = NewType("Unix", float)
"""Wall-clock seconds since 1970, used only where a protocol carries wall time."""

Bytes = NewType("Bytes", int)
"""A size."""
