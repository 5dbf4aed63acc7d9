"""Which of our addresses peers hear, and which of theirs we are willing to ping."""

from __future__ import annotations

from meshnode.base.addr import Endpoint, parse_ip
from meshnode.base.bounds import OWN_ENDPOINTS_MAX
from meshnode.core.network import Address
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.underlay.book import EndpointBook
from meshnode.underlay.endpoints import choose, local_endpoints
from meshnode.underlay.interfaces import read_network
from meshnode.underlay.own import STICKY_S, OwnEndpoints


def chosen(*pairs: tuple[str, str], loopback_ok: bool = False) -> list[str]:
    return [str(ip) for ip in choose([Address(parse_ip(ip), name) for ip, name in pairs], loopback_ok=loopback_ok)]


LO = ("127.0.0.1", "lo")


def test_loopback_only_if_asked_for_or_alone() -> None:
    assert chosen(LO, ("::1", "lo"), ("192.168.1.2", "eth0")) == ["192.168.1.2"]
    assert chosen(LO, ("192.168.1.2", "eth0"), loopback_ok=True) == ["192.168.1.2", "127.0.0.1"]
    assert chosen(LO) == ["127.0.0.1"]


def test_bridges_come_last_and_are_few() -> None:
    bridges = [(f"172.17.{n}.1", f"br-{n}") for n in range(9)]
    got = chosen(*bridges, ("10.0.0.5", "eth0"))
    assert got[0] == "10.0.0.5" and len(got) == 5


def test_a_container_keeps_its_only_address() -> None:
    assert chosen(("172.17.0.2", "eth0"), LO) == ["172.17.0.2"]


def test_other_tunnels_and_tailnet_ranges_are_left_out() -> None:
    assert chosen(("10.1.1.1", "zt0abc"), ("100.64.0.9", "eth0"), ("fd7a:115c:a1e0::9", "eth0"), LO) == ["127.0.0.1"]


def test_link_local_only_as_a_last_resort() -> None:
    assert chosen(("169.254.3.3", "eth0"), ("fe80::1", "eth0")) == ["169.254.3.3"]
    assert chosen(("169.254.3.3", "eth0"), ("10.0.0.1", "eth0")) == ["10.0.0.1"]


def test_v6_subnets_are_thinned_and_unique_local_yields_to_global() -> None:
    got = chosen(("2001:db8::1", "e"), ("2001:db8::2", "e"), ("2001:db8::3", "e"), ("fd00::1", "e"))
    assert got == ["2001:db8::1", "2001:db8::2"]
    assert chosen(("fd00::1", "e"), ("10.0.0.1", "e")) == ["fd00::1", "10.0.0.1"]


def test_this_machine_has_addresses() -> None:
    found = read_network()
    assert found.is_complete and any(ip.is_loopback for ip in found.ips)
    named = local_endpoints(found, 1234, 0, loopback_ok=True)
    assert Endpoint(parse_ip("127.0.0.1"), 1234) in named
    assert all(e.port == 1234 and e.ip.version == 4 for e in named)


E1, E2, E3 = (Endpoint.parse(t) for t in ("192.168.1.2:1", "192.168.1.3:1", "203.0.113.9:77"))


def test_lists_we_send_are_sticky_until_an_address_is_gone() -> None:
    own = OwnEndpoints(loopback_ok=False)
    assert own.replace((E1, E2), 0.0) and not own.replace((E2, E1), 1.0)
    assert own.replace((E2,), 10.0)
    assert own.to_announce(None, 20.0) == (E2, E1)
    assert own.to_announce(E3, 20.0) == (E3, E2, E1), "how the peer saw us comes first"
    assert own.to_announce(None, 10.0 + STICKY_S) == (E2,)
    own.forget({E2.ip})
    assert E2 not in own.to_announce(None, 20.0)


def test_freshness() -> None:
    own = OwnEndpoints(loopback_ok=False)
    assert not own.is_fresh(0.0)
    own.replace((E1,), 0.0)
    assert own.is_fresh(20.0) and not own.is_fresh(30.0)


def test_what_is_never_pinged() -> None:
    own = OwnEndpoints(loopback_ok=False)
    own.replace((E1,), 0.0)
    bad = ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "127.0.0.1:1", "100.64.0.1:1", "1.2.3.4:0", "240.0.0.1:1"]
    bad += ["[::]:1", "[ff02::1]:1", "[fe80::1]:1", "[::1]:1", "[fd7a:115c:a1e0::1]:1", str(E1)]
    for text in bad:
        assert not own.admits(Endpoint.parse(text)), text
    for text in ("192.168.1.2:2", "8.8.8.8:1", "[2001:db8::1]:1", "169.254.1.1:5"):
        assert own.admits(Endpoint.parse(text)), text


def test_loopback_is_pinged_on_one_machine() -> None:
    loop = Endpoint.parse("127.0.0.1:9")
    assert OwnEndpoints(loopback_ok=True).admits(loop)
    alone = OwnEndpoints(loopback_ok=False)
    alone.replace((Endpoint.parse("127.0.0.1:8"),), 0.0)
    assert alone.admits(loop)


def test_the_book_keeps_explicit_addresses_whatever_else_is_found() -> None:
    book = EndpointBook()
    explicit, mapped = Endpoint.parse("203.0.113.5:41641"), Endpoint.parse("203.0.113.9:1")
    many = [Endpoint.parse(f"10.0.0.{n}:1") for n in range(40)]
    assert book.put(EndpointKind.LOCAL, many) and book.put(EndpointKind.STUN, many[:6])
    assert book.put(EndpointKind.EXPLICIT, [explicit]) and book.put(EndpointKind.PORTMAPPED, [mapped])
    entries = book.entries()
    assert entries[:3] == (
        (mapped, EndpointKind.PORTMAPPED), (explicit, EndpointKind.EXPLICIT), (many[0], EndpointKind.STUN),
    )  # fmt: skip
    assert len(entries) == OWN_ENDPOINTS_MAX and not book.put(EndpointKind.EXPLICIT, [explicit])


def test_containers_that_come_and_go_do_not_change_the_list() -> None:
    """A bridge counts without a carrier, a stub has no address of its own; both only up to a cap."""
    bridges = [(f"172.{n}.0.1", "docker0" if n == 17 else f"br-{n}") for n in range(17, 22)]
    before = chosen(("10.0.0.5", "eth0"), *bridges)
    assert chosen(("10.0.0.5", "eth0"), *bridges, ("172.30.0.1", "br-new"), ("fe80::1", "veth1")) == before
