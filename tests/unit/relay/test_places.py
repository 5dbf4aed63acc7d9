"""What an operator writes about places: where to listen, hosts, neighbours."""

from __future__ import annotations

import pytest

from meshnode.base.errors import ConfigError
from meshnode.relay.places import listen_addresses, parse_target, usual_host


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Relay.Example.", "relay.example"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("192.0.2.1", "192.0.2.1"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_a_host_has_one_form(text: str, found: str) -> None:
    assert usual_host(text, "host") == found


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "bücher.example", "https://relay.example", "relay.example:443", "a b", "192.0.2.300", "0.0.0.0",
     "::", "fe80::1%eth0", "224.0.0.1", "a" * 64, "a." * 127 + "b", "*.example.com"],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match="^host: "):
        usual_host(text, "host")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("relay.example", ("relay.example", 443)),
        ("relay.example:8443", ("relay.example", 8443)),
        ("2001:db8::1", ("2001:db8::1", 443)),
        ("[2001:db8::1]", ("2001:db8::1", 443)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
    ],
)
def test_targets(text: str, found: tuple[str, int]) -> None:
    assert parse_target(text, "mesh", 443) == found


@pytest.mark.parametrize("text", ["", ":443", "relay:", "relay:0", "relay:65536", "relay:x", "relay:²", "https://r/"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(ConfigError, match="^mesh: "):
        parse_target(text, "mesh", 443)


def test_where_to_listen() -> None:
    assert listen_addresses("off", "stun") == listen_addresses("", "http") == []
    assert listen_addresses(":443", "listen")[0][1] == 443
    assert listen_addresses(":9443", "metrics", default_host="127.0.0.1") == [("127.0.0.1", 9443)]
    assert listen_addresses("[::1]:1", "listen") == [("::1", 1)]
    for text in ("443", "relay.example:443", "192.0.2.1:65536", "192.0.2.1"):
        with pytest.raises(ConfigError, match="^listen: .* is no address; write :443"):
            listen_addresses(text, "listen")
