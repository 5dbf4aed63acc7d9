"""The values a path machine speaks in: states, events, effects, tuning, and what status shows.

Source: docs/protocol/paths.md 8.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Final, NamedTuple

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core.score import Kind


class State(StrEnum):
    """Where a peer's path stands."""

    UNKNOWN = "unknown"
    """Nothing is known and nothing is asked: no traffic."""
    PROBING = "probing"
    """Candidates are being pinged; packets go by relay."""
    DIRECT = "direct"
    DEGRADED = "degraded"
    """The direct path is in doubt: packets go both ways."""
    RELAY_ONLY = "relay"


class Event(Enum):
    """The rows of the table."""

    SEND = 1
    PONG = 2
    PING_RX = 3
    CALL_RX = 4
    RECV = 5
    MISS = 6
    TIMEOUT = 7
    HEARTBEAT = 8
    REPROBE = 9
    ROUND = 10
    DEGRADED = 11
    TICK = 12
    HEDGE = 13
    STALL = 131
    SEND_ERROR = 14
    LINK = 15
    ENDPOINTS = 16
    LEG = 162
    DISCO_KEY = 161
    IDLE = 17
    WG_STALL = 18
    TOO_BIG = 19
    REFUSED = 141
    RELAY_UP = 20
    RELAY_DOWN = 21
    OWN_ENDPOINTS = 22
    SIZE = 86


TIMERS: Final = frozenset({
    Event.HEARTBEAT, Event.REPROBE, Event.ROUND, Event.DEGRADED, Event.TICK, Event.HEDGE, Event.STALL, Event.IDLE,
    Event.RELAY_UP, Event.SIZE,
})  # fmt: skip
"""Events that a peer's own clock raises; RELAY_UP as the end of a "peer gone", SIZE as the next question of 8.6."""


class Purpose(Enum):
    """Why a ping was sent."""

    DISCOVER = "discover"
    HEARTBEAT = "heartbeat"
    SILENCE = "silence"
    REPEAT = "repeat"
    TRIGGERED = "triggered"
    TICK = "tick"
    SIZE = "size"
    CONTROL = "control"
    """The short probe beside a long one."""


class Hedge(StrEnum):
    """Why packets are duplicated onto the relay while Direct."""

    INSTALL = "new path not proved by data yet"
    MISS = "a probe was missed"
    LOSS = "probes are being lost"
    STALL = "no data comes back"
    MISSED = "the peer was talking and fell silent"
    UNHEARD = "the peer goes on sending copies, as one that hears nothing from us directly"
    SIZE = "the size of its packets is being probed"


class Mode(IntEnum):
    """Where the engine sends a peer's packets; the numbers are the engine's PATH_ constants."""

    NONE = 0
    DIRECT = 1
    RELAY = 2
    BOTH = 3
    """Direct, and a copy by relay as far as the allowance for copies goes."""
    DOUBTED = 7
    """By relay, and a copy direct as far as the allowance goes."""

    @property
    def is_direct(self) -> bool:
        """Whether packets go to the direct endpoint."""
        return bool(self & Mode.DIRECT)

    @property
    def is_relay(self) -> bool:
        """Whether packets go by relay."""
        return bool(self & Mode.RELAY)


class What(IntEnum):
    """What an authenticated packet was; the engine's numbers."""

    KEEPALIVE = 0
    DATA = 1
    HANDSHAKE = 2


@dataclass(frozen=True, slots=True)
class Tuning:
    """The five figures users may set (behaviours M-069 to M-073). Seconds unless named otherwise."""

    heartbeat_s: float = 2.0
    reprobe_s: float = 25.0
    probe_timeout_s: float = 5.0
    degraded_after_failures: int = 3
    degraded_timeout_s: float = 10.0


class SendPing(NamedTuple):
    """Seal a ping with this txid and send it there."""

    endpoint: Endpoint
    txid: bytes
    wire: int
    """Pad to an IP packet of this size; 0: no padding."""


class Call(NamedTuple):
    """Send CallMeMaybe by the peer's relay."""


class SeekRelay(NamedTuple):
    """See whether a member relays between us."""

    is_urgent: bool
    """The leg of one has just stopped carrying."""


class SetPath(NamedTuple):
    """Tell the engine where this peer's packets go from now on."""

    direct: Endpoint | None
    region: RegionId
    mode: Mode
    limit: int = 0
    """Longest IP packet that goes direct; longer ones go by relay, if a region is named. 0: whatever there is."""
    others: tuple[Endpoint, ...] = ()
    """Further endpoints that get a copy, while no relay can carry one."""


class Kick(NamedTuple):
    """Ask WireGuard for a handshake now."""


class Notify(NamedTuple):
    """A transition, or (old equal to new) another direct endpoint."""

    old: State
    new: State
    reason: str


Effect = SendPing | Call | SeekRelay | SetPath | Kick | Notify


@dataclass(frozen=True, slots=True)
class CandidateStatus:
    """One candidate as status shows it."""

    endpoint: Endpoint
    kind: Kind
    latency_s: float | None
    pong_at: Seconds | None
    """Loop time of the last pong; None: never one."""
    loss: float
    is_bad: bool

    def __str__(self) -> str:
        if self.is_bad:
            return f"{self.endpoint} (set aside)"
        if self.latency_s is None:
            return f"{self.endpoint} (no answer)"
        return f"{self.endpoint} ({self.latency_s * 1000:.1f} ms)"


@dataclass(frozen=True, slots=True)
class PathStatus:
    """A peer's path at one moment."""

    state: State
    since: Seconds
    reason: str
    """Why it is in this state: a sentence."""
    endpoint: Endpoint | None
    """The direct path in use; None: by relay or not at all."""
    latency_s: float | None
    region: RegionId
    is_relay_up: bool
    mode: Mode
    hedges: tuple[Hedge, ...]
    candidates: tuple[CandidateStatus, ...]
    pings_sent: int
    pongs_received: int
    transitions: tuple[tuple[Seconds, State, str], ...]
    """The last ones, oldest first."""
    limit: int | None = None
    """Longest IP packet the direct path is known to carry; None: not known."""
