"""NetInfo: what control is told of the network, and how rarely that changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.units import Seconds
from meshnode.core.net_info import NetInfo
from meshnode.core.report import NetReport, RegionReading

INSTANTS = count(1)


def report(varies: bool | None = False, udp: bool = True, ms: float = 12.3456, **fields: bool | None) -> NetReport:
    regions = {RegionId(900): RegionReading(v4_s=ms / 1000), RegionId(7): RegionReading(v6_s=0.1, https_s=0.2)}
    return NetReport(
        at=Seconds(next(INSTANTS)), udp=udp, stun_sent=2, ipv4=udp, os_has_ipv6=True, mapping_varies=varies,
        regions=regions, **fields,
    )  # fmt: skip


def test_the_first_report_is_told_whole_and_what_is_not_known_is_left_out() -> None:
    told = NetInfo().learn(report(None, pmp=True))
    assert told == {
        "WorkingIPv6": False, "OSHasIPv6": True, "WorkingUDP": True, "PMP": True, "HavePortMap": False,
        "DERPLatency": {"7-v4": 0.2, "7-v6": 0.1, "900-v4": 0.012},
    }  # fmt: skip


def test_one_report_that_differs_is_no_news_two_are() -> None:
    info = NetInfo()
    info.learn(report(False))
    assert info.learn(report(True))["MappingVariesByDestIP"] is False
    assert info.learn(report(False))["MappingVariesByDestIP"] is False
    assert info.learn(report(True))["MappingVariesByDestIP"] is False
    assert info.learn(report(True))["MappingVariesByDestIP"] is True


def test_a_report_shown_twice_confirms_nothing() -> None:
    info = NetInfo()
    info.learn(report(False))
    odd = report(True)
    for _ in range(3):
        assert info.learn(odd)["MappingVariesByDestIP"] is False
    assert info.learn(replace(odd, pmp=True))["PMP"] is True, "what is known for the first time is told"
    assert info.learn(report(True))["MappingVariesByDestIP"] is True


def test_not_knowing_takes_nothing_back() -> None:
    info = NetInfo()
    info.learn(report(True))
    for _ in range(3):
        assert info.learn(report(None))["MappingVariesByDestIP"] is True


def test_that_no_gateway_maps_ports_is_not_worth_a_message_but_that_one_ceased_is() -> None:
    info = NetInfo()
    first = info.learn(report())
    assert info.learn(report(upnp=False, pmp=False, pcp=False)) == first
    assert info.learn(report(upnp=True))["UPnP"] is True
    info.learn(report(upnp=False))
    assert info.learn(report(upnp=False))["UPnP"] is False


def test_udp_is_said_to_work_or_not_only_if_it_was_tried() -> None:
    assert "WorkingUDP" not in NetInfo().learn(NetReport())
    assert NetInfo().learn(report(udp=False))["WorkingUDP"] is False


def test_another_network_is_believed_at_once() -> None:
    info = NetInfo()
    info.learn(report(False))
    old = report(False)
    info.learn(old)
    info.note_link_change()
    assert info.learn(old)["MappingVariesByDestIP"] is False, "of the network before"
    assert info.learn(report(True))["MappingVariesByDestIP"] is True


def test_a_port_mapping_is_told_at_once() -> None:
    info = NetInfo()
    info.learn(report())
    assert info.learn(report(), Endpoint.parse("203.0.113.5:9"))["HavePortMap"] is True
    assert info.learn(report())["HavePortMap"] is False
