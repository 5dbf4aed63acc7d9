"""Addresses: text in, value out."""

from ipaddress import ip_address

import pytest

from meshnode.base.addr import Endpoint, from_packed, is_tailnet, parse_ip, split_host_port


@pytest.mark.parametrize("text", ["1.2.3.4:5", "[::1]:65535", "[fd7a::1]:0"])
def test_endpoint_round_trips(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1.2.3.4", "::1:80", "1.2.3.4:65536", "1.2.3.4:-1", "host:80", "1.2.3.4:٣"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(text)


def test_mapped_addresses_become_plain() -> None:
    assert parse_ip("::ffff:1.2.3.4") == ip_address("1.2.3.4")
    assert from_packed(bytes(10) + b"\xff\xff\x01\x02\x03\x04") == ip_address("1.2.3.4")


def test_tailnet_ranges() -> None:
    assert is_tailnet(ip_address("100.64.0.1"))
    assert is_tailnet(ip_address("fd7a:115c:a1e0::1"))
    assert not is_tailnet(ip_address("100.128.0.1"))


def test_host_and_port() -> None:
    assert split_host_port("[::1]:80") == ("::1", 80)
    assert split_host_port(":80", default_host="127.0.0.1") == ("127.0.0.1", 80)
    with pytest.raises(ValueError):
        split_host_port("localhost")
