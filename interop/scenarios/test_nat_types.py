"""The routers of the NAT lab are what they say: mapping and filtering, with plain sockets and no node.

Whatever the matrix says of two nodes rests on this. Source: tests/lab/rules.py, docs/nat.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from interop.lab import Lab, LabError, missing_tools, until
from tests.lab import rules
from tests.lab.classify import ADDRESSES, Kind, ask, classify, extra_addresses, open_socket
from tests.lab.rules import Nat
from tests.lab.site import Families, Site, forget_flows

EXPECTED = {
    Nat.ONE_TO_ONE: Kind("EIM", "EIF", True),
    Nat.FULL_CONE: Kind("EIM", "EIF", True),
    Nat.ADDRESS_RESTRICTED: Kind("EIM", "ADF", True),
    Nat.PORT_RESTRICTED: Kind("EIM", "APDF", True),
    Nat.PORT_RESTRICTED_OPEN: Kind("EIM", "APDF", True),
    Nat.ADDRESS_DEPENDENT: Kind("ADM", "APDF"),
    Nat.SYMMETRIC: Kind("APDM", "APDF"),
    Nat.SYMMETRIC_BLOCK: Kind("APDM", "APDF"),
    Nat.UDP_BLOCKED: Kind("", ""),
    Nat.ONLY_UDP_53: Kind("", ""),
    Nat.ONLY_TCP_443: Kind("", ""),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if missing := missing_tools():
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"the NAT lab needs: {', '.join(missing)}")
    with Lab(tmp_path_factory.mktemp("nat")) as made, extra_addresses(made):
        yield made


@pytest.fixture
def sites(lab: Lab) -> Iterator[list[Site]]:
    """Sites to remove afterwards, the last one first."""
    made: list[Site] = []
    yield made
    for site in reversed(made):
        site.remove()


@pytest.mark.parametrize("nat", list(Nat), ids=lambda nat: nat.value)
def test_a_router_is_what_it_says(lab: Lab, sites: list[Site], nat: Nat) -> None:
    sites.append(Site(lab, "one", nat).build())
    assert classify(lab, sites[0].host("one")) == EXPECTED[nat]


@pytest.mark.parametrize(
    ("inner", "outer", "kind"),
    [
        (Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED, Kind("EIM", "APDF", True)),
        (Nat.FULL_CONE, Nat.PORT_RESTRICTED, Kind("EIM", "APDF", True)),
        (Nat.FULL_CONE, Nat.FULL_CONE, Kind("EIM", "EIF", True)),
        (Nat.PORT_RESTRICTED, Nat.SYMMETRIC, Kind("APDM", "APDF")),
        (Nat.SYMMETRIC, Nat.FULL_CONE, Kind("APDM", "APDF")),
    ],
    ids=lambda value: value.value if isinstance(value, Nat) else "",
)
def test_two_routers_are_as_hard_as_the_harder(lab: Lab, sites: list[Site], inner: Nat, outer: Nat, kind: Kind) -> None:
    sites.append(Site(lab, "outer", outer).build())
    sites.append(Site(lab, "inner", inner, behind=sites[0]).build())
    assert classify(lab, sites[1].host("one")) == kind


@pytest.mark.parametrize("hairpin", [False, True])
def test_hairpin(lab: Lab, sites: list[Site], hairpin: bool) -> None:
    """Two customers of a carrier reach each other at their public addresses only if its NAT turns them round."""
    sites.append(Site(lab, "carrier", Nat.FULL_CONE, hairpin=hairpin).build())
    for name in ("a", "b"):
        sites.append(Site(lab, name, Nat.FULL_CONE, behind=sites[0]).build())
    with closing(open_socket(lab.hub, ADDRESSES[0], 19000)) as server:
        with (
            closing(open_socket(sites[1].host("a"), port=3001)) as a,
            closing(open_socket(sites[2].host("b"), port=3002)) as b,
        ):
            seen = [ask(client, server) for client in (a, b)]
            assert seen == [(sites[0].wan, 3001), (sites[0].wan, 3002)]
            a.sendto(b"by the public address", (sites[0].wan, 3002))
            b.settimeout(5.0 if hairpin else 0.3)
            if not hairpin:
                with pytest.raises(TimeoutError):
                    b.recvfrom(100)
                return
            assert b.recvfrom(100) == (b"by the public address", seen[0])


def _asked(server: socket.socket, client: socket.socket) -> int:
    seen = ask(client, server, tries=3)
    assert seen is not None
    return int(seen[1])


def test_a_mapping_that_is_not_used_is_forgotten(lab: Lab, sites: list[Site]) -> None:
    sites.append(Site(lab, "one", Nat.SYMMETRIC, udp_timeout_s=1).build())
    with (
        closing(open_socket(lab.hub, ADDRESSES[0], 19001)) as server,
        closing(open_socket(sites[0].host("one"))) as client,
    ):
        first = _asked(server, client)
        until(lambda: _asked(server, client) != first, 15.0, "another mapping", interval_s=2.5)


def test_rebinding_moves_every_mapping(lab: Lab, sites: list[Site]) -> None:
    sites.append(Site(lab, "one", Nat.PORT_RESTRICTED).build())
    with (
        closing(open_socket(lab.hub, ADDRESSES[0], 19002)) as server,
        closing(open_socket(sites[0].host("one"))) as client,
    ):
        ports = [_asked(server, client)]
        for _ in range(4):
            sites[0].rebind()
            ports.append(_asked(server, client))
            assert _asked(server, client) == ports[-1], "and stays until the next time"
        assert len(set(ports)) == 5
    assert classify(lab, sites[0].hosts[0]) == Kind("EIM", "APDF")


def test_forgotten_flows_keep_strangers_out(lab: Lab, sites: list[Site]) -> None:
    sites.append(Site(lab, "one", Nat.PORT_RESTRICTED).build())
    with (
        closing(open_socket(lab.hub, ADDRESSES[0], 19003)) as server,
        closing(open_socket(sites[0].host("one"))) as client,
    ):
        seen = ask(client, server)
        assert seen is not None
        forget_flows(sites[0].router)
        server.sendto(b"late", seen)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recvfrom(100)
        assert ask(client, server) == seen


@pytest.mark.parametrize(("way", "asks", "answers"), [(rules.OUT, False, True), (rules.IN, True, False)])
def test_one_way_cuts(lab: Lab, sites: list[Site], way: str, asks: bool, answers: bool) -> None:
    sites.append(Site(lab, "one", Nat.PORT_RESTRICTED).build())
    with (
        closing(open_socket(lab.hub, ADDRESSES[0], 19004)) as server,
        closing(open_socket(sites[0].host("one"))) as client,
    ):
        seen = ask(client, server)
        assert seen is not None
        server.settimeout(0.3 if not asks else 5.0)
        client.settimeout(0.3 if not answers else 5.0)
        sites[0].cut_udp(way)
        assert (ask(client, server) is not None) == asks
        server.sendto(b"answer", seen)
        assert _hears(client) == answers
        sites[0].heal_udp()
        server.settimeout(5.0)
        assert ask(client, server) == seen


def _hears(client: socket.socket) -> bool:
    try:
        return bool(client.recvfrom(2000)[0])
    except TimeoutError:
        return False


def test_scrubbing_takes_wireguard_data_only(lab: Lab, sites: list[Site]) -> None:
    sites.append(Site(lab, "one", Nat.PORT_RESTRICTED).build())
    sites[0].scrub()
    with (
        closing(open_socket(lab.hub, ADDRESSES[0], 19005)) as server,
        closing(open_socket(sites[0].host("one"))) as client,
    ):
        for kind in (b"\x01\0\0\0", b"\x04\0\0\0", b"TS\xf0\x9f"):
            client.sendto(kind.ljust(148, b"x"), server.getsockname())
        assert [server.recvfrom(200)[0][:4] for _ in range(2)] == [b"\x01\0\0\0", b"TS\xf0\x9f"]


def test_a_hole_swallows_what_is_larger(lab: Lab, sites: list[Site]) -> None:
    sites.append(Site(lab, "one", Nat.PORT_RESTRICTED).build())
    host = sites[0].host("one")
    sites[0].hole(1280)
    with closing(open_socket(lab.hub, ADDRESSES[0], 19006)) as server, closing(open_socket(host)) as client:
        for size in (1281, 1280):
            client.sendto(bytes(size - 28), server.getsockname())
        assert len(server.recvfrom(2000)[0]) == 1280 - 28


def test_only_port_53_passes(lab: Lab, sites: list[Site]) -> None:
    sites.append(Site(lab, "one", Nat.ONLY_UDP_53).build())
    with (
        closing(open_socket(lab.hub, ADDRESSES[0], 53)) as server,
        closing(open_socket(sites[0].host("one"))) as client,
    ):
        seen = ask(client, server)
        assert seen is not None
        server.sendto(b"answer", seen)
        assert _hears(client)


def test_a_line_through_the_impairment_box(lab: Lab, sites: list[Site]) -> None:
    """NAT, delay, and a cut one way, drawn by the box instead of the router."""
    sites.append(Site(lab, "one", Nat.PORT_RESTRICTED, impaired=True).build())
    host, link = sites[0].host("one"), sites[0].link
    assert link is not None
    assert classify(lab, host) == EXPECTED[Nat.PORT_RESTRICTED]
    with closing(open_socket(lab.hub, ADDRESSES[0], 19007)) as server, closing(open_socket(host)) as client:
        link.set(**{"a.loss": 1.0})
        server.settimeout(0.3)
        assert ask(client, server) is None
        link.set(**{"a.loss": 0.0})
        server.settimeout(5.0)
        seen = ask(client, server)
        assert seen is not None and seen[0] == sites[0].wan


def test_roaming_changes_the_family(lab: Lab, sites: list[Site]) -> None:
    """A host unplugged from one LAN and plugged into another has the addresses of that one."""
    sites.append(Site(lab, "old", Nat.PORT_RESTRICTED).build())
    sites.append(Site(lab, "six", Nat.PORT_RESTRICTED, families=Families(v4=False, v6=True)).build())
    host = sites[0].host("one")
    host.run("ping", "-c", "1", "-W", "5", lab.hub.v4)
    sites[0].unplug(host)
    sites[1].plug(host)
    assert not host.v4
    host.run("ping", "-6", "-c", "1", "-W", "5", lab.hub.v6)
    with pytest.raises(LabError, match="unreachable"):
        host.run("ping", "-c", "1", "-W", "1", lab.hub.v4)
