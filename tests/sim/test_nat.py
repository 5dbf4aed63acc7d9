"""The NAT box: it is what it says it is, or a matrix of boxes would prove nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshnode.base.addr import Endpoint
from tests.sim.nat import (
    ADDRESS_DEPENDENT,
    FULL_CONE,
    KINDS,
    PORT_RESTRICTED,
    PORT_RESTRICTED_OPEN,
    SYMMETRIC,
    UNREPLIED_S,
    Allocation,
    Depends,
    Firewall,
    Nat,
    NatKind,
)


def at(ip: str, port: int) -> Endpoint:
    return Endpoint(ip_address(ip), port)


INNER, OTHER = at("192.168.1.2", 41641), at("192.168.1.3", 41641)
FAR, FAR_PORT, ELSEWHERE = at("203.0.113.1", 1000), at("203.0.113.1", 1001), at("203.0.113.2", 1000)


def box(kind: NatKind, seed: int = 1) -> Nat:
    nat = Nat(kind, random.Random(seed))
    nat.exposed = INNER.ip
    return nat


@pytest.mark.parametrize("name", [n for n in KINDS if n != "1:1"])
def test_mapping_and_filtering_are_those_of_the_kind(name: str) -> None:
    kind, nat = KINDS[name], box(KINDS[name])
    first, port, host = (nat.outbound(INNER, far, 0.0) for far in (FAR, FAR_PORT, ELSEWHERE))
    assert (port == first) == (kind.mapping < Depends.ADDRESS_AND_PORT)
    assert (host == first) == (kind.mapping is Depends.NOTHING)
    nat = box(kind)
    first = nat.outbound(INNER, FAR, 0.0)
    assert nat.inbound(FAR, first, 1.0) == INNER
    assert (nat.inbound(FAR_PORT, first, 1.0) == INNER) == (kind.filtering < Depends.ADDRESS_AND_PORT)
    assert (nat.inbound(ELSEWHERE, first, 1.0) == INNER) == (kind.filtering is Depends.NOTHING)


def test_one_to_one_lets_everything_in_at_once() -> None:
    assert box(KINDS["1:1"]).inbound(FAR, 41641, 0.0) == INNER


def test_two_hosts_with_one_port_get_two() -> None:
    nat = box(PORT_RESTRICTED)
    assert nat.outbound(INNER, FAR, 0.0) == INNER.port
    second = nat.outbound(OTHER, FAR, 0.0)
    assert second != INNER.port and nat.outbound(OTHER, ELSEWHERE, 0.0) == second


def test_a_stranger_who_is_first_moves_the_mapping_of_an_open_router_only() -> None:
    for kind, moves in ((PORT_RESTRICTED, False), (PORT_RESTRICTED_OPEN, True)):
        nat = box(kind)
        port = nat.outbound(INNER, ELSEWHERE, 0.0)
        assert nat.inbound(FAR, port, 1.0) is None
        moved = nat.outbound(INNER, FAR, 2.0)
        assert (moved != port) == moves
        assert nat.inbound(FAR, moved, 3.0) == INNER
        assert nat.outbound(INNER, ELSEWHERE, 3.0) == port
        later = 3.0 + UNREPLIED_S
        assert nat.outbound(INNER, at("203.0.113.9", 9), later) == port


def test_mappings_are_forgotten_and_kept_alive_as_the_kind_says() -> None:
    for refreshes in (True, False):
        nat = box(replace(FULL_CONE, timeout_s=10.0, refreshes_inbound=refreshes))
        port = nat.outbound(INNER, FAR, 0.0)
        assert nat.inbound(FAR, port, 9.0) == INNER
        assert (nat.inbound(FAR, port, 15.0) == INNER) == refreshes
        assert nat.inbound(FAR, port, 30.0) is None


@pytest.mark.parametrize("rule", list(Allocation))
def test_ports_are_chosen_by_the_rule(rule: Allocation) -> None:
    nat = box(replace(SYMMETRIC, allocation=rule, ports=(40000, 40999)))
    ports = [nat.outbound(INNER, at("203.0.113.1", n), 0.0) for n in range(50)]
    assert len(set(ports)) == 50 and all(40000 <= p <= 40999 for p in ports)
    steps = {(b - a) % 1000 for a, b in zip(ports, ports[1:], strict=False)}
    assert (steps == {1}) == (rule is Allocation.SEQUENTIAL)
    if rule is Allocation.PARITY:
        assert all(p % 2 == INNER.port % 2 for p in ports)
    assert (box(replace(SYMMETRIC, allocation=rule)).outbound(INNER, FAR, 0.0) == INNER.port) == (
        rule is Allocation.PRESERVE
    )


def test_a_box_that_restarts_knows_nobody() -> None:
    nat = box(ADDRESS_DEPENDENT)
    port = nat.outbound(INNER, FAR, 0.0)
    nat.forget()
    assert nat.inbound(FAR, port, 0.1) is None
    nat = box(PORT_RESTRICTED)
    nat.forget()
    assert nat.outbound(INNER, FAR, 0.0) != INNER.port


def test_a_firewall_lets_answers_in() -> None:
    wall = Firewall(timeout_s=30.0)
    assert not wall.inbound(FAR, INNER, 0.0)
    wall.outbound(INNER, FAR, 0.0)
    assert wall.inbound(FAR, INNER, 29.0) and not wall.inbound(FAR_PORT, INNER, 29.0)
    assert wall.inbound(FAR, INNER, 58.0) and not wall.inbound(FAR, INNER, 89.0)
