"""Which of two paths is better: a sort key and a threshold.

A Candidate is an endpoint of a peer with what probing taught us of it. Times are loop seconds.
Source: docs/protocol/paths.md 8.2, 8.3.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final

from meshnode.base.addr import IP, Endpoint

LOSS_GAIN: Final = 0.1
RTO_NO_SAMPLE_S: Final = 0.6
RTO_MIN_S: Final = 0.2
FRESH_PONG_S: Final = 10.0
GAIN_MIN_S: Final = 0.002
GAIN_SHARE: Final = 0.10
LOSSY: Final = 0.15
LOSSLESS: Final = 0.05
LOSS_SAMPLES: Final = 10
NEVER: Final = 1e18
FULL_SIZE: Final = 1360
"""Wire size of a full tunnel packet: 1280 inside, 80 around it."""


_PRIVATE_V4: Final = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))
_PRIVATE_V6: Final = IPv6Network("fc00::/7")


class Kind(IntEnum):
    """Where a candidate came from, in the order they are worth trying."""

    LOCAL = 0
    PORTMAP = 1
    STATIC = 2
    NETMAP = 3
    CALLED = 4
    STUN = 5
    REFLEXIVE = 6
    RELAYED = 7


class Candidate:
    """One endpoint of a peer."""

    __slots__ = (
        "asked_at", "bad_count", "bad_until", "endpoint", "finished", "heard_at", "hushed_at", "is_announced",
        "is_left", "is_narrow", "is_sized", "kind", "limit", "loss", "ping_at", "pinged_at", "pong_at", "pong_count",
        "sized_at", "srtt", "triggered_at", "var",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, kind: Kind) -> None:
        self.endpoint = endpoint
        self.kind = kind
        self.is_announced = False
        """In the netmap now; others are the first to be forgotten."""
        self.limit: int | None = None
        """Largest wire size proved; None: not tested, taken for FULL_SIZE."""
        self.is_sized = False
        """`limit` is the answer to a finished test."""
        self.asked_at = -1e9
        """When that test ended."""
        self.sized_at = -1e9
        """When a probe of a chosen length last came back."""
        self.heard_at = -1e9
        """When authenticated packets last came from here while the path in use was in doubt."""
        self.bad_until = -1e9
        self.bad_count = 0
        self.hushed_at = NEVER
        """From then on the peer is not to believe in it either: it was set aside because it does not carry."""
        self.ping_at = -1e9
        self.triggered_at = -1e9
        self.pinged_at = -1e9
        """When the peer last pinged us from there."""
        self.is_left = False
        """Set aside only because the peer does not use it: no longer than that."""
        self.forget()

    def forget(self) -> None:
        """The link changed: what was measured holds no longer, and what was unreachable need not be."""
        self.bad_until = -1e9
        self.srtt: float | None = None
        self.var = 0.0
        self.pong_at = -1e9
        self.pong_count = 0
        self.loss = 0.0
        self.finished = 0
        self.limit = None
        self.is_sized = False
        self.is_narrow = False
        """It carries short packets only."""
        self.hushed_at = NEVER
        self.ping_at = -1e9

    def take_sample(self, rtt: float, now: float) -> None:
        """A pong came after `rtt` (RFC 6298 smoothing)."""
        if self.srtt is None:
            self.srtt, self.var = rtt, rtt / 2
        else:
            self.var = 0.75 * self.var + 0.25 * abs(self.srtt - rtt)
            self.srtt = 0.875 * self.srtt + 0.125 * rtt
        self.pong_count += 1
        self.pong_at = now
        self._finish(0.0)

    def take_loss(self) -> None:
        """A ping was never answered."""
        self._finish(1.0)

    def forget_loss(self) -> None:
        """Count anew."""
        self.loss, self.finished = 0.0, 0

    def _finish(self, lost: float) -> None:
        self.finished += 1
        self.loss += LOSS_GAIN * (lost - self.loss)

    def rto(self) -> float:
        """How long a pong may take before its ping counts as missed for now."""
        if self.srtt is None:
            return RTO_NO_SAMPLE_S
        ceiling = max(1.0, min(1.5 * self.srtt, 3.0))
        return max(RTO_MIN_S, min(self.srtt + 4 * self.var, ceiling))

    def is_bad(self, now: float) -> bool:
        """In quarantine."""
        return now < self.bad_until

    @property
    def tier(self) -> int:
        """0 direct, 1 by a peer relay."""
        return 1 if self.kind is Kind.RELAYED else 0


def address_class(ip: IP) -> int:
    """Loopback, link-local, private v6, private v4, public v6, public v4: nearer is lower."""
    if ip.is_loopback:
        return 0
    if ip.is_link_local:
        return 1
    if isinstance(ip, IPv6Address):
        return 2 if ip in _PRIVATE_V6 else 4
    return 3 if any(ip in network for network in _PRIVATE_V4) else 5


def probe_order(candidate: Candidate) -> tuple[int, int]:
    """Sort key for probing: the likeliest and nearest first."""
    return (candidate.kind, address_class(candidate.endpoint.ip))


def is_better(a: Candidate, b: Candidate, now: float, *, b_is_doubted: bool, is_settling: bool) -> bool:
    """Whether to leave `b`, the path in use, for `a`.

    b_is_doubted: probes of it are missed; is_settling: b was taken moments ago, so one pong of a suffices.
    """
    if a is b or a.is_bad(now) or b.is_bad(now) or now - a.pong_at >= FRESH_PONG_S:
        return False
    if a.pong_count < 2 and not is_settling and not b_is_doubted:
        return False
    if a.tier != b.tier:
        return a.tier < b.tier
    a_full, b_full = (a.limit or FULL_SIZE) >= FULL_SIZE, (b.limit or FULL_SIZE) >= FULL_SIZE
    if a_full != b_full:
        return a_full
    if b_is_doubted:
        return True
    return _is_cleaner(a, b) or _is_nearer(a, b)


def _is_cleaner(a: Candidate, b: Candidate) -> bool:
    enough = a.finished >= LOSS_SAMPLES and b.finished >= LOSS_SAMPLES
    return enough and b.loss > LOSSY and a.loss < LOSSLESS


def _is_nearer(a: Candidate, b: Candidate) -> bool:
    if a.srtt is None or b.srtt is None:
        return b.srtt is None and a.srtt is not None
    margin = max(GAIN_SHARE * max(a.srtt, b.srtt), GAIN_MIN_S)
    if a.srtt + margin < b.srtt:
        return True
    if b.srtt + margin < a.srtt:
        return False
    return address_class(a.endpoint.ip) < address_class(b.endpoint.ip)
