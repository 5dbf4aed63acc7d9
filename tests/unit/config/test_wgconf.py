"""WireGuard configuration files: what is read, what is refused with a warning, and how errors speak."""

from __future__ import annotations

import base64
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import ConfigError
from meshnode.base.keys import NodePrivate, NodePublic, PresharedKey
from meshnode.config.wgconf import WgPeer, parse_wgconf

OWN = base64.b64encode(bytes(range(32))).decode()
PSK = base64.b64encode(bytes(range(64, 96))).decode()
PEER, OTHER = (NodePublic(bytes([n] * 32)).base64 for n in (7, 9))
HEAD = f"[Interface]\nPrivateKey = {OWN}\nAddress = 10.0.0.2/24\n"

WHOLE = f"""
# a comment
[interface]
PRIVATEKEY={OWN}   # another
Address = 10.0.0.2/24, fd00::2/64
Address = 10.9.0.1
ListenPort = 51820
DNS = 10.0.0.1, fd00::1, Corp.Example.
MTU = 1380
Table = off
FwMark = 0x10
SaveConfig = true
PostUp = iptables -A FORWARD -i %i -j ACCEPT; touch /tmp/was-run
PreUp = false

[Peer]
PublicKey = {PEER}
PresharedKey = {PSK}
AllowedIPs = 10.0.0.0/24, 10.0.1.7/16
AllowedIPs = fd00::/64
Endpoint = vpn.example.com:51821
PersistentKeepalive = 25
[Peer]
PublicKey={OTHER}
AllowedIPs=10.0.0.9
Endpoint=[2001:db8::1]:1
PersistentKeepalive=off
"""


def test_a_whole_file() -> None:
    config = parse_wgconf(WHOLE, "office.conf")
    assert config.private == NodePrivate(bytes(range(32)))
    assert config.addresses == tuple(map(ip_address, ("10.0.0.2", "fd00::2", "10.9.0.1")))
    assert (config.port, config.mtu) == (51820, 1380)
    assert config.dns == (ip_address("10.0.0.1"), ip_address("fd00::1")) and config.search == ("corp.example",)
    allowed = tuple(map(ip_network, ("10.0.0.0/24", "10.0.0.0/16", "fd00::/64")))
    assert config.peers == (
        WgPeer(NodePublic(bytes([7] * 32)), allowed, PresharedKey(bytes(range(64, 96))), "vpn.example.com", 51821, 25),
        WgPeer(NodePublic(bytes([9] * 32)), (ip_network("10.0.0.9/32"),), None, "2001:db8::1", 1, 0),
    )


def test_what_would_run_or_change_the_machine_is_refused_with_a_warning() -> None:
    said = [str(warning) for warning in parse_wgconf(WHOLE, "office.conf").warnings]
    assert said == [
        "Table has no effect: this network has no interface on the machine  (office.conf:10)",
        "FwMark has no effect: this network has no interface on the machine  (office.conf:11)",
        "SaveConfig has no effect: this network has no interface on the machine  (office.conf:12)",
        "PostUp would run a command: it is refused and never run  (office.conf:13)",
        "PreUp would run a command: it is refused and never run  (office.conf:14)",
    ]
    assert not Path("/tmp/was-run").exists()


def test_defaults() -> None:
    config = parse_wgconf(HEAD)
    assert (config.port, config.mtu, config.dns, config.peers) == (0, 1420, (), ())
    assert [warning.where for warning in config.warnings] == ["wg.conf:1"]
    assert "no peer" in config.warnings[0].text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no [Interface] section; is this a WireGuard configuration?  (wg.conf)"),
        ("[Interface]\nAddress=10.0.0.1", "[Interface] has no PrivateKey; make one with wg genkey  (wg.conf:1)"),
        (f"\n[Interface]\nPrivateKey={OWN}", "no Address; give it ours, as Address = 10.0.0.2/24  (wg.conf:2)"),
        ("[Interface]\nPrivateKey=abc", "PrivateKey is no key: 3 characters, expected 44 of base64; wg genkey"),
        (f"[Interface]\nPrivateKey={'A' * 43}=", "PrivateKey is all zeros; make one with wg genkey  (wg.conf:2)"),
        (f"[Interface]\nPrivateKey={'A' * 42}B=", "is no key: not base64 of 32 bytes; wg genkey"),
        (f"[Interface]\nPrivateKey={'?' * 44}", "PrivateKey is no key: not base64;"),
        ("PrivateKey = x", "a setting stands before the first section; begin with [Interface]  (wg.conf:1)"),
        (OWN.rstrip("="), "this line is neither [Section] nor Key = value  (wg.conf:1)"),
        ("[Intrface]", "'[Intrface]' is no section; a WireGuard file has [Interface] and [Peer]  (wg.conf:1)"),
        ("[Interface]\n[Interface]", "[Interface] was begun in line 1 already; keep one  (wg.conf:2)"),
        ("[Interface]\nAdress = x", "[Interface] has no setting 'Adress'; did you mean Address?  (wg.conf:2)"),
        ("[Interface]\nEndpoint = a:1", "Endpoint belongs below [Peer], not [Interface]  (wg.conf:2)"),
        ("[Interface]\nJc = 4", "[Interface] has no setting 'Jc'; remove the line  (wg.conf:2)"),
        ("[Interface]\nMTU =", "MTU is empty  (wg.conf:2)"),
        ("[Interface]\nMTU = 100", "MTU: '100' is not a whole number from 576 to 9000  (wg.conf:2)"),
        ("[Interface]\nListenPort = 70000", "ListenPort: '70000' is not a whole number from 0 to 65535  (wg.conf:2)"),
        ("[Interface]\nListenPort=1\nListenPort=1", "ListenPort is set twice in this section; keep one  (wg.conf:3)"),
        ("[Interface]\nAddress = 10.0.0.300/24", "Address: '10.0.0.300/24' is no IP address; write 10.0.0.2/24"),
        ("[Interface]\nAddress = 127.0.0.1", "Address: 127.0.0.1 cannot be an address of ours"),
        (f"{HEAD}[Peer]\n", "this [Peer] has no PublicKey  (wg.conf:4)"),
        (f"{HEAD}[Peer]\nPublicKey = {PEER}\n[Peer]\nPublicKey = {PEER}", "line 5 has the same PublicKey; keep one"),
        (f"{HEAD}[Peer]\nAllowedIPs = 10.0.0/99", "AllowedIPs: '10.0.0/99' is no address range; write 10.0.0.0/24"),
        (f"{HEAD}[Peer]\nEndpoint = vpn", "Endpoint: 'vpn' is not HOST:PORT, as vpn.example.com:51820  (wg.conf:5)"),
        (f"{HEAD}[Peer]\nEndpoint = fd00::1:5", "an IPv6 address wants brackets, as [fd00::1]:51820  (wg.conf:5)"),
        (f"{HEAD}[Peer]\nPersistentKeepalive = -1", "PersistentKeepalive: '-1' is not a whole number from 0 to 65535"),
        (f"{HEAD}[Peer]\nPrivateKey = {OWN}", "PrivateKey belongs below [Interface], not [Peer]  (wg.conf:5)"),
    ],
)  # fmt: skip
def test_errors_say_where_and_what_to_try(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_wgconf(text)
    message = str(caught.value)
    assert said in message and "\n" not in message
    assert OWN not in message and OWN.rstrip("=") not in message


def test_an_error_never_repeats_a_key() -> None:
    for label in ("PrivateKey", "PublicKey", "PresharedKey"):
        section = "Interface" if label == "PrivateKey" else "Peer"
        for bad in (OWN[:-1], OWN + "A", OWN[:-2] + "==", OWN.lower() + " "):
            with pytest.raises(ConfigError) as caught:
                parse_wgconf(f"[{section}]\n{label} = {bad}x\n")
            assert OWN[4:20].lower() not in str(caught.value).lower()


@pytest.mark.parametrize("line", ["AllowedIPs = {}", "Endpoint = {}:1", "Endpoint = {}", "{} = 1", "PublicKeyy = {}",
                                  "PersistentKeepalive = {}", "AllowedIPs = fd, fdkey = {}", "[{}]"])  # fmt: skip
def test_a_key_in_the_wrong_place_is_not_repeated(line: str) -> None:
    for key in (OWN, PSK):
        with pytest.raises(ConfigError) as caught:
            parse_wgconf(f"{HEAD}[Peer]\n" + line.format(key))
        assert key[:30].lower() not in str(caught.value).lower()


def test_our_own_key_as_a_peer_is_left_out() -> None:
    own = NodePrivate(bytes(range(32))).public().base64
    config = parse_wgconf(f"{HEAD}[Peer]\nPublicKey = {own}\n")
    assert config.peers == ()
    assert "our own key and is left out  (wg.conf:5)" in str(config.warnings[0])


def test_a_range_has_one_peer_and_the_last_claim_wins() -> None:
    ranges = "AllowedIPs = 10.0.0.0/24, 10.1.0.0/24"
    config = parse_wgconf(
        f"{HEAD}[Peer]\nPublicKey={PEER}\n{ranges}\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.1.0.9/24"
    )
    assert [p.allowed for p in config.peers] == [(ip_network("10.0.0.0/24"),), (ip_network("10.1.0.0/24"),)]
    assert "10.1.0.0/24 was the peer's of line 5; this peer takes it over  (wg.conf:8)" in str(config.warnings[0])


def test_nothing_secret_in_the_repr() -> None:
    config = parse_wgconf(WHOLE)
    for secret in (OWN, PSK, bytes(range(32)).hex(), bytes(range(64, 96)).hex()):
        assert secret not in repr(config) and secret not in str(config)


def test_the_key_forms_are_those_of_wg() -> None:
    try:
        private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        pytest.skip("needs wireguard-tools")
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True).stdout.strip()
    assert NodePrivate.parse_base64(private).public().base64 == public


def test_the_largest_configurations_of_the_kernels_tests() -> None:
    many = ", ".join(f"{a}.{b}.{c}.0/24" for a in range(10, 12) for b in range(255) for c in range(256))
    config = parse_wgconf(f"{HEAD}[Peer]\nPublicKey={PEER}\nAllowedIPs={many}")
    assert len(config.peers[0].allowed) == 130_560


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
lines = st.one_of(
    texts,
    st.sampled_from(WHOLE.splitlines()),
    st.builds("{} = {}".format, st.sampled_from(["Address", "AllowedIPs", "Endpoint", "PresharedKey", "MTU"]), texts),
)


@given(st.lists(lines, max_size=30))
def test_any_text_is_read_or_refused(given: list[str]) -> None:
    text = "\n".join(given)
    try:
        config = parse_wgconf(text)
    except ConfigError as error:
        assert "wg.conf" in str(error) and OWN not in str(error)
    else:
        assert config.addresses and len({peer.key for peer in config.peers}) == len(config.peers)
