"""Watches a world: the invariants of paths.md 8.9, at every transition, every packet and now and then.

Source: docs/protocol/paths.md 8.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.core.path import PeerPath
from meshnode.core.path_body import CALL_GAP_S
from meshnode.core.path_timers import EVIDENCE_S
from meshnode.core.path_values import Event, Mode, State
from meshnode.core.score import RTO_MIN_S
from tests.sim.link import Wg

if TYPE_CHECKING:
    from tests.sim.engine import Route
    from tests.sim.node import SimNode
    from tests.sim.world import World

UNKNOWN_TIMERS: Final = {Event.RELAY_UP}
RTO_MAX_S: Final = 3.0
EVERY: Final = 64
"""Events between two looks at nodes to which nothing happened."""


class Watch:
    """The inspector of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events = 0
        self.calm_at: dict[PeerPath, float] = {}
        """When nothing had been said for some seconds, and evidence was let grow old."""

    def look(self) -> None:
        """After each event."""
        self.events += 1
        all_of_them = self.events % EVERY == 0
        for node in self.world.nodes:
            if node.is_touched or all_of_them:
                node.is_touched = False
                self.inspect(node)

    def inspect(self, node: SimNode) -> None:
        """Every path of a node."""
        if node.asleep_since is not None:
            return
        for known, path in node.paths():
            if path.is_calm(node.now) or path not in self.calm_at:
                self.calm_at[path] = node.now
            problem = broken(path, node.now, node.routes.get(known), self.calm_at[path])
            if problem:
                self.fail(node, problem)

    def on_send(self, node: SimNode, to: SimNode, route: Route, packet: Wg) -> None:
        """I1, I2: a data packet was handed to the engine."""
        path = node.path_if_any(to)
        if path is None:
            return
        if path.state is State.DEGRADED and path.is_relay_up and not route.mode.is_relay:
            self.fail(node, "I2: degraded, and data is not relayed")
        if route.mode == Mode.NONE and (path.is_relay_up or path.act is not None or path.spray(path.now)):
            self.fail(node, "I1: a way is known and data was not sent")

    def fail(self, node: SimNode, problem: str) -> None:
        """Raises with the seed and the story."""
        world = self.world
        at = f"seed {world.seed} at {world.now - 1000.0:.3f} s, {node.name}"
        raise AssertionError(f"{at}: {problem}\n{world.story()}")


def broken(path: PeerPath, now: float, route: Route | None, calm_at: float) -> str:
    """Which invariant does not hold; '' if all do. calm_at: when evidence was last let grow old."""
    act, state = path.act, path.state
    mode = route.mode if route is not None else Mode.NONE
    if state is State.DEGRADED and path.is_relay_up and not mode.is_relay:
        return "I2: degraded, but not relayed"
    if mode == Mode.NONE and (path.is_relay_up or act is not None or path.spray(path.now)):
        return "I1: a way is known and the engine has none"
    if (state in (State.DIRECT, State.DEGRADED)) != (act is not None):
        return f"I6: {state} with act {act and act.endpoint}"
    if state is State.DIRECT and act is not None:
        if act.is_bad(now):
            return "I6: direct by a path in quarantine"
        limit = EVIDENCE_S + RTO_MAX_S + RTO_MIN_S + path.tuning.heartbeat_s * 1.1
        proved_at = max(path.evidence_at, path.installed_at - EVIDENCE_S, calm_at)
        if path.is_live and now - proved_at > limit:
            return f"I6: direct, but no evidence for {now - path.evidence_at:.1f} s"
    if state is State.UNKNOWN:
        armed = set(path.timers) - UNKNOWN_TIMERS
        if armed or any(p.timeout_at - now > path.tuning.probe_timeout_s + 1e-6 for p in path.probes.values()):
            return f"I7: unknown with timers {armed}"
    if len(path.candidates) > 64 or len(path.probes) > 64:
        return "I10: too many candidates or probes"
    if mode.is_direct and (route is None or route.direct is None):
        return "a direct mode without an endpoint"
    return ""


def close_calls(times: list[float]) -> list[float]:
    """Gaps between CallMeMaybes that are too short (I5)."""
    return [b - a for a, b in zip(times, times[1:], strict=False) if b - a < CALL_GAP_S - 1e-6]
