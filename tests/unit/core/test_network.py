"""What counts as a change of the network, and for whom."""

from __future__ import annotations

from meshnode.base.addr import parse_ip
from meshnode.core.network import Address, Network, compare

WIFI, CABLE, V6 = "192.168.1.5", "10.0.0.5", "2001:db8:1::5"


def network(*pairs: tuple[str, str], out4: str = WIFI, out6: str = "") -> Network:
    outward = tuple(parse_ip(text) if text else None for text in (out4, out6))
    return Network(tuple(Address(parse_ip(ip), name) for ip, name in pairs), (outward[0], outward[1]))


HOME = network((WIFI, "wlan0"), ("127.0.0.1", "lo"))


def test_the_same_look_twice_is_no_change() -> None:
    assert compare(HOME, network(("127.0.0.1", "lo"), (WIFI, "wlan0"))) is None


def test_an_address_that_went_and_one_that_came() -> None:
    change = compare(HOME, network((CABLE, "eth0"), ("127.0.0.1", "lo"), out4=CABLE))
    assert change is not None and not change.is_minor
    assert change.gone == {parse_ip(WIFI)} and change.came == {parse_ip(CABLE)} and change.moved == {4}


def test_the_way_out_moves_while_both_addresses_stay() -> None:
    both = ((WIFI, "wlan0"), (CABLE, "eth0"))
    change = compare(network(*both), network(*both, out4=CABLE))
    assert change is not None and change.moved == {4} and not change.gone and not change.is_minor


def test_one_family_loses_its_way() -> None:
    before = network((WIFI, "e"), (V6, "e"), out6=V6)
    change = compare(before, network((V6, "e"), out4="", out6=V6))
    assert change is not None and change.moved == {4} and change.gone == {parse_ip(WIFI)}


def test_containers_and_other_tunnels_are_minor() -> None:
    aside = [
        ("172.17.0.1", "docker0"), ("172.18.0.1", "br-0a1b"), ("10.88.0.1", "podman0"), ("fe80::1", "veth3"),
        ("100.99.1.2", "tailscale0"), ("10.147.1.1", "zt0"), ("fd7a:115c:a1e0::1", "mesh0"), ("fe80::2", "eth0"),
    ]  # fmt: skip
    for pair in aside:
        with_it = network((WIFI, "wlan0"), ("127.0.0.1", "lo"), pair)
        for change in (compare(HOME, with_it), compare(with_it, HOME)):
            assert change is not None and change.is_minor, pair
    change = compare(HOME, network((WIFI, "wlan0"), ("127.0.0.1", "lo"), ("10.9.9.9", "wg0")))
    assert change is not None and not change.is_minor
