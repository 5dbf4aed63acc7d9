"""Plain WireGuard networks of ours against wireguard-go and boringtun with kernel TCP behind them.

One process of ours is in two networks at once, `red` (wireguard-go, IPv4 outside, an odd MTU) and `blue` (boringtun,
IPv6 outside, a preshared key), and both use the same addresses inside. The numbers in brackets are the scenarios of
WireGuard's own test, netns.sh, listed in docs/guides/wireguard.md, which says where the others are.
"""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from interop.bed import MIB, random_file
from interop.lab import Host, Lab, until
from interop.peers.member import Joining, Member
from interop.peers.origin import start_origin
from interop.peers.wireguard import Wireguard, key_pair

ECHO_BACKWARDS = """
import os, socket, struct, sys
own, peer, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
is6 = ":" in peer
family = socket.AF_INET6 if is6 else socket.AF_INET
protocol = socket.IPPROTO_ICMPV6 if is6 else socket.IPPROTO_ICMP
addresses = socket.inet_pton(family, own) + socket.inet_pton(family, peer)
payload = os.urandom(size)

def checksum(data):
    return -sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF

def echo(kind, sum_):
    return struct.pack("!BBHHH", kind, 0, sum_, 0x4D4E, 1) + payload

request = 128 if is6 else 8
pseudo = addresses + struct.pack("!LL", 8 + size, protocol) if is6 else b""
message = echo(request, checksum(pseudo + echo(request, 0)))
answers = socket.socket(family, socket.SOCK_RAW, protocol)
answers.settimeout(5)
raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
for at in reversed(range(0, len(message), 1200)):
    piece, more = message[at:at + 1200], at + 1200 < len(message)
    if is6:
        head = struct.pack("!LHBB", 6 << 28, 8 + len(piece), 44, 64) + addresses
        head += struct.pack("!BBHL", protocol, 0, at | more, 0xF00D)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(piece), 0xF00D, at // 8 | more << 13, 64, protocol, 0)
        head += addresses
    raw.sendto(head + piece, (peer, 0))
while True:
    got = answers.recv(70000)[0 if is6 else 20:]
    if got[0] == (129 if is6 else 0) and got[4:6] == b"MN":
        break
print("the same" if got[4:] == message[4:] else "another")
"""
OURS, THEIRS = ("10.0.0.2", "fd00::2"), ("10.0.0.1", "fd00::1")
PORT = 51820
ODD_MTU = 1299
OUTER_MAX = 1360
"""The MTU outside: 1299 + 32 + 28 fits for red and 1280 + 32 + 48 for blue; padded to 16, 1312 would not."""
both = pytest.mark.parametrize("name", ["red", "blue"])
families = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


@dataclass
class Net:
    """One of the two networks, seen from both ends."""

    host: Host
    theirs: Wireguard
    our_public: bytes
    our_port: int
    digest: str


@dataclass
class Both:
    lab: Lab
    ours: Host
    member: Member
    nets: dict[str, Net]

    def theirs_to_us(self, name: str) -> str:
        """Where they think we are."""
        return self.nets[name].theirs.of_peer(self.nets[name].our_public).endpoint


def keyfile(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def pair(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with Lab(tmp_path_factory.mktemp("plainwg")) as lab:
        ours = lab.host("ours")
        nets, files = {}, []
        for number, (name, program) in enumerate({"red": "wireguard_go", "blue": "boringtun"}.items()):
            host = lab.host(name)
            mtu = ODD_MTU if name == "red" else 1280
            their_private, their_public = key_pair()
            our_private, our_public = key_pair()
            psk = b"" if name == "red" else bytes(range(32))
            theirs = Wireguard(
                host, their_private, PORT, tuple(f"{ip}/{24 if '.' in ip else 64}" for ip in THEIRS), program, mtu
            ).start()  # fmt: skip
            theirs.peer(our_public, ",".join(OURS), psk=psk)
            our_port = PORT + 1 + number
            endpoint = f"{host.v4}:{PORT}" if name == "red" else f"[{host.v6}]:{PORT}"
            text = f"""[Interface]
                PrivateKey = {base64.b64encode(our_private).decode()}
                Address = {OURS[0]}/24, {OURS[1]}/64
                ListenPort = {our_port}
                MTU = {mtu}
                PostUp = touch {lab.folder}/was-run
                [Peer]
                PublicKey = {base64.b64encode(their_public).decode()}
                AllowedIPs = 10.0.0.0/24, fd00::/64
                Endpoint = {endpoint}
                """
            text += f"PresharedKey = {base64.b64encode(psk).decode()}\n" if psk else ""
            files.append((name, str(keyfile(lab.folder / f"{name}.conf", text))))
            directory = host.folder / "www"
            directory.mkdir()
            (directory / "who").write_text(name)
            start_origin(host, directory, 8000)
            nets[name] = Net(host, theirs, our_public, our_port, random_file(directory / "big", 16 * MIB))
        ours.run("ip", "link", "set", "eth0", "mtu", str(OUTER_MAX))
        yield Both(lab, ours, Member(ours, Joining("ours", networks=tuple(files))), nets)


# --- [1] [4]: everything both ways, IPv4 and IPv6 inside and outside, two networks with the same addresses at once ---


@both
@families
def test_our_requests(pair: Both, name: str, family: int) -> None:
    net, ip = pair.nets[name], THEIRS[family]
    assert pair.member.tell("ping", ip, network=name).startswith(f"pong from {ip} in ")
    who = pair.member.tell("get", ip, "8000", "/who", network=name)
    assert who.split()[:2] == ["200", str(len(name))]
    assert pair.member.tell("get", ip, "8000", "/big", network=name) == f"200 {16 * MIB} {net.digest}"
    assert pair.member.tell("get", ip, "8001", "/", network=name).startswith("Refused ")
    assert pair.member.tell("ask", ip, "9999", "x", network=name).startswith("Refused ")


@both
@families
def test_their_requests(pair: Both, name: str, family: int) -> None:
    host, ip = pair.nets[name].host, OURS[family]
    where = f"[{ip}]" if ":" in ip else ip
    assert host.run("curl", "-sS", "--max-time", "10", f"http://{where}/").stdout == f"hello {THEIRS[family]}\n"
    talk = f"import socket; s = socket.create_connection(({ip!r}, 7), 10)\n"
    talk += "import threading; s.settimeout(15)\n"
    talk += "threading.Thread(target=lambda: (s.sendall(bytes(4 << 20)), s.shutdown(1))).start()\n"
    talk += "print(sum(len(x) for x in iter(lambda: s.recv(65536), b'')))"
    assert host.run("python3", "-c", talk).stdout.strip() == str(4 << 20)
    refused = host.run("curl", "-sS", "--max-time", "5", f"http://{where}:81/", check=False)
    assert refused.returncode == 7, refused.stderr
    ask = f"import socket; s = socket.socket({'2' if family == 0 else '10'}, 2); s.settimeout(5)\n"
    ask += f"s.connect(({ip!r}, 53)); s.send(b'theirs'); print(s.recv(99).decode())"
    assert host.run("python3", "-c", ask).stdout.strip() == "THEIRS"


@both
@families
def test_they_flood_us_with_pings(pair: Both, name: str, family: int) -> None:
    """Echoes are bounded to 1000 a second: a flood as fast as answers come is answered as far."""
    done = pair.nets[name].host.run("ping", "-c", "300", "-i", "0.002", "-q", "-W", "2", OURS[family])
    assert " 0% packet loss" in done.stdout, done.stdout


@both
@families
def test_their_long_pings_are_answered_in_fragments(pair: Both, name: str, family: int) -> None:
    host = pair.nets[name].host
    for size in (1300, 4000, 8000, 60000):
        done = host.run("ping", "-c", "3", "-i", "0.05", "-q", "-W", "5", "-s", str(size), OURS[family])
        assert " 0% packet loss" in done.stdout, done.stdout


@both
@families
def test_fragments_that_arrive_last_first(pair: Both, name: str, family: int) -> None:
    words = ["python3", "-c", ECHO_BACKWARDS, THEIRS[family], OURS[family], "8000"]
    assert pair.nets[name].host.run(*words).stdout.strip() == "the same"


# --- [2]: exact counters, and the stamp of the last handshake ---


@both
def test_both_ends_count_the_same_bytes(pair: Both, name: str) -> None:
    net = pair.nets[name]

    def counted() -> tuple[int, int, int, int]:
        ours, theirs = pair.member.status(name)["Peers"][0], net.theirs.of_peer(net.our_public)
        return ours["RxBytes"], ours["TxBytes"], theirs.tx, theirs.rx

    pair.member.tell("ping", THEIRS[0], network=name)
    before = counted()
    for _ in range(10):
        pair.member.tell("ping", THEIRS[0], network=name)
    our_rx, our_tx, their_tx, their_rx = (after - b for after, b in zip(counted(), before, strict=True))
    # An echo of 56 bytes is 84 long, padded to 96; boringtun does not pad, and counts what was inside.
    size, theirs = 10 * (96 + 32), 10 * ((96 if name == "red" else 84) + 32)
    assert (our_rx, our_tx) == (theirs, size)
    assert (their_tx, their_rx) == (theirs, size) if name == "red" else (their_tx, their_rx) == (840, 840)
    told = pair.member.status(name)["Peers"][0]["LastHandshake"]
    stamp = datetime.fromisoformat(told).timestamp()
    assert abs(stamp - time.time()) < 180
    if name == "red":  # boringtun tells an age where others tell a time
        assert abs(stamp - net.theirs.of_peer(net.our_public).handshake) < 2


# --- [5]: padding never makes a packet larger than the MTU allows ---


def test_padding_stays_below_the_mtu(pair: Both) -> None:
    red = pair.nets["red"].host
    for size in range(ODD_MTU - 28 - 16, ODD_MTU - 28 + 1):
        assert pair.member.tell("ping", THEIRS[0], str(size), network="red").startswith("pong ")
    too_long = pair.member.tell("ping", THEIRS[0], str(ODD_MTU - 27), network="red")
    assert "too long" in too_long
    red.run("ping", "-c", "2", "-M", "do", "-s", str(ODD_MTU - 28), "-W", "3", OURS[0])
    names, values = (x.split() for x in pair.ours.run("grep", "^Ip:", "/proc/net/snmp").stdout.splitlines())
    assert dict(zip(names, values, strict=True))["FragCreates"] == "0"


# --- a session anew, in the middle of a transfer ---


@both
def test_rekeys_in_the_middle_of_a_transfer(pair: Both, name: str) -> None:
    def fresh() -> float:
        return datetime.fromisoformat(pair.member.status(name)["Peers"][0]["LastHandshake"]).timestamp()

    before = fresh()
    until(lambda: time.time() > before + 6, 10.0, "the session is old enough to be replaced")  # WireGuard's 5 s
    transfer = streaming(pair, name)
    assert pair.member.tell("kick", network=name) == "kicked"
    until(lambda: fresh() > before, 10.0, "another session")
    arrived(pair, name, transfer)


def slow(host: Host, rate: str) -> None:
    """Make what this host sends slow, so that there is a middle of a transfer."""
    host.run("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64k", "latency", "50ms")


def fast(host: Host) -> None:
    host.run("tc", "qdisc", "del", "dev", "eth0", "root")


# --- [6] [7] [17]: roaming, theirs and ours, address, port and family, in the middle of a transfer ---


def streaming(pair: Both, name: str) -> int:
    """Have a slow transfer under way; returns its number."""
    net = pair.nets[name]
    slow(net.host, "40mbit")
    before = net.theirs.of_peer(net.our_public).tx
    number = pair.member.order("get", THEIRS[0], "8000", "/big", network=name)
    until(lambda: net.theirs.of_peer(net.our_public).tx > before + MIB // 2, 10.0, "it flows")
    return number


def arrived(pair: Both, name: str, number: int) -> None:
    """It is still under way; let it end, whole."""
    net = pair.nets[name]
    done = [line for line in pair.member.process.out().splitlines() if line.startswith(f"{number} ")]
    assert not done, f"it was over too soon: {done}"
    fast(net.host)
    assert pair.member.answer(number) == f"200 {16 * MIB} {net.digest}"


@both
def test_their_port_changes(pair: Both, name: str) -> None:
    net = pair.nets[name]
    transfer = streaming(pair, name)
    net.theirs.set_port(PORT + 9)
    until(lambda: pair.member.endpoint(name).endswith(f":{PORT + 9}"), 10.0, "we follow their port")
    arrived(pair, name, transfer)


def test_their_address_changes(pair: Both) -> None:
    """The new one is there before the old one goes, as when a laptop changes networks."""
    net, fresh = pair.nets["red"], "10.77.0.99"
    transfer = streaming(pair, "red")
    readdress(net.host, net.host.v4, fresh)
    until(lambda: pair.member.endpoint("red").startswith(f"{fresh}:"), 15.0, "we follow their address")
    arrived(pair, "red", transfer)
    readdress(net.host, fresh, net.host.v4)
    until(lambda: ping(net.host, OURS[0]), 10.0, "they reach us again")
    assert pair.member.endpoint("red").startswith(f"{net.host.v4}:")


def readdress(host: Host, before: str, after: str) -> None:
    """Give eth0 another address."""
    host.run("sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1")
    host.run("ip", "address", "add", f"{after}/24", "dev", "eth0")
    host.run("ip", "address", "del", f"{before}/24", "dev", "eth0")
    host.run("ip", "route", "replace", "default", "via", host.lab.hub.v4)


def test_the_family_changes_and_changes_back(pair: Both) -> None:
    net = pair.nets["red"]
    net.theirs.set_peer(net.our_public, "endpoint", f"[{pair.ours.v6}]:{net.our_port}")
    until(lambda: ping(net.host, OURS[0]), 10.0, "they reach us over IPv6")
    assert pair.member.endpoint("red").startswith(f"[{net.host.v6}]:")
    # wireguard-go sends a packet now and then to half of the new address: docs/protocol/peers.md 3.
    until(
        lambda: pair.member.tell("ping", THEIRS[0], network="red").startswith("pong"), 20.0, "we reach them over IPv6"
    )
    assert pair.member.endpoint("red").startswith(f"[{net.host.v6}]:")
    net.theirs.set_peer(net.our_public, "endpoint", f"{pair.ours.v4}:{net.our_port}")
    until(lambda: ping(net.host, OURS[1]), 10.0, "they reach us over IPv4")
    assert pair.member.endpoint("red").startswith("10.77.0.")


def ping(host: Host, address: str) -> bool:
    return host.run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0


def test_our_address_changes(pair: Both) -> None:
    net, fresh = pair.nets["red"], "10.77.0.88"
    transfer = streaming(pair, "red")
    readdress(pair.ours, pair.ours.v4, fresh)
    # Who only receives says nothing: they learn of it by what we send next.
    assert pair.member.tell("ping", THEIRS[0], network="red").startswith("pong")
    until(lambda: pair.theirs_to_us("red") == f"{fresh}:{net.our_port}", 15.0, "they follow our address")
    arrived(pair, "red", transfer)
    readdress(pair.ours, fresh, pair.ours.v4)
    until(lambda: pair.member.tell("ping", THEIRS[0], network="red").startswith("pong"), 15.0, "it goes on")


# --- [18] [19]: answers come from the address that was asked, also when it is on another interface ---


@pytest.mark.parametrize("where", ["eth0", "lo"])
def test_answers_come_from_the_address_asked(pair: Both, where: str) -> None:
    net = pair.nets["red"]
    asked = {"eth0": "10.77.0.77", "lo": "10.88.0.1"}[where]
    pair.ours.run("ip", "address", "add", f"{asked}/{24 if where == 'eth0' else 32}", "dev", where)
    net.host.run("ip", "route", "replace", f"{asked}/32", "via", pair.ours.v4)
    net.theirs.set_peer(net.our_public, "endpoint", f"{asked}:{net.our_port}")
    until(lambda: ping(net.host, OURS[0]), 10.0, "they reach us there")
    assert pair.theirs_to_us("red") == f"{asked}:{net.our_port}"
    assert pair.member.tell("ping", THEIRS[0], network="red").startswith("pong")
    assert pair.theirs_to_us("red") == f"{asked}:{net.our_port}"


# --- [20]: another route in the middle ---


def test_another_route_appears(pair: Both) -> None:
    net = pair.nets["red"]
    transfer = streaming(pair, "red")
    pair.ours.run("ip", "route", "add", f"{net.host.v4}/32", "via", pair.lab.hub.v4)
    arrived(pair, "red", transfer)


# --- [12]: a firewall that forgets after 2 s is held open by keepalives each second ---


def test_keepalives_hold_a_firewall_open(pair: Both) -> None:
    net = pair.nets["blue"]
    firewall(pair.ours, net.our_port)
    pair.ours.run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=2")
    pair.ours.run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout_stream=2")
    assert pair.member.tell("ping", THEIRS[0], network="blue").startswith("pong")
    quiet(3.0)
    assert not ping(net.host, OURS[0])
    pair.member.tell("keepalive", "1", network="blue")

    quiet(5.0)
    assert ping(net.host, OURS[0])
    pair.member.tell("keepalive", "0", network="blue")


def quiet(seconds: float) -> None:
    """Nobody says anything for longer than the firewall remembers: what is under test is the time itself."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, seconds + 1, "time passes", interval_s=0.2)


def firewall(host: Host, port: int) -> None:
    """UDP to this port enters only as an answer."""
    rules = [
        "table inet mnwall {",
        "chain in {",
        "type filter hook input priority 0 ;",
        f"udp dport {port} ct state new drop",
        "}",
        "}",
    ]
    subprocess.run(host.enter(["nft", "-f", "-"]), input="\n".join(rules), text=True, check=True, capture_output=True)


def test_no_command_of_the_file_was_run(pair: Both) -> None:
    assert not (pair.lab.folder / "was-run").exists()
    assert pair.member.process.err().count("PostUp would run a command: it is refused and never run") == 2
