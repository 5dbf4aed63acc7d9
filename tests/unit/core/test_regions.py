"""By which region a peer is reached, when regions are down or say that it is not there."""

from __future__ import annotations

from meshnode.base.addr import RegionId
from meshnode.core.regions import GONE_MAX, GONE_S, Regions

HOME, ROUTE, OURS = RegionId(1), RegionId(2), RegionId(3)


def chosen(regions: Regions, *down: RegionId, own: RegionId = OURS, now: float = 0.0) -> RegionId:
    return regions.choose(lambda region: region not in down, own, now)


def peer() -> Regions:
    regions = Regions()
    regions.note_home(HOME)
    regions.note_heard(ROUTE)
    return regions


def test_home_first_then_the_route_then_our_own_home() -> None:
    regions = peer()
    assert chosen(regions) == HOME
    assert chosen(regions, HOME) == ROUTE
    assert chosen(regions, HOME, ROUTE) == OURS
    assert chosen(regions, HOME, ROUTE, OURS) == HOME, "none is up: its home's connection is being tried"


def test_a_peer_nobody_knows_a_region_of_is_not_looked_for_at_ours() -> None:
    assert chosen(Regions()) == 0
    heard = Regions()
    heard.note_heard(ROUTE)
    assert chosen(heard) == ROUTE


def test_a_relay_that_does_not_know_the_peer_is_believed_for_a_while() -> None:
    regions = peer()
    regions.note_gone(HOME, 0.0)
    assert chosen(regions) == ROUTE and chosen(regions, now=GONE_S) == HOME
    regions.note_gone(ROUTE, 0.0)
    assert regions.route == 0 and chosen(regions) == OURS
    regions.note_gone(OURS, 0.0)
    assert chosen(regions) == HOME, "nowhere to be found: no use in going round in circles"
    assert chosen(regions, HOME) == OURS, "it may come; its home is dead to us"
    assert all(regions.is_gone(region, 1.0) for region in (HOME, ROUTE, OURS))


def test_what_is_heard_and_what_control_says_is_newer() -> None:
    regions = peer()
    regions.note_gone(HOME, 0.0)
    regions.note_heard(HOME)
    assert chosen(regions) == HOME
    regions.note_gone(HOME, 0.0)
    regions.note_home(HOME)
    assert chosen(regions) == OURS, "the same again is no news"
    regions.note_gone(OURS, 0.0)
    regions.note_home(OURS)
    assert chosen(regions) == OURS


def test_what_is_remembered_is_bounded() -> None:
    regions = peer()
    for number in range(100):
        regions.note_gone(RegionId(10 + number), 0.0)
    assert len(regions._gone_until) == GONE_MAX
