"""What may go wrong in a scenario: each mishap happens, says so, may end, and says what it may cost.

A mishap returns its Cost: the time in which it may be felt, and the longest run of data that may be lost
meanwhile. What is not covered by a cost must all be delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshnode.core.path_size import SIZES
from tests.sim.net import Lan
from tests.sim.node import SimNode
from tests.sim.relay import Health
from tests.sim.world import World

NOTICED_S: Final = 3.5
"""A dead direct path is given up within a heartbeat and an RTO (I3)."""
SCRUB_NOTICED_S: Final = {True: 16.5, False: 35.0}
"""With data both ways, and one way: then a keepalive every ten seconds is all that comes back, twice after the last
data, and is missed after twelve."""
REHOMED_S: Final = 20.0
SESSION_S: Final = 6.0
"""A handshake that was lost is sent again after five seconds."""


@dataclass
class Cost:
    """Seconds from now until it is over for good, and the longest run of lost data that it excuses."""

    felt_s: float
    lost_s: float


@dataclass
class Stage:
    """The world and its two talkers."""

    world: World
    a: SimNode
    b: SimNode
    both: bool = True
    """Data goes both ways."""
    was_set_aside: bool = False
    """A path may be in quarantine."""
    has_rebound: bool = False

    def one(self) -> SimNode:
        """Either of them."""
        return self.world.dice.choice([self.a, self.b])

    def after(self, delay_s: float, what: str, call: Callable[[], None]) -> None:
        """Undo something later."""

        def undo() -> None:
            self.world.note(what)
            call()

        self.world.later(delay_s, undo)


def cut(stage: Stage) -> Cost:
    """UDP passes in neither direction, for a while."""
    for_s = stage.world.dice.uniform(1.0, 30.0)
    stage.world.note(f"UDP is cut for {for_s:.1f} s")
    stage.world.cut(stage.a, stage.b)
    stage.after(for_s, "UDP passes again", stage.world.heal)
    return Cost(for_s + 1.0, NOTICED_S)


def cut_one_way(stage: Stage) -> Cost:
    """UDP passes in one direction only."""
    for_s, sender = stage.world.dice.uniform(1.0, 30.0), stage.one()
    receiver = stage.b if sender is stage.a else stage.a
    stage.world.note(f"UDP from {sender.name} to {receiver.name} is cut for {for_s:.1f} s")
    stage.world.cut(sender, receiver, one_way=True)
    stage.after(for_s, "UDP passes both ways again", stage.world.heal)
    return Cost(for_s + 1.0, NOTICED_S)


def scrub(stage: Stage) -> Cost:
    """Somebody drops WireGuard and lets DISCO pass."""
    if stage.was_set_aside:
        return cut(stage)
    stage.was_set_aside = True
    for_s, node = stage.world.dice.uniform(20.0, 40.0), stage.one()
    links = stage.world.dice.choice([[node.up], [node.down], [node.up, node.down]])
    ways = " and ".join("from" if link is node.up else "to" for link in links)
    stage.world.note(f"WireGuard {ways} {node.name} is dropped for {for_s:.1f} s")
    for link in links:
        link.scrubs_wireguard = True

    def undo() -> None:
        for link in links:
            link.scrubs_wireguard = False

    stage.after(for_s, "WireGuard passes again", undo)
    return Cost(for_s + 1.0, SCRUB_NOTICED_S[stage.both])


def rebind(stage: Stage) -> Cost:
    """A NAT box restarts: mappings are gone and ports are others."""
    node = stage.one()
    if not isinstance(node.segment, Lan):
        return cut(stage)
    stage.has_rebound = True
    stage.world.note(f"the router of {node.name} restarts")
    node.segment.router.nat.forget()
    return Cost(10.0, NOTICED_S)


def rebind_often(stage: Stage) -> Cost:
    """A NAT box that takes another port every 20 s."""
    node = stage.one()
    if not isinstance(node.segment, Lan):
        return cut(stage)
    stage.has_rebound = True
    router, times = node.segment.router, stage.world.dice.randint(2, 4)
    stage.world.note(f"the router of {node.name} rebinds {times} times, every 20 s")
    router.nat.forget()
    for n in range(1, times):
        stage.after(20.0 * n, f"the router of {node.name} rebinds", router.nat.forget)
    return Cost(20.0 * times, NOTICED_S)


def new_wan(stage: Stage) -> Cost:
    """A router gets another address from its provider."""
    node = stage.one()
    if not isinstance(node.segment, Lan):
        return cut(stage)
    router = node.segment.router
    last = int(str(router.wan).rsplit(".", 1)[1])
    stage.world.note(f"the router of {node.name} gets another address")
    router.move(str(router.wan).rsplit(".", 1)[0] + f".{100 + (last + 17) % 100}")
    return Cost(10.0, NOTICED_S)


def roam(stage: Stage) -> Cost:
    """A node goes somewhere else: another address, on the internet, seen at once."""
    node = stage.one()
    number = stage.world.dice.randint(2, 250)
    ips = [f"203.0.113.{number}"]
    if any(ip.version == 6 for ip in node.ips):
        ips = stage.world.dice.choice([[f"2001:db8:f::{number:x}"], [*ips, f"2001:db8:f::{number:x}"]])
    stage.world.note(f"{node.name} moves to {', '.join(ips)}")
    node.move(stage.world.internet, ips)
    return Cost(10.0, NOTICED_S)


def suspend(stage: Stage) -> Cost:
    """A machine sleeps."""
    node, for_s = stage.one(), stage.world.dice.uniform(5.0, 90.0)
    stage.world.note(f"{node.name} sleeps for {for_s:.1f} s")
    node.sleep(for_s)
    stage.after(for_s, f"{node.name} is awake", lambda: None)
    return Cost(for_s + NOTICED_S + SESSION_S, for_s + NOTICED_S + SESSION_S)


def unplug(stage: Stage) -> Cost:
    """A machine is off the network; its addresses stay."""
    node, for_s = stage.one(), stage.world.dice.uniform(1.0, 30.0)
    stage.world.note(f"{node.name} is unplugged for {for_s:.1f} s")
    node.is_online = False

    def undo() -> None:
        node.is_online = True

    stage.after(for_s, f"{node.name} is plugged in", undo)
    return Cost(for_s + NOTICED_S, for_s + NOTICED_S)


def relay_down(stage: Stage) -> Cost:
    """The relay's connections break."""
    for_s, region = stage.world.dice.uniform(1.0, 30.0), stage.world.regions[stage.one().home]
    stage.world.note(f"relay {region.id} is down for {for_s:.1f} s")
    region.become(Health.DOWN)
    stage.after(for_s, f"relay {region.id} is up", lambda: region.become(Health.UP))
    return Cost(for_s + NOTICED_S, for_s + NOTICED_S)


def relay_silent(stage: Stage) -> Cost:
    """The relay is stopped: connections stand and carry nothing."""
    for_s, region = stage.world.dice.uniform(5.0, 40.0), stage.world.regions[stage.one().home]
    stage.world.note(f"relay {region.id} is silent for {for_s:.1f} s")
    region.become(Health.SILENT)
    stage.after(for_s, f"relay {region.id} works again", lambda: region.become(Health.UP))
    longest = REHOMED_S if len(stage.world.regions) > 1 else for_s
    return Cost(for_s + NOTICED_S, longest + NOTICED_S)


def relay_flaps(stage: Stage) -> Cost:
    """The relay's connections break and stand again, every second."""
    region, times = stage.world.regions[stage.one().home], stage.world.dice.randint(2, 6)
    stage.world.note(f"relay {region.id} flaps {times} times")
    for n in range(times):
        stage.world.later(2.0 * n, lambda: region.become(Health.DOWN))
        stage.world.later(2.0 * n + 1.0, lambda: region.become(Health.UP))
    return Cost(2.0 * times + NOTICED_S, 1.2 + NOTICED_S)


def restart(stage: Stage) -> Cost:
    """A process starts anew, with another disco key."""
    node = stage.one()
    stage.world.note(f"{node.name} restarts")
    node.restart()
    return Cost(20.0, 2 * SESSION_S)


def bad_link(stage: Stage) -> Cost:
    """One node's link loses, delays, reorders and doubles."""
    dice, node = stage.world.dice, stage.one()
    for_s, link = dice.uniform(5.0, 30.0), dice.choice([node.up, node.down])
    before = (link.loss, link.jitter_s, link.reorder, link.duplicate)
    link.loss, link.jitter_s = dice.choice([0.0, 0.02, 0.1]), dice.choice([0.0, 0.01, 0.2])
    link.reorder, link.duplicate = dice.choice([0.0, 0.25]), dice.choice([0.0, 0.1])
    what = f"loss {link.loss}, jitter {link.jitter_s}, reorder {link.reorder}, duplicate {link.duplicate}"
    stage.world.note(f"a link of {node.name} is bad for {for_s:.1f} s: {what}")

    def undo() -> None:
        link.loss, link.jitter_s, link.reorder, link.duplicate = before

    stage.after(for_s, f"the link of {node.name} is good", undo)
    return Cost(for_s + 1.0, 1.5)


def mtu_hole(stage: Stage) -> Cost:
    """Full packets vanish on one node's link, without a word."""
    dice, node = stage.world.dice, stage.one()
    for_s, link = dice.uniform(5.0, 30.0), dice.choice([node.up, node.down])
    link.limit = dice.choice([1300, 1250, 1000])
    stage.was_set_aside |= link.limit < SIZES[-1]
    way = "from" if link is node.up else "to"
    stage.world.note(f"packets of more than {link.limit} bytes {way} {node.name} are dropped for {for_s:.1f} s")

    def undo() -> None:
        link.limit = 0

    stage.after(for_s, f"packets of every size pass {way} {node.name}", undo)
    return Cost(for_s + 1.0, NOTICED_S)


MISHAPS: Final = (
    cut, cut, cut_one_way, cut_one_way, scrub, rebind, rebind, rebind_often, new_wan, roam, suspend, unplug, relay_down,
    relay_silent, relay_flaps, restart, bad_link, mtu_hole,
)  # fmt: skip
"""As likely as they are listed often."""
