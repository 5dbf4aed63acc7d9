"""UDP and ICMP between an embedded node and stock ones, both ways, with the policy in force on either side."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import pytest

from interop.bed import Bed
from interop.lab import Host, Process, until
from interop.peers.member import Joining, Member
from interop.peers.tailscaled import SOCKS5, Tailscaled

ANSWER = """
import select, socket, sys
sockets = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
sockets[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
for s, host in zip(sockets, ("0.0.0.0", "::")):
    s.bind((host, 5300))
print("listening", flush=True)
while True:
    for s in select.select(sockets, [], [])[0]:
        data, source = s.recvfrom(2000)
        s.sendto(data.upper(), source)
"""
ASK = """
import select, socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[3]))
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b"from stock")
try:
    print(s.recv(2000).decode())
except OSError as error:
    print(type(error).__name__)
"""
ASK_BY_SOCKS = """
import socket, struct, sys
host, port = sys.argv[4].split(":")
t = socket.create_connection((host, int(port)), 5)
t.sendall(b"\\5\\1\\0")
assert t.recv(2) == b"\\5\\0"
t.sendall(b"\\5\\3\\0\\1" + bytes(6))
reply = t.recv(64)
assert reply[1] == 0, reply
relay = (socket.inet_ntoa(reply[4:8]), struct.unpack("!H", reply[8:10])[0])
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(float(sys.argv[3]))
u.sendto(b"\\0\\0\\0\\1" + socket.inet_aton(sys.argv[1]) + struct.pack("!H", int(sys.argv[2])) + b"from stock", relay)
try:
    print(u.recv(2000)[10:].decode())
except OSError as error:
    print(type(error).__name__)
"""


@dataclass
class Trio:
    bed: Bed
    stock: Tailscaled
    tun: Tailscaled
    member: Member


@pytest.fixture(scope="module")
def trio(bed: Bed) -> Trio:
    stock, tun = bed.stock("stock"), bed.stock("tun", tun=True)
    for node in (stock, tun):
        server = node.host.start("udp-answer", [sys.executable, "-c", ANSWER])
        server.wait_until(partial(is_listening, server), 10.0, "the UDP server listens")
    member = Member(bed.lab.host("member"), Joining("member", bed.headscale.url, bed.headscale.key()))
    stock.wait_for_peer("member")
    tun.wait_for_peer("member")
    return Trio(bed, stock, tun, member)


def ask_us(host: Host, address: str, *, port: int = 53, timeout_s: float = 1.0, program: str = ASK) -> str:
    words = [sys.executable, "-c", program, address, str(port), f"{timeout_s:g}"]
    return host.run(*words, *([SOCKS5] if program is ASK_BY_SOCKS else [])).stdout.strip()


def is_listening(server: Process) -> bool:
    return "listening" in server.out()


def says(trio: Trio, wanted: str, *words: str) -> bool:
    """Whether our answer to this command begins so."""
    return trio.member.tell(*words).startswith(wanted)


def answered(host: Host, address: str) -> bool:
    """Whether a question from this kernel to us is answered."""
    return ask_us(host, address) == "FROM STOCK"


@pytest.mark.parametrize("whom", ["stock", "tun"])
def test_our_question_their_answer(trio: Trio, whom: str) -> None:
    node: Tailscaled = getattr(trio, whom)
    for host in (whom, *node.addresses):
        until(partial(says, trio, "HELLO from ", "ask", host, "5300", "hello"), 15.0, host)


def test_a_closed_port_of_a_kernel_is_refused(trio: Trio) -> None:
    for host in trio.tun.addresses:
        assert trio.member.tell("ask", host, "5399", "hello").startswith("Refused "), host


def test_their_question_our_answer_from_a_kernel(trio: Trio) -> None:
    for address in trio.member.addresses:
        until(partial(answered, trio.tun.host, address), 15.0, address)
        assert ask_us(trio.tun.host, address, port=54) == "ConnectionRefusedError"


def test_their_question_our_answer_from_userspace_by_socks(trio: Trio) -> None:
    address = trio.member.addresses[0]
    until(lambda: ask_us(trio.stock.host, address, program=ASK_BY_SOCKS) == "FROM STOCK", 15.0, address)


@pytest.mark.parametrize("whom", ["stock", "tun"])
def test_echoes_both_ways(trio: Trio, whom: str) -> None:
    node: Tailscaled = getattr(trio, whom)
    for host in node.addresses:
        until(partial(says, trio, f"pong from {host} in ", "ping", host, "1000"), 15.0, host)
    assert "pong from member" in node.cli("ping", "--icmp", "-c", "1", "member").stdout
    if whom == "tun":
        for address in trio.member.addresses:
            trio.tun.host.run("ping", "-c", "3", "-i", "0.05", "-W", "2", address)


@pytest.mark.parametrize("size", [4000, 8000])
def test_long_echoes_from_a_kernel_are_answered(trio: Trio, size: int) -> None:
    for address in trio.member.addresses:
        done = trio.tun.host.run("ping", "-c", "3", "-i", "0.1", "-q", "-W", "5", "-s", str(size), address)
        assert " 0% packet loss" in done.stdout, done.stdout


def test_policy_denies_on_either_side_and_answers_still_enter(trio: Trio) -> None:
    """Only we may ask: their questions die in our filter and are counted; their answers to ours enter."""
    ours, theirs = trio.member.addresses[0], trio.tun.addresses[0]
    rule = {"action": "accept", "src": [ours], "proto": "udp", "dst": [f"{theirs}:5300"]}
    trio.bed.headscale.set_policy({"acls": [rule]})
    until(lambda: ask_us(trio.tun.host, ours, timeout_s=0.3) == "TimeoutError", 10.0, "their question is dropped")
    assert int(trio.member.tell("stat", "ip_filter_drop")) > 0
    assert trio.member.tell("ask", theirs, "5300", "hello") == f"HELLO from {theirs}"
    assert trio.member.tell("ask", theirs, "5399", "hello").startswith("TimeoutError")  # their filter, silently
    trio.bed.headscale.set_policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]})
    until(lambda: ask_us(trio.tun.host, ours, timeout_s=0.3) == "FROM STOCK", 10.0, "open again")
