"""Mapper: which protocol is tried when, what a lease goes through, and what a gateway's restart does."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.addr import Endpoint
from meshnode.base.units import Seconds
from meshnode.core.portmap import ALL, Mapper
from meshnode.core.portmap_values import Answer, Effect, Fetch, Gateway, Mapped, Presence, Protocol, Search, Send
from meshnode.wire import natpmp, pcp
from meshnode.wire.ssdp import Found

GATEWAY = Gateway(IPv4Address("192.168.50.1"), IPv4Address("192.168.50.2"), "eth0")
PORT = 41641
WAN = "11.77.0.2"
NONCE = bytes(range(1, 13))
ASK_EXTERNAL = Send(b"\0\0")
ASK_MAP = Send(natpmp.emit_map_request(PORT, PORT, 7200))
ANNOUNCE = Send(pcp.emit_announce(GATEWAY.client))
PCP_MAP = Send(pcp.emit_map_request(GATEWAY.client, NONCE, PORT, PORT, 7200))
PCP_RENEW = Send(pcp.emit_map_request(GATEWAY.client, NONCE, PORT, 50000, 7200))
ALL_AT_ONCE = [ASK_EXTERNAL, ASK_MAP, ANNOUNCE, Search()]
FOUND = Found("http://192.168.50.1:5000/root.xml", "upnp:rootdevice")


def mapped(port: int = PORT, ip: str = WAN) -> Mapped:
    return Mapped(Endpoint(IPv4Address(ip), port))


def external(epoch: int, ip: str = WAN) -> bytes:
    return bytes((0, 0x80, 0, 0)) + epoch.to_bytes(4, "big") + IPv4Address(ip).packed


def granted(epoch: int, port: int = PORT, lifetime: int = 7200, internal: int = PORT) -> bytes:
    ports = internal.to_bytes(2, "big") + port.to_bytes(2, "big")
    return bytes((0, 0x81, 0, 0)) + epoch.to_bytes(4, "big") + ports + lifetime.to_bytes(4, "big")


def pmp_refusal(result: int, epoch: int = 0) -> bytes:
    return b"\0\x81" + result.to_bytes(2, "big") + epoch.to_bytes(4, "big")


def pcp_reply(epoch: int, kind: int, result: int = 0, lifetime: int = 7200, body: bytes = b"") -> bytes:
    head = bytes((2, 0x80 | kind, 0, result)) + lifetime.to_bytes(4, "big") + epoch.to_bytes(4, "big")
    return head + bytes(12) + body


def pcp_granted(epoch: int, nonce: bytes = NONCE, port: int = 50000, lifetime: int = 7200, ip: str = WAN) -> bytes:
    ports = PORT.to_bytes(2, "big") + port.to_bytes(2, "big")
    return pcp_reply(
        epoch, 1, 0, lifetime, nonce + b"\x11\0\0\0" + ports + bytes(10) + b"\xff\xff" + IPv4Address(ip).packed
    )


class Bench:
    """A mapper, its clock, and what it wanted done."""

    def __init__(self, allowed: frozenset[Protocol] = ALL) -> None:
        self.now = 1000.0
        self.mapper = Mapper(
            GATEWAY, PORT, Seconds(self.now), entropy=lambda n: bytes(range(1, n + 1)), allowed=allowed
        )

    def due(self) -> list[Effect]:
        """Let time pass until the deadline."""
        assert self.mapper.deadline < float("inf")
        self.now = max(self.now, self.mapper.deadline)
        return self.mapper.on_due(Seconds(self.now))

    def hear(self, data: bytes, after_s: float = 0.01) -> list[Effect]:
        self.now += after_s
        return self.mapper.on_datagram(data, Seconds(self.now))

    def map_by_pmp(self, epoch: int = 100, lifetime: int = 7200) -> None:
        self.due()
        assert self.hear(external(epoch)) == []
        assert self.hear(granted(epoch, lifetime=lifetime)) == [mapped()]


def test_everything_is_asked_at_once_and_pmp_is_complete_with_both_answers() -> None:
    bench = Bench()
    assert bench.due() == ALL_AT_ONCE
    assert bench.hear(granted(100)) == []
    assert bench.hear(external(100)) == [mapped()]
    lease = bench.mapper.lease
    assert lease is not None and lease.protocol is Protocol.PMP
    assert (lease.renew_at - bench.now, lease.until - bench.now) == pytest.approx((3600, 7200))


def test_a_silent_gateway_costs_a_quarter_second_per_protocol_then_waits_longer_and_longer() -> None:
    bench = Bench()
    bench.due()
    assert bench.mapper.deadline - bench.now == 0.25
    assert bench.due() == [] and bench.mapper.lease is None
    assert bench.due() == [] and bench.now == 1002.5, "the search may take two seconds, in the background"
    waits = []
    for _ in range(5):
        waits.append(bench.mapper.deadline - bench.now)
        assert bench.due() == ALL_AT_ONCE
        bench.due(), bench.due()
    assert waits == [5.0, 30.0, 120.0, 600.0, 600.0]
    assert bench.mapper.presence() == Presence(upnp=False, pmp=False, pcp=False)
    assert "speaks none of" in bench.mapper.reason


def test_pcp_where_pmp_is_silent() -> None:
    bench = Bench()
    bench.due()
    assert bench.hear(pcp_reply(7, 0)) == []
    assert bench.due() == [PCP_MAP]
    assert bench.hear(pcp_granted(7)) == [mapped(50000)]


@pytest.mark.parametrize("announced_first", [True, False])
def test_pcp_at_once_where_pmp_is_of_an_unsupported_version(announced_first: bool) -> None:
    bench = Bench()
    bench.due()
    heard = [pcp_reply(7, 0), pmp_refusal(1)]
    effects = [bench.hear(data) for data in (heard if announced_first else heard[::-1])]
    assert effects == [[], [PCP_MAP]]


def test_pcp_renewal_keeps_the_nonce_and_an_echo_of_another_is_ignored() -> None:
    bench = Bench(frozenset((Protocol.PCP,)))
    assert bench.due() == [ANNOUNCE]
    assert bench.hear(pcp_reply(7, 0)) == [PCP_MAP]
    assert bench.hear(pcp_granted(7, nonce=bytes(12))) == []
    assert bench.hear(pcp_granted(7)) == [mapped(50000)]
    bench.now += 3600 - 60
    assert bench.mapper.deadline < bench.now
    while (effects := bench.due()) != [PCP_RENEW]:
        assert effects == [ANNOUNCE]
        bench.hear(pcp_reply(int(bench.now), 0))
    assert bench.hear(pcp_granted(int(bench.now), port=50001)) == [mapped(50001)]


def test_renewal_at_half_life_and_again_at_half_of_what_is_left_until_it_ends() -> None:
    bench = Bench()
    bench.map_by_pmp(lifetime=100)
    start, asked = bench.now, []
    while bench.mapper.lease is not None:
        effects = bench.due()
        if ASK_MAP in effects:
            asked.append(round(bench.now - start))
    assert asked == [50, 75, 88, 94, 99, 100]
    assert effects == [*ALL_AT_ONCE, Mapped(None)], "and all is asked anew"


def test_renewed_the_endpoint_is_not_told_again() -> None:
    bench = Bench()
    bench.map_by_pmp(lifetime=100)
    bench.due()
    assert bench.hear(external(150)) == [] and bench.hear(granted(150, lifetime=100)) == []
    assert bench.mapper.lease is not None and bench.mapper.lease.until == bench.now + 100


def test_an_epoch_that_ran_backwards_ends_the_mapping_at_once() -> None:
    bench = Bench()
    bench.map_by_pmp(epoch=1000)
    assert bench.due() == [ASK_EXTERNAL], "a small look once a minute"
    assert bench.hear(external(3)) == [*ALL_AT_ONCE, Mapped(None)]
    assert bench.hear(external(3)) == []
    assert bench.hear(granted(3)) == [mapped()]


def test_an_epoch_that_goes_a_little_slow_is_no_restart() -> None:
    bench = Bench()
    bench.map_by_pmp(epoch=1000)
    bench.due()
    assert bench.hear(external(1055)) == [] and bench.mapper.lease is not None


def test_another_external_address_is_told() -> None:
    bench = Bench()
    bench.map_by_pmp(epoch=1000)
    bench.due()
    assert bench.hear(external(1060, "11.77.0.9")) == [*ALL_AT_ONCE, Mapped(None)]
    bench.hear(external(1060, "11.77.0.9"))
    assert bench.hear(granted(1060)) == [mapped(ip="11.77.0.9")]


def test_a_hint_renews_at_once_but_not_twice_within_five_seconds() -> None:
    """A gateway that restarted within moments of its first start shows no epoch to tell it by."""
    bench = Bench()
    bench.map_by_pmp(epoch=1)
    assert bench.mapper.on_hint(Seconds(bench.now)) == []
    asked_at = 1000.0
    assert bench.due() == [ASK_EXTERNAL, ASK_MAP] and bench.now == asked_at + 5.0
    assert bench.hear(external(1005)) == [] and bench.hear(granted(1005)) == []
    bench.now += 30
    assert bench.mapper.on_hint(Seconds(bench.now)) == [ASK_EXTERNAL, ASK_MAP]
    assert bench.mapper.on_hint(Seconds(bench.now)) == []


def test_in_another_network_the_mapping_is_nothing_even_with_a_gateway_of_the_same_address() -> None:
    bench = Bench()
    bench.map_by_pmp()
    assert bench.mapper.on_link_change(Seconds(bench.now)) == [*ALL_AT_ONCE, Mapped(None)]
    bench.due(), bench.due()
    assert bench.mapper.lease is None and bench.mapper.presence() == Presence(upnp=False, pmp=True, pcp=False)


@pytest.mark.parametrize("ip", ["10.0.0.4", "172.20.1.1", "192.168.1.7", "100.64.3.2", "0.0.0.0", "127.0.0.1"])
def test_an_external_address_of_nobody_is_given_back_and_said(ip: str) -> None:
    bench = Bench()
    bench.due()
    bench.hear(external(100, ip))
    assert bench.hear(granted(100)) == [Send(natpmp.emit_map_request(PORT, 0, 0))]
    assert bench.mapper.lease is None and ("another NAT" in bench.mapper.reason or "no address" in bench.mapper.reason)
    assert bench.mapper.deadline - bench.now == 5.0


def test_reserved_external_ports_are_given_back() -> None:
    bench = Bench()
    bench.due()
    bench.hear(external(100))
    assert bench.hear(granted(100, port=443)) == [Send(natpmp.emit_map_request(PORT, 0, 0))]


def test_answers_for_another_port_do_not_count() -> None:
    bench = Bench()
    bench.due()
    bench.hear(external(100))
    assert bench.hear(granted(100, internal=PORT + 1)) == [] and bench.mapper.lease is None


def test_double_nat_seen_by_pcp_is_said() -> None:
    bench = Bench(frozenset((Protocol.PCP,)))
    bench.due()
    bench.hear(pcp_reply(7, 0))
    bench.hear(pcp_reply(7, 1, result=12))
    assert "another NAT" in bench.mapper.reason and bench.mapper.lease is None


def test_nobody_at_the_port_leads_to_upnp_at_once() -> None:
    bench = Bench()
    bench.due()
    assert bench.mapper.on_refused(Seconds(bench.now)) == []
    assert bench.mapper.on_found(FOUND, Seconds(bench.now + 0.1)) == []
    assert bench.mapper.deadline == bench.now + 0.1 + 0.05
    (fetch,) = bench.due()
    assert fetch == Fetch(5000, "/root.xml")


def test_release_gives_back_by_the_same_protocol() -> None:
    bench = Bench()
    bench.map_by_pmp()
    assert bench.mapper.release() == [Send(natpmp.emit_map_request(PORT, 0, 0))] and bench.mapper.release() == []
    bench = Bench(frozenset((Protocol.PCP,)))
    bench.due(), bench.hear(pcp_reply(7, 0)), bench.hear(pcp_granted(7))
    assert bench.mapper.release() == [Send(pcp.emit_map_request(GATEWAY.client, NONCE, PORT, 0, 0))]


def test_presence_is_known_when_seen_and_absence_after_time_to_answer() -> None:
    bench = Bench()
    bench.due()
    assert bench.mapper.presence() == Presence()
    bench.hear(external(100)), bench.hear(granted(100))
    assert bench.mapper.presence() == Presence(pmp=True)
    bench.mapper.on_found(FOUND, Seconds(bench.now))
    assert bench.mapper.presence() == Presence(pmp=True, upnp=True)
    bench.due()
    assert bench.mapper.presence() == Presence(pmp=True, upnp=True, pcp=False)


# --- UPnP ---

IGD = "urn:schemas-upnp-org:service:WANIPConnection"


def description(version: int) -> Answer:
    service = f"<serviceType>{IGD}:{version}</serviceType><controlURL>/ctl</controlURL>"
    return Answer(200, f"<root><device><service>{service}</service></device></root>".encode())


def said(action: str, **values: Any) -> Answer:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return Answer(200, f"<E><B><{action}Response>{inner}</{action}Response></B></E>".encode())


def fault(code: int) -> Answer:
    return Answer(500, f"<E><B><Fault><UPnPError><errorCode>{code}</errorCode></UPnPError></Fault></B></E>".encode())


class Igd:
    """Answers fetches by what they ask; `faults` come first."""

    def __init__(self, version: int = 1, ip: str = WAN, faults: tuple[int, ...] = (), reserved: int = 0) -> None:
        self.version, self.ip, self.faults, self.reserved = version, ip, list(faults), reserved
        self.asked: list[Fetch] = []

    def answer(self, fetch: Fetch) -> Answer:
        self.asked.append(fetch)
        if not fetch.action:
            return description(self.version)
        action = fetch.action.strip('"').rpartition("#")[2]
        if action == "GetExternalIPAddress":
            return said(action, NewExternalIPAddress=self.ip)
        if self.faults:
            return fault(self.faults.pop(0))
        return said(action, NewReservedPort=self.reserved) if self.reserved else said(action)

    def leases(self) -> list[str]:
        return [f.body.decode().split("NewLeaseDuration>")[1].split("<")[0] for f in self.asked if "#Add" in f.action]


def map_by_upnp(bench: Bench, igd: Igd) -> list[Effect]:
    bench.due()
    bench.mapper.on_found(FOUND, Seconds(bench.now))
    bench.due()
    effects = bench.due()
    while effects and isinstance(effects[0], Fetch):
        bench.now += 0.01
        effects = bench.mapper.on_answer(igd.answer(effects[0]), Seconds(bench.now))
    return effects


def test_upnp_maps_a_port_and_deletes_it() -> None:
    bench, igd = Bench(), Igd()
    (told,) = map_by_upnp(bench, igd)
    assert isinstance(told, Mapped) and told.external is not None
    assert str(told.external.ip) == WAN and told.external.port >= 1024
    add = next(f for f in igd.asked if f.action == f'"{IGD}:1#AddPortMapping"')
    for part in ("<NewProtocol>UDP<", "<NewInternalClient>192.168.50.2<", f"<NewInternalPort>{PORT}<"):
        assert part in add.body.decode()
    (fetch,) = bench.mapper.release()
    assert isinstance(fetch, Fetch) and fetch.action == f'"{IGD}:1#DeletePortMapping"'
    assert f"<NewExternalPort>{told.external.port}<" in fetch.body.decode()


def test_upnp_2_lets_the_gateway_choose() -> None:
    bench, igd = Bench(), Igd(version=2, reserved=40404)
    assert map_by_upnp(bench, igd) == [mapped(40404)]
    assert any("#AddAnyPortMapping" in fetch.action for fetch in igd.asked)


@pytest.mark.parametrize("code", [725, 402])
def test_only_permanent_leases_are_taken_renewed_and_deleted_all_the_same(code: int) -> None:
    bench, igd = Bench(), Igd(faults=(code,))
    assert map_by_upnp(bench, igd) != []
    assert igd.leases() == ["7200", "0"]
    assert bench.mapper.lease is not None and bench.mapper.lease.until == bench.now + 7200
    (fetch,) = bench.mapper.release()
    assert isinstance(fetch, Fetch) and "#DeletePortMapping" in fetch.action


def test_a_taken_port_leads_to_another_a_few_times() -> None:
    bench = Bench()
    dice = iter(range(100))
    bench.mapper._entropy = lambda n: next(dice).to_bytes(n, "big")
    igd = Igd(faults=(718, 718))
    (told,) = map_by_upnp(bench, igd)
    assert told == mapped(1026)
    bench = Bench()
    assert map_by_upnp(bench, Igd(faults=(718,) * 9)) == [] and "718" in bench.mapper.reason


@pytest.mark.parametrize(("ip", "why"), [("192.168.1.2", "another NAT"), ("0.0.0.0", "no address outside")])
def test_upnp_without_a_public_address_maps_nothing(ip: str, why: str) -> None:
    bench, igd = Bench(), Igd(ip=ip)
    assert map_by_upnp(bench, igd) == []
    assert why in bench.mapper.reason and not any("#Add" in fetch.action for fetch in igd.asked)


def test_a_gateway_that_lost_the_service_is_searched_anew() -> None:
    bench = Bench()
    map_by_upnp(bench, Igd())
    (fetch,) = bench.due()
    assert isinstance(fetch, Fetch) and "#AddPortMapping" in fetch.action, "a look is a renewal"
    assert bench.mapper.on_answer(Answer(0), Seconds(bench.now)) == [Mapped(None)]
    assert bench.due() == [ASK_EXTERNAL, ask_wish(bench), ANNOUNCE, Search()]


def ask_wish(bench: Bench) -> Send:
    return Send(natpmp.emit_map_request(PORT, bench.mapper._tenure.wish, 7200))


replies = st.one_of(
    st.binary(max_size=64),
    st.builds(external, st.integers(0, 2000), st.sampled_from([WAN, "10.0.0.1"])),
    st.builds(granted, st.integers(0, 2000), st.integers(0, 65535), st.integers(0, 2**32 - 1)),
    st.builds(pmp_refusal, st.integers(1, 5)),
    st.builds(pcp_reply, st.integers(0, 2000), st.integers(0, 1), st.integers(0, 13)),
    st.builds(pcp_granted, st.integers(0, 2000), port=st.integers(0, 65535), lifetime=st.integers(0, 2**32 - 1)),
)
steps = st.one_of(replies, st.sampled_from(["due", "hint", "refused", "found", "fetched", "failed"]))


@given(st.lists(steps, max_size=60))
def test_whatever_happens_the_rules_hold(script: list[Any]) -> None:
    """The last Mapped told is the lease; bursts are bounded; a deadline is always ahead or a fetch open."""
    bench, igd = Bench(), Igd()
    told: Endpoint | None = None
    open_fetch: Fetch | None = None
    for step in script:
        effects = play(bench, igd, step, open_fetch)
        if step in ("fetched", "failed"):
            open_fetch = None
        for effect in effects:
            if isinstance(effect, Mapped):
                told = effect.external
            elif isinstance(effect, Fetch):
                open_fetch = effect
        assert sum(isinstance(effect, Send) for effect in effects) <= 4
        lease = bench.mapper.lease
        assert told == (lease.external if lease else None)
        assert lease is None or (lease.external.port >= 1024 and str(lease.external.ip) == WAN)
        assert bench.mapper.deadline < float("inf") or open_fetch is not None
        assert lease is not None or bench.mapper.reason


def play(bench: Bench, igd: Igd, step: Any, open_fetch: Fetch | None) -> list[Effect]:
    now = Seconds(bench.now)
    if isinstance(step, bytes):
        return bench.hear(step)
    if step == "due":
        return bench.due() if bench.mapper.deadline < float("inf") else []
    if step == "hint":
        return bench.mapper.on_hint(now)
    if step == "refused":
        return bench.mapper.on_refused(now)
    if step == "found":
        return bench.mapper.on_found(FOUND, now)
    if open_fetch is None:
        return []
    return bench.mapper.on_answer(igd.answer(open_fetch) if step == "fetched" else Answer(0), now)
