"""Captive portals: who is asked, and what each answer says."""

from __future__ import annotations

import pytest

from meshnode.base.addr import RegionId
from meshnode.core.captive import CHALLENGE_MAX, Target, control_target, judge, relay_targets, sum_up
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion

RELAY = Target("derp.example", "192.0.2.1")
CONTROL = Target("hs.example", "hs.example", is_relay=False)
PROOF = {"x-tailscale-response": "response ts_derp.example"}


@pytest.mark.parametrize(
    ("status", "headers", "verdict"),
    [
        (204, PROOF, False),
        (204, {}, True),
        (204, {"x-tailscale-response": "response ts_other"}, True),
        (200, PROOF, True),
        (302, {"location": "http://login/"}, True),
        (511, {}, True),
    ],
)
def test_a_relay_proves_itself(status: int, headers: dict[str, str], verdict: bool) -> None:
    assert judge(RELAY, status, headers) is verdict


@pytest.mark.parametrize(
    ("status", "location", "verdict"),
    [
        (204, "", False),
        (302, "http://login.portal/", True),
        (307, "//login.portal/x", True),
        (301, "https://hs.example/generate_204", False),
        (301, "https://HS.example:443/", False),
        (302, "/web", False),
        (302, "http://[broken", None),
        (511, "", True),
        (200, "", None),
        (404, "", None),
        (500, "", None),
    ],
)
def test_a_control_server_is_only_doubted_for_good_reason(status: int, location: str, verdict: bool | None) -> None:
    assert judge(CONTROL, status, {"location": location} if location else {}) is verdict


def test_the_challenge_is_what_a_relay_will_repeat() -> None:
    assert RELAY.challenge == "ts_derp.example"
    assert Target("fd77::1", "fd77::1").challenge == "ts_fd77::1"
    assert Target("ü b;c" + "x" * 99, "192.0.2.1").challenge == ("ts_bc" + "x" * 99)[:CHALLENGE_MAX]


def node(name: str, region: int, ipv4: str, can: bool = True) -> RelayNode:
    return RelayNode(name, RegionId(region), f"{name}.example", ipv4=ipv4, can_port80=can)


def test_the_nearest_relays_that_serve_the_check_are_asked_and_few() -> None:
    regions = {
        RegionId(number): RelayRegion(RegionId(number), f"r{number}", f"r{number}", nodes)
        for number, nodes in {
            1: (node("1a", 1, "192.0.2.1"),),
            2: (node("2a", 2, "", True), node("2b", 2, "none"), node("2c", 2, "192.0.2.3", can=False)),
            3: (node("3a", 3, "192.0.2.4"), node("3b", 3, "192.0.2.5")),
            **{many: (node(f"{many}a", many, "192.0.2.9"),) for many in range(4, 20)},
        }.items()
    }
    found = relay_targets(RelayMap(regions), [RegionId(3), RegionId(77), RegionId(1)])
    assert [t.host for t in found] == ["3a.example", "3b.example", "1a.example", "4a.example", "5a.example"]
    assert found[0].address == "192.0.2.4" and found[0].port == 80


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://hs.example:8443", ("hs.example", 80)),
        ("http://hs.example:8080", ("hs.example", 8080)),
        ("http://hs.example", ("hs.example", 80)),
        ("http://127.0.0.1:8080", None),
        ("https://localhost", None),
        ("https://[::1]", None),
    ],
)
def test_the_control_server_is_asked_by_plain_http(url: str, where: tuple[str, int] | None) -> None:
    target = control_target(url)
    assert (target and (target.address, target.port)) == where


def test_one_portal_outweighs_the_rest_and_silence_is_no_verdict() -> None:
    assert sum_up([]) == (None, "") == sum_up([(RELAY, None)])
    assert sum_up([(RELAY, False), (CONTROL, None)]) == (False, "")
    verdict, text = sum_up([(RELAY, False), (CONTROL, True)])
    assert verdict and text.startswith("a captive portal at this network answers for the control server: open")
    assert "for the relays" in sum_up([(RELAY, True)])[1]
