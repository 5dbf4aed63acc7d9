"""One sentence for each way a path can stand, the proved cause first."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core.explain import Ours, Theirs, explain
from meshnode.core.path_values import CandidateStatus, Mode, PathStatus, State
from meshnode.core.report import Nat, NetReport
from meshnode.core.score import Kind

NOW = Seconds(100.0)
SEEN = NetReport(at=Seconds(90.0), udp=True, stun_sent=4)
DEAF = NetReport(at=Seconds(90.0), udp=False, stun_sent=4)


def candidate(text: str, pong_at: float | None = None, *, is_bad: bool = False) -> CandidateStatus:
    endpoint = Endpoint(ip_address(text), 41641)
    latency = 0.012 if pong_at is not None else None
    return CandidateStatus(
        endpoint, Kind.NETMAP, latency, Seconds(pong_at) if pong_at is not None else None, 0.0, is_bad
    )


def path(
    state: State = State.RELAY_ONLY, *candidates: CandidateStatus, is_up: bool = True, region: int = 1
) -> PathStatus:
    act = candidates[0].endpoint if state is State.DIRECT else None
    nothing = (Mode.RELAY, (), candidates, 30, 0, ())
    took = 0.012 if act else None
    return PathStatus(state, Seconds(97.5), "no traffic yet", act, took, RegionId(region), is_up, *nothing)


OURS = Ours(SEEN, Nat.EASY)
THEIRS = Theirs(relay="lab")
PUBLIC, PRIVATE, V6 = candidate("192.0.2.1"), candidate("10.0.0.1"), candidate("2001:db8::1")


@pytest.mark.parametrize(
    ("found", "ours", "theirs", "sentence"),
    [
        (path(State.UNKNOWN), OURS, THEIRS, 'idle, no traffic yet; by relay "lab" as soon as there is some'),
        (path(State.UNKNOWN, region=0), OURS, Theirs(), "idle, no traffic yet"),
        (path(State.PROBING), OURS, THEIRS,
         'looking for a direct path for 2.5 s; packets go by relay "lab" meanwhile'),
        (path(State.DIRECT, PUBLIC), OURS, THEIRS, "directly: 192.0.2.1:41641 answers in 12.0 ms"),
        (path(State.DIRECT, PRIVATE), OURS, THEIRS, "on the same network: 10.0.0.1:41641 answers in 12.0 ms"),
        (path(State.RELAY_ONLY, PUBLIC), replace(OURS, relays_only=True), THEIRS,
         'by relay "lab", because this node is set to use relays only'),
        (path(State.RELAY_ONLY, PUBLIC), Ours(DEAF, Nat.UNKNOWN), THEIRS,
         "by relay \"lab\", because no UDP leaves this machine's network: no STUN server answered"),
        (path(State.RELAY_ONLY, PUBLIC), OURS, replace(THEIRS, has_udp=False),
         'by relay "lab", because no UDP leaves its network, as it says'),
        (path(), OURS, THEIRS, 'by relay "lab", because it has told us no address to try'),
        (path(State.RELAY_ONLY, V6), replace(OURS, has_v6=False), THEIRS,
         'by relay "lab", because it has only IPv6 addresses, and this machine none'),
        (path(State.RELAY_ONLY, PUBLIC), replace(OURS, nat=Nat.HARD), replace(THEIRS, is_hard=True),
         'by relay "lab", because both its NAT and ours give each destination another port'),
        (path(State.RELAY_ONLY, PUBLIC), replace(OURS, nat=Nat.HARD), THEIRS,
         'by relay "lab", because our NAT gives each destination another port, and its side lets in nobody it has not '
         "sent to"),
        (path(State.RELAY_ONLY, PUBLIC), OURS, replace(THEIRS, is_hard=True),
         'by relay "lab", because its NAT gives each destination another port, and our side lets in nobody we have not '
         "sent to"),
        (path(State.RELAY_ONLY, PRIVATE), OURS, THEIRS,
         'by relay "lab", because it knows only private addresses of itself, and its address did not answer 30 pings'),
        (path(State.RELAY_ONLY, PUBLIC, PRIVATE), OURS, THEIRS,
         'by relay "lab", because its 2 addresses did not answer 30 pings: a firewall or NAT on either side drops '
         "them"),
        (path(State.RELAY_ONLY, candidate("192.0.2.1", 50.0)), OURS, THEIRS,
         'by relay "lab", because its address stopped answering'),
        (path(State.RELAY_ONLY, candidate("192.0.2.1", 50.0, is_bad=True)), OURS, THEIRS,
         'by relay "lab", because its address answered probes but carried no data: something on the way drops '
         "WireGuard or large packets"),
        (path(State.RELAY_ONLY, PUBLIC, region=0), OURS, Theirs(),
         "not reached at all: its address did not answer 30 pings: a firewall or NAT on either side drops them, and "
         "it has no relay"),
        (path(State.RELAY_ONLY, PUBLIC, is_up=False), OURS, THEIRS,
         "not reached at all: its address did not answer 30 pings: a firewall or NAT on either side drops them, and "
         "its relay does not have it"),
    ],
)  # fmt: skip
def test_the_sentence(found: PathStatus, ours: Ours, theirs: Theirs, sentence: str) -> None:
    assert explain(found, ours, theirs, NOW) == sentence


def test_a_peer_relay_is_named_with_its_cause() -> None:
    leg = replace(candidate("192.0.2.9"), endpoint=Endpoint(ip_address("192.0.2.9"), 40000, 7), kind=Kind.RELAYED)
    found = path(State.DIRECT, leg, PUBLIC)
    assert explain(found, replace(OURS, nat=Nat.HARD), replace(THEIRS, is_hard=True), NOW) == (
        "by peer relay, because both its NAT and ours give each destination another port"
    )
