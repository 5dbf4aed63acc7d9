"""How long a datagram a direct path carries: asked in pairs, one probe of that length and a short one beside it.

A path is taken for too small only if three long probes were lost while the short one of each pair came back, and
one more for each pair that was lost whole: random loss loses both. Then the next smaller size is asked, and a path
that does not even carry the last is set aside. What passed is the candidate's limit: longer packets go by relay. A
path in use is watched with probes that are sent anyway, made as long as its limit now and then.
Source: docs/protocol/paths.md 8.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.core.path_values import Event, Hedge, Purpose, State

if TYPE_CHECKING:
    from meshnode.core.path_body import PathBody, Probe
    from meshnode.core.score import Candidate

SIZES: Final = (1360, 1280, 1200)
"""IP packets of the underlay, the largest first: a full tunnel packet over IPv6, what IPv6 promises, and less."""
PAIRS: Final = 3
AGAIN_S: Final = 2.0
"""The longest wait before a pair that said nothing is repeated."""
RETEST_S: Final = 600.0
WATCH_S: Final = 10.0
SILENT_WATCH_S: Final = 2.0
DOUBT_S: Final = 1.0
SIZING: Final = frozenset({Purpose.SIZE, Purpose.CONTROL})
"""Probes whose loss says nothing of whether the path lives."""


class SizeTest:
    """One question under way: does `candidate` carry `wire` bytes?"""

    __slots__ = ("candidate", "has_control", "lost", "vain", "wire")

    def __init__(self, candidate: Candidate, wire: int) -> None:
        self.candidate = candidate
        self.wire = wire
        self.lost = 0
        """Pairs whose long probe was lost and whose short one was not."""
        self.vain = 0
        """Pairs of which neither came back."""
        self.has_control = False
        """The short probe of the pair under way came back."""


def start_test(p: PathBody, wire: int = SIZES[0]) -> None:
    """Ask the path in use anew, from the top unless told otherwise."""
    assert p.act is not None
    p.size_test = SizeTest(p.act, wire)
    if not p.act.is_sized:
        p.hedges.add(Hedge.SIZE)
    ask_pair(p)


def ask_pair(p: PathBody) -> None:
    """Both probes of a pair; a suppressed one is asked at the next timer."""
    test = p.size_test
    assert test is not None
    test.has_control = False
    p.drop_timers(Event.SIZE)
    if not p.ping(test.candidate, Purpose.SIZE, test.wire):
        p.timers[Event.SIZE] = p.now + AGAIN_S
        return
    p.ping(test.candidate, Purpose.CONTROL)


def keep_sized(p: PathBody) -> None:
    """After every step: a direct path that was not asked yet is, and no question outlives its path."""
    is_direct = p.state is State.DIRECT and p.act is not None
    if p.size_test is not None and (not is_direct or p.size_test.candidate is not p.act):
        p.size_test = None
        p.hedges.discard(Hedge.SIZE)
        p.drop_timers(Event.SIZE)
    if is_direct and p.act is not None and not p.act.is_sized and p.size_test is None:
        start_test(p)


def on_size_pong(p: PathBody, probe: Probe) -> None:
    """Any probe of a known length came back, or the short one of a pair."""
    test, candidate = p.size_test, probe.candidate
    if probe.purpose is Purpose.CONTROL:
        if test is not None and test.candidate is candidate:
            test.has_control = True
        return
    candidate.sized_at = p.now
    if probe.purpose is not Purpose.SIZE:
        return
    is_answer = test is not None and test.candidate is candidate and probe.wire >= test.wire
    if is_answer or (candidate.is_sized and probe.wire > (candidate.limit or 0)):
        candidate.limit, candidate.is_sized, candidate.asked_at = probe.wire, True, p.now
        p.size_test = None
        p.hedges.discard(Hedge.SIZE)
        p.drop_timers(Event.SIZE)


def on_size_miss(p: PathBody, probe: Probe) -> None:
    """The long probe of a pair did not come back in time."""
    test = p.size_test
    if test is None or probe.purpose is not Purpose.SIZE or probe.candidate is not test.candidate:
        return
    if probe.wire != test.wire:
        return
    p.hedges.add(Hedge.SIZE)
    if test.has_control:
        test.lost += 1
        if test.lost >= PAIRS + test.vain:
            _too_small(p, test)
        else:
            ask_pair(p)
        return
    test.vain += 1
    p.timers[Event.SIZE] = p.now + min(test.candidate.rto() * 2**test.vain, AGAIN_S)


def _too_small(p: PathBody, test: SizeTest) -> None:
    smaller = [size for size in SIZES if size < test.wire]
    if smaller:
        p.size_test = SizeTest(test.candidate, smaller[0])
        ask_pair(p)
        return
    p.size_test = None
    test.candidate.is_narrow = True
    p.doubt_carrying(f"{test.candidate.endpoint} does not even carry packets of {test.wire} bytes")


def on_size_timer(p: PathBody) -> None:
    """The wait after a pair in vain is over."""
    if p.size_test is not None:
        ask_pair(p)


def watch_wire(p: PathBody, every_s: float = WATCH_S) -> int:
    """How long the next probe of the path in use shall be: its limit if that was not proved lately, else 0.

    Sooner than `every_s` when data was coming and comes no more: long packets may have begun to vanish.
    """
    act = p.act
    assert act is not None
    if act.limit is None or p.size_test is not None:
        return 0
    fell_silent = p.heard_act_at > act.sized_at and p.now - p.heard_act_at > DOUBT_S
    return act.limit if fell_silent or p.now - act.sized_at >= every_s else 0


def retest(p: PathBody) -> None:
    """Ask from the top again now and then: paths change, and may carry more than they did."""
    assert p.act is not None
    if p.size_test is None and p.act.is_sized and p.now - p.act.asked_at >= RETEST_S:
        start_test(p)


def doubt_size(p: PathBody) -> None:
    """Something says that long packets do not pass: ask, and copy onto the relay meanwhile."""
    if p.size_test is None:
        start_test(p)
        p.hedges.add(Hedge.SIZE)
