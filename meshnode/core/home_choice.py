"""Which relay region is our home: the nearest by measurement, left only for a clearly better one or a dead one.

Peers send to our home, and each move costs every one of them news, so a move needs reasons: a difference that is
large in time and in share, seen by two reports in a row, and none in the last five minutes. A home that cannot be
logged in to is out for a while, whatever its STUN says. A home nobody measured yet gives way to the first report.
Source: docs/protocol/paths.md 4.3, 9.2.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from meshnode.base.addr import RegionId
from meshnode.base.units import Seconds
from meshnode.core.report import NetReport
from meshnode.netmap.model import RelayMap

HISTORY_S: Final = 305.0
HISTORY_MAX: Final = 64
GAIN_MIN_S: Final = 0.010
GAIN_SHARE: Final = 2 / 3
"""A new home takes at most this share of the old one's time."""
HEARD_S: Final = 8.0
HEARD_SILENT_S: Final = 120.0
MOVE_EVERY_S: Final = 300.0
EXCLUDE_S: Final = 60.0
EXCLUDE_MAX_S: Final = 600.0
FAILURES: Final = 2
"""Logins in a row that failed before a region is out."""
NO_REGION: Final = RegionId(0)
CONFIGURED: Final = "the configuration says so"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a report leads to."""

    region: RegionId
    """0: nothing is known to be reachable."""
    reason: str
    """A sentence with both figures."""
    again: bool = False
    """A move waits for another report that agrees; one soon would help."""
    is_voluntary: bool = False
    """The old home could be kept."""


@dataclass(slots=True)
class _Login:
    failures: int = 0
    exclusions: int = 0
    excluded_until: float = -1e9


class HomeChoice:
    """Knows reports, logins and frames; says which region should be home. All instants are loop time."""

    def __init__(self, remembered: RegionId = NO_REGION, *, wanted: RegionId = NO_REGION) -> None:
        """remembered: the home of the last run. wanted: a person's choice, used whenever it can be reached."""
        self.home = NO_REGION
        """The region we have or try."""
        self.reason = ""
        self._remembered = remembered
        self._wanted = wanted
        self._relays = RelayMap()
        self._usable: tuple[RegionId, ...] = ()
        self._history: deque[tuple[float, dict[RegionId, float]]] = deque(maxlen=HISTORY_MAX)
        self._logins: dict[RegionId, _Login] = {}
        self._heard: dict[RegionId, float] = {}
        self._is_measured = False
        """A report has confirmed or chosen this home."""
        self._wished = NO_REGION
        self._moved_at = -1e9

    # --- what happened ---

    def set_map(self, relays: RelayMap) -> None:
        """A new relay map. A home that is no longer in it is none."""
        self._relays = relays
        usable = (
            r.id
            for r in relays.regions.values()
            if not r.avoid and not r.no_home and any(not n.stun_only for n in r.nodes)
        )
        self._usable = tuple(sorted(usable))
        for known in (self._logins, self._heard):
            for region in [r for r in known if r not in relays.regions]:
                del known[region]
        if self.home not in self._usable:
            self._set(NO_REGION, "it left the relay map", is_measured=False)

    def note_login(self, region: RegionId, now: Seconds) -> None:
        """A login to a region was completed."""
        self._logins.pop(region, None)
        self._heard[region] = now

    def note_failure(self, region: RegionId, now: Seconds) -> None:
        """A login was tried and did not come about, or the connection is lost for longer than a restart takes."""
        login = self._logins.setdefault(region, _Login())
        login.failures += 1
        if login.failures >= FAILURES and now >= login.excluded_until:
            login.excluded_until = now + min(EXCLUDE_S * 2**login.exclusions, EXCLUDE_MAX_S)
            login.exclusions += 1

    def note_heard(self, region: RegionId, at: float) -> None:
        """A frame of that region's relay arrived at that moment."""
        self._heard[region] = max(at, self._heard.get(region, at))

    def forget(self) -> None:
        """Another network: old latencies and old exclusions say nothing of it."""
        self._history.clear()
        self._logins.clear()
        self._wished = NO_REGION
        self._is_measured = False

    # --- choices ---

    @property
    def usable(self) -> tuple[RegionId, ...]:
        """Regions of the map that may be home, by number."""
        return self._usable

    def is_excluded(self, region: RegionId, now: Seconds) -> bool:
        """Whether logins failed there lately."""
        login = self._logins.get(region)
        return login is not None and now < login.excluded_until

    def order(self, now: Seconds) -> tuple[RegionId, ...]:
        """Every usable region, in the order to try them: not excluded, wanted, measured and near, remembered, low."""
        best = self._best(now)

        def key(region: RegionId) -> tuple[bool, int, bool, float, bool, int]:
            failures = self._logins[region].failures if region in self._logins else 0
            latency = best.get(region)
            return (
                self.is_excluded(region, now),
                min(failures, FAILURES),
                region != self._wanted,
                1e9 if latency is None else latency,
                region != self._remembered,
                region,
            )

        return tuple(sorted(self._usable, key=key))

    def start(self, now: Seconds) -> RegionId:
        """The region to connect to before anything is measured; 0 if the map has none."""
        order = self.order(now)
        first = order[0] if order else NO_REGION
        why = "it was the home of the last run" if first == self._remembered else "nothing is measured yet"
        why = CONFIGURED if first == self._wanted else why
        self._set(first, why, is_measured=False)
        return first

    def take(self, choice: Choice, now: Seconds) -> None:
        """The home is this one from now on."""
        if choice.is_voluntary:
            self._moved_at = now
        self._set(choice.region, choice.reason, is_measured=choice.region in self._best(now))

    def on_report(self, report: NetReport, began_at: float, now: Seconds, *, is_told: bool = True) -> Choice:
        """What this report means for our home; `take` it once the region is connected.

        is_told: control would hear of a move now.
        """
        latencies = self._scored(report)
        self._history.append((now, latencies))
        choice = self._choose(latencies, began_at, now, is_told)
        if choice.region == self.home:
            self.reason = choice.reason
            self._is_measured |= self.home in latencies
        return choice

    def _choose(self, latencies: dict[RegionId, float], began_at: float, now: Seconds, is_told: bool) -> Choice:
        old, old_now = self.home, latencies.get(self.home, 0.0)
        best = {
            region: latency
            for region, latency in self._best(now).items()
            if region in latencies and region in self._usable and not self.is_excluded(region, now)
        }
        if not best:
            return self._nothing_usable(bool(latencies), old, now)
        if self._is_reachable(self._wanted, latencies, began_at, now) and (is_told or old == self._wanted):
            return Choice(self._wanted, CONFIGURED)
        new = min(best, key=lambda region: (best[region], region != old, region))
        if new == old:
            self._wished = NO_REGION
            return Choice(old, self._why_nearest(old, best))
        if old == NO_REGION:
            return Choice(new, self._why_nearest(new, best))
        if not is_told:
            return Choice(old, f"{self._name(old)} stays while control cannot be told of another")
        if not self._is_reachable(old, latencies, began_at, now):
            return Choice(new, f"{self._name(old)} cannot be reached; {self._name(new)} answers in {_ms(best[new])}")
        if old_now - best[new] < GAIN_MIN_S or best[new] > GAIN_SHARE * old_now:
            self._wished = NO_REGION
            return Choice(old, self._why_kept(new, old_now, best[new]))
        return self._wish(new, old_now, best[new], now)

    def _wish(self, new: RegionId, old_now: float, new_best: float, now: Seconds) -> Choice:
        """A clearly better region: move if it is confirmed, and the last move is long ago."""
        both = f"{self._name(new)} answers in {_ms(new_best)}, {self._name(self.home)} in {_ms(old_now)}"
        agreed, self._wished = self._wished == new, new
        if now - self._moved_at < MOVE_EVERY_S:
            return Choice(self.home, f"{both}; but the last move is less than five minutes ago")
        if self._is_measured and not agreed:
            return Choice(self.home, f"{both}; one more report must agree", again=True)
        return Choice(new, both, is_voluntary=True)

    def _nothing_usable(self, some_answered: bool, old: RegionId, now: Seconds) -> Choice:
        self._wished = NO_REGION
        what = "no region that answers lets us in" if some_answered else "no region answers"
        if old != NO_REGION and now - self._heard.get(old, -1e9) < HEARD_SILENT_S:
            return Choice(old, f"{what}, but {self._name(old)} was heard lately")
        return Choice(NO_REGION, what)

    def _is_reachable(self, region: RegionId, latencies: dict[RegionId, float], began_at: float, now: Seconds) -> bool:
        if region == NO_REGION or region not in self._usable or self.is_excluded(region, now):
            return False
        heard_at = self._heard.get(region, -1e9)
        return region in latencies or heard_at >= began_at or now - heard_at < HEARD_S

    def _why_nearest(self, nearest: RegionId, best: dict[RegionId, float]) -> str:
        text = f"nearest: {self._name(nearest)} answers in {_ms(best[nearest])}"
        others = [region for region in best if region != nearest]
        if not others:
            return text
        second = min(others, key=lambda region: (best[region], region))
        return f"{text}, {self._name(second)} in {_ms(best[second])}"

    def _why_kept(self, new: RegionId, old_now: float, new_best: float) -> str:
        if not old_now:
            return f"{self._name(self.home)} did not answer this time, but its connection lives"
        return (
            f"{self._name(self.home)} answers in {_ms(old_now)}; "
            f"{self._name(new)} in {_ms(new_best)}, not enough better to move"
        )

    # --- latencies ---

    def _scored(self, report: NetReport) -> dict[RegionId, float]:
        found = {}
        for region, reading in report.regions.items():
            latency = reading.best_s
            if latency is not None and region in self._relays.regions:
                score = self._relays.scores.get(region, 1.0)
                found[region] = latency * (score if score > 0 else 1.0)
        return found

    def _best(self, now: Seconds) -> dict[RegionId, float]:
        """The least of the last five minutes."""
        while self._history and now - self._history[0][0] > HISTORY_S:
            self._history.popleft()
        best: dict[RegionId, float] = {}
        for _, latencies in self._history:
            for region, latency in latencies.items():
                best[region] = min(latency, best.get(region, latency))
        return best

    def _set(self, region: RegionId, reason: str, *, is_measured: bool) -> None:
        self.home, self.reason, self._is_measured = region, reason, is_measured
        self._wished = NO_REGION

    def _name(self, region: RegionId) -> str:
        known = self._relays.regions.get(region)
        return known.code if known is not None and known.code else f"region {region}"


def _ms(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2g} ms"
