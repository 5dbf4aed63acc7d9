"""One netcheck: sends the probes of a plan, takes what comes back, ends early, and sums it up in a NetReport.

States: STUN → (silent) OTHER → DONE. In STUN, probes leave at their times unless they could teach nothing new; the
stage ends when nothing more can be learned, a while after three regions answered, or after three seconds. Without
one answer OTHER asks the regions by HTTPS and ICMP, and a full report looks for a captive portal. Five seconds bound
it all. Answers are matched by transaction;
a round trip is that of the very request it answers.
Source: docs/protocol/paths.md 4.1, 4.2.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core import captive
from meshnode.core.netplan import Plan, Probe
from meshnode.core.report import NetReport, RegionReading
from meshnode.netmap.model import RelayRegion

TOTAL_S: Final = 5.0
STUN_S: Final = 3.0
ICMP_S: Final = 1.0
ENOUGH_REGIONS: Final = 3
FULL_PATIENCE: Final = 2.0
"""A full report waits for the rest this many times the slowest of the first three."""


class Stage(Enum):
    """What a check is doing."""

    STUN = "stun"
    OTHER = "other"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AskStun:
    """Send a binding request to this node; then call `note_sent`, or `note_unsendable`."""

    txid: bytes
    probe: Probe


@dataclass(frozen=True, slots=True)
class AskHttps:
    """Measure a region by a request; then call `take_https`."""

    region: RelayRegion


@dataclass(frozen=True, slots=True)
class AskIcmp:
    """Measure a region by an IPv4 echo, for at most ICMP_S; then call `take_icmp`."""

    region: RelayRegion


@dataclass(frozen=True, slots=True)
class AskPortal:
    """Look for a captive portal, for at most three seconds; then call `take_portal`."""


Ask = AskStun | AskHttps | AskIcmp | AskPortal
_PORTAL: Final = ("portal", RegionId(0))


@dataclass(slots=True)
class _Flight:
    probe: Probe
    to: Endpoint | None = None
    sent_at: float = 0.0


class Check:
    """One report in the making. All instants are loop time; txid makes 12 random bytes."""

    def __init__(self, plan: Plan, began_at: Seconds, txid: Callable[[], bytes]) -> None:
        self.began_at = began_at
        self.stage = Stage.STUN
        self._plan = plan
        self._txid = txid
        self._queue = deque(plan.probes)
        self._flights: dict[bytes, _Flight] = {}
        self._answered: set[bytes] = set()
        self._stun: dict[tuple[RegionId, int], float] = {}
        self._https: dict[RegionId, float] = {}
        self._icmp: dict[RegionId, float] = {}
        self._mapped: dict[Endpoint, Endpoint] = {}
        """Server asked → our address as it saw us."""
        self._unsendable: set[tuple[str, int]] = set()
        """Node and family."""
        self._sent: set[int] = set()
        """Families."""
        self._sent_count = 0
        self._icmp_tried = False
        self._waiting: set[tuple[str, RegionId]] = set()
        self._portal_at: float | None = began_at + captive.AFTER_S if plan.is_full else None
        self._portal: bool | None = None
        self._give_up_at = began_at + STUN_S
        self.duplicates = 0
        """Answers to what was answered already."""

    @property
    def is_done(self) -> bool:
        """Nothing more is asked; `report` is final."""
        return self.stage is Stage.DONE

    # --- time ---

    def next_deadline(self) -> Seconds:
        """When to call `asks`. Meaningless once done."""
        if self.stage is Stage.OTHER:
            return Seconds(self.began_at + TOTAL_S)
        due = self.began_at + self._queue[0].after_s if self._queue else self._give_up_at
        return Seconds(min(due, self._give_up_at, self._portal_at or self._give_up_at))

    def asks(self, now: Seconds) -> list[Ask]:
        """What to send at this moment; call at each deadline and after each answer."""
        out: list[Ask] = self._ask_portal(now)
        if self.stage is Stage.STUN:
            while self._queue and now >= self.began_at + self._queue[0].after_s:
                probe = self._queue.popleft()
                if self._helps(probe):
                    txid = self._txid()
                    self._flights[txid] = _Flight(probe)
                    out.append(AskStun(txid, probe))
            if not out and (now >= self._give_up_at or not self._may_learn()):
                out += self._end_stun()
        elif now >= self.began_at + TOTAL_S or not self._waiting:
            self.stage = Stage.DONE
        return out

    def _ask_portal(self, now: Seconds) -> list[Ask]:
        """Once: at its time, or as soon as UDP is known to be silent."""
        if self._portal_at is None or now < self._portal_at or self.is_done:
            return []
        self._portal_at = None
        if self._mapped:
            return []
        self._waiting.add(_PORTAL)
        return [AskPortal()]

    def _end_stun(self) -> list[Ask]:
        self._queue.clear()
        if self._stun or not self._plan.regions:
            self.stage = Stage.DONE
            return []
        self.stage = Stage.OTHER
        relaying = [r for r in self._plan.regions if not r.avoid and any(not n.stun_only for n in r.nodes)]
        self._waiting |= {(how, r.id) for r in relaying for how in ("https", "icmp")}
        if self._portal_at is not None:
            self._portal_at = None
            self._waiting.add(_PORTAL)
            return [AskPortal(), *(ask for r in relaying for ask in (AskHttps(r), AskIcmp(r)))]
        if not self._waiting:
            self.stage = Stage.DONE
        return [ask for r in relaying for ask in (AskHttps(r), AskIcmp(r))]

    # --- what happened ---

    def note_sent(self, txid: bytes, to: Endpoint, now: Seconds) -> None:
        """The request left."""
        flight = self._flights.get(txid)
        if flight is not None:
            flight.to, flight.sent_at = to, now
            self._sent.add(flight.probe.family)
            self._sent_count += 1

    def note_unsendable(self, txid: bytes) -> None:
        """No address, or no route: neither this try nor another to it teaches anything."""
        flight = self._flights.pop(txid, None)
        if flight is not None:
            self._unsendable.add((flight.probe.node.name, flight.probe.family))

    def take_answer(self, txid: bytes, mapped: Endpoint, now: Seconds) -> bool:
        """A binding response. False if it is none of ours, or names no address that could be."""
        flight = self._flights.get(txid)
        if flight is None or flight.to is None or not _could_be_ours(mapped, flight.to):
            return False
        if txid in self._answered:
            self.duplicates += 1
            return True
        self._answered.add(txid)
        probe = flight.probe
        self._mapped.setdefault(flight.to, mapped)
        if probe.is_measure:
            self._take_latency((probe.region, probe.family), now - flight.sent_at, now)
        return True

    def _take_latency(self, key: tuple[RegionId, int], latency: float, now: Seconds) -> None:
        had = {region for region, _ in self._stun}
        self._stun[key] = min(latency, self._stun.get(key, latency))
        if key[0] not in had and len(had) + 1 == ENOUGH_REGIONS:
            slowest = max(self._best(region) for region in {*had, key[0]})
            patience = FULL_PATIENCE if self._plan.is_full else 1.0
            self._give_up_at = min(self._give_up_at, now + patience * slowest)

    def _best(self, region: RegionId) -> float:
        return min(latency for (r, _), latency in self._stun.items() if r == region)

    def take_https(self, region: RegionId, latency_s: float | None) -> None:
        """From request to first byte on an established connection; None: it failed."""
        self._take_other("https", region, self._https, latency_s)

    def take_icmp(self, region: RegionId, latency_s: float | None, *, is_allowed: bool = True) -> None:
        """An echo's round trip; None: none came. is_allowed: the system let us ask."""
        self._icmp_tried |= is_allowed
        self._take_other("icmp", region, self._icmp, latency_s)

    def take_portal(self, verdict: bool | None) -> None:
        """Whether there is one; None: nobody could tell."""
        self._waiting.discard(_PORTAL)
        self._portal = verdict

    def _take_other(self, how: str, region: RegionId, found: dict[RegionId, float], latency_s: float | None) -> None:
        if (how, region) in self._waiting:
            self._waiting.discard((how, region))
            if latency_s is not None:
                found[region] = latency_s

    # --- what helps ---

    def _helps(self, probe: Probe) -> bool:
        """Whether an answer to it would say something new."""
        if (probe.node.name, probe.family) in self._unsendable:
            return False
        if probe.is_measure and (probe.region, probe.family) not in self._stun:
            return True
        if probe.family != 4 or self._mapping_varies() is not None:
            return False
        return not any(
            f.probe.node.name == probe.node.name and txid in self._answered for txid, f in self._v4_flights()
        )

    def _v4_flights(self) -> list[tuple[bytes, _Flight]]:
        return [(txid, f) for txid, f in self._flights.items() if f.probe.family == 4]

    def _may_learn(self) -> bool:
        if any(self._helps(probe) for probe in self._queue):
            return True
        return any(self._helps(f.probe) for txid, f in self._flights.items() if txid not in self._answered)

    def _mapping_varies(self) -> bool | None:
        views = [mapped for server, mapped in self._mapped.items() if server.ip.version == 4]
        if len(set(views)) > 1:
            return True
        return False if len(views) > 1 else None

    # --- the sum ---

    def report(self, now: Seconds, *, os_has_ipv6: bool) -> NetReport:
        """What was learned so far. The home is not chosen here."""
        seen = Counter(self._mapped.values())
        return NetReport(
            at=now,
            duration_s=now - self.began_at,
            is_full=self._plan.is_full,
            stun_sent=self._sent_count,
            udp=bool(self._mapped),
            ipv4=self._heard(4),
            ipv6=self._heard(6),
            ipv4_can_send=4 in self._sent,
            ipv6_can_send=6 in self._sent,
            os_has_ipv6=os_has_ipv6,
            captive_portal=self._portal,
            icmpv4=bool(self._icmp) if self._icmp_tried else None,
            mapping_varies=self._mapping_varies(),
            global_v4=_usual(seen, 4),
            global_v6=_usual(seen, 6),
            seen=MappingProxyType(dict(seen)),
            regions=MappingProxyType(self._readings()),
        )

    def _heard(self, family: int) -> bool:
        return any(server.ip.version == family for server in self._mapped)

    def _readings(self) -> dict[RegionId, RegionReading]:
        found = sorted({r for r, _ in self._stun} | set(self._https) | set(self._icmp))
        return {
            r: RegionReading(self._stun.get((r, 4)), self._stun.get((r, 6)), self._https.get(r), self._icmp.get(r))
            for r in found
        }


def _could_be_ours(mapped: Endpoint, server: Endpoint) -> bool:
    is_somebody = not mapped.ip.is_unspecified and not mapped.ip.is_multicast
    return is_somebody and mapped.port != 0 and mapped.ip.version == server.ip.version


def _usual(seen: Counter[Endpoint], family: int) -> Endpoint | None:
    """The address most servers saw; of equals the first."""
    found = [(count, endpoint) for endpoint, count in seen.items() if endpoint.ip.version == family]
    return max(found, key=lambda pair: pair[0])[1] if found else None
