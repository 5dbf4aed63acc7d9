"""Two nodes of ours behind routers of every kind: direct where that is possible, relayed and saying why where not.

A diagonal of the matrix that `python -m tests.lab.matrix` measures whole, and what has no cell there: one LAN without
hairpin, two customers of one carrier, IPv6 alone. Source: docs/nat.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from interop.lab import Lab
from tests.lab.cell import Cell, Outcome, first_packet
from tests.lab.expect import is_direct
from tests.lab.inet import PUBLIC, Inet, Node, start_inet
from tests.lab.rules import Nat
from tests.lab.site import Families, Site

PATIENCE_S = 25.0
"""Until a direct path; a loaded machine needs longer than the 5 s that are measured elsewhere."""
HARD_S = 9.0
"""How long a pair that cannot meet is watched: all rounds of probing."""

PAIRS = [
    (Nat.ONE_TO_ONE, Nat.PORT_RESTRICTED),
    (Nat.FULL_CONE, Nat.SYMMETRIC),
    (Nat.ADDRESS_RESTRICTED, Nat.ADDRESS_DEPENDENT),
    (Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED),
    (Nat.PORT_RESTRICTED, Nat.SYMMETRIC),
    (Nat.SYMMETRIC, Nat.SYMMETRIC),
    (Nat.PORT_RESTRICTED, Nat.UDP_BLOCKED),
]


@pytest.fixture(scope="module")
def inet(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inet]:
    with Lab(tmp_path_factory.mktemp("pairs"), PUBLIC) as lab:
        yield start_inet(lab)


def test_every_pair_meets_or_says_why_not(inet: Inet) -> None:
    """Cells side by side: each spends most of its time waiting."""

    def work(pair: tuple[Nat, Nat]) -> Outcome:
        with Cell(inet, *pair, patience_s=PATIENCE_S if is_direct(*pair) else HARD_S) as cell:
            return cell.round("ours")

    with ThreadPoolExecutor(3) as pool:
        outcomes = dict(zip(PAIRS, pool.map(work, PAIRS), strict=True))
    for pair, outcome in outcomes.items():
        assert outcome.way == ("direct" if is_direct(*pair) else "relay"), (pair, outcome)
        if outcome.way == "relay":
            assert len(outcome.reasons) == 2 and all("because" in reason for reason in outcome.reasons), (pair, outcome)


@pytest.fixture
def stack(inet: Inet) -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def build(stack: ExitStack, site: Site) -> Site:
    stack.callback(site.remove)
    return site.build()


def start(inet: Inet, stack: ExitStack, *places: tuple[Site, str]) -> list[Node]:
    nodes = []
    for site, name in places:
        nodes.append(inet.node("ours", site.host(name)))
        stack.callback(inet.forget, nodes[-1])
    inet.settle(nodes[0], nodes[1], {})
    return nodes


def address_between(here: Node, there: Node) -> str:
    assert first_packet(here, there, PATIENCE_S).way == "direct"
    peer = here.peer(there)
    assert peer is not None
    return str(peer["CurAddr"])


def test_one_lan_without_hairpin(inet: Inet, stack: ExitStack) -> None:
    """Their public addresses are of no use to each other: they meet at those of the LAN."""
    site = build(stack, Site(inet.lab, "home", Nat.PORT_RESTRICTED))
    here, there = start(inet, stack, (site, "desk"), (site, "sofa"))
    assert address_between(here, there).rpartition(":")[0] == there.host.v4


def test_two_customers_of_a_carrier_that_turns_them_round(inet: Inet, stack: ExitStack) -> None:
    carrier = build(stack, Site(inet.lab, "carrier", Nat.FULL_CONE, hairpin=True))
    sites = [build(stack, Site(inet.lab, name, Nat.PORT_RESTRICTED, behind=carrier)) for name in ("left", "right")]
    here, there = start(inet, stack, (sites[0], "one"), (sites[1], "two"))
    assert address_between(here, there).rpartition(":")[0] in (carrier.wan, sites[1].wan)


def test_ipv6_alone(inet: Inet, stack: ExitStack) -> None:
    """Neither node has IPv4; a firewall on each side lets in answers only."""
    six = Families(v4=False, v6=True)
    sites = [build(stack, Site(inet.lab, name, Nat.PORT_RESTRICTED, families=six)) for name in ("six", "vi")]
    here, there = start(inet, stack, (sites[0], "hex"), (sites[1], "sechs"))
    assert address_between(here, there).startswith(f"[{there.host.v6}]")
