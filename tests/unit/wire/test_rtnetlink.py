"""rtnetlink messages: a real dump, made ones, and what is cut short."""

from __future__ import annotations

import random
import socket
import struct
from ipaddress import IPv4Address

from meshnode.base.addr import parse_ip
from meshnode.wire import rtnetlink


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link(index: int, flags: int, name: str) -> bytes:
    return (
        struct.pack("=BxHiII", 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0") + attribute(4, b"\0\5\0\0")
    )


def address(index: int, flags: int, *attributes: bytes) -> bytes:
    return struct.pack("=BBBBI", 2, 24, flags, 0, index) + b"".join(attributes)


def framed(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def test_links() -> None:
    found = rtnetlink.parse_link(link(3, 0x1 | 0x10000, "eth0"))
    assert found == rtnetlink.Link(3, "eth0", is_up=True, has_carrier=True)
    pulled = rtnetlink.parse_link(link(3, 0x1, "eth0"))
    assert pulled is not None and pulled.is_up and not pulled.has_carrier


def test_addresses_our_own_end_first() -> None:
    there, here = parse_ip("10.0.0.1"), parse_ip("10.0.0.2")
    found = rtnetlink.parse_address(address(7, 0x80, attribute(1, there.packed), attribute(2, here.packed)))
    assert found is not None and (found.index, found.ip, found.is_usable) == (7, here, True)
    v6 = parse_ip("2001:db8::9")
    for flags, usable in ((0x80, True), (0x40, False), (0x44, True), (0x20, False), (0x08, False)):
        found = rtnetlink.parse_address(address(7, flags, attribute(1, v6.packed)))
        assert found is not None and found.is_usable is usable, hex(flags)
    assert rtnetlink.parse_address(address(7, 0)) is None


def test_a_route_that_the_kernel_cloned() -> None:
    route = struct.Struct("=BBBBBBBBI")
    assert rtnetlink.is_clone(route.pack(10, 128, 0, 0, 254, 0, 0, 1, 0x200))
    assert not rtnetlink.is_clone(route.pack(2, 0, 0, 0, 254, 3, 0, 1, 0))
    assert not rtnetlink.is_clone(b"\2")


def test_several_messages_in_one_datagram_and_a_cut_one() -> None:
    data = framed(16, link(1, 1, "lo")) + framed(20, address(1, 0, attribute(2, b"\x7f\0\0\1")))
    assert [kind for kind, _ in rtnetlink.messages(data)] == [16, 20]
    assert [kind for kind, _ in rtnetlink.messages(data[:-1])] == [16]
    assert list(rtnetlink.messages(struct.pack("=IHHII", 4, 16, 0, 0, 0))) == []


def test_noise_ends_and_never_raises() -> None:
    dice = random.Random(1)
    data = framed(16, link(1, 1, "lo")) + framed(20, address(1, 0, attribute(2, b"\x7f\0\0\1")))
    for _ in range(3000):
        noisy = bytearray(data)
        for _ in range(dice.randrange(1, 8)):
            noisy[dice.randrange(len(noisy))] = dice.randrange(256)
        for _, body in rtnetlink.messages(bytes(noisy[: dice.randrange(len(noisy) + 1)])):
            rtnetlink.parse_link(body)
            rtnetlink.parse_address(body)
            rtnetlink.parse_route(body)
            rtnetlink.is_clone(body)


def test_the_kernel_understands_the_questions() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        sock.send(rtnetlink.ask_links())
        bodies = [body for kind, body in rtnetlink.messages(sock.recv(1 << 16)) if kind == rtnetlink.NEWLINK]
    names = [found.name for body in bodies if (found := rtnetlink.parse_link(body))]
    assert "lo" in names


def test_a_route_by_a_gateway() -> None:
    head = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, 1, 0)
    found = attribute(4, struct.pack("=I", 7)) + attribute(5, b"\xc0\xa8\x32\1") + attribute(7, b"\xc0\xa8\x32\2")
    wanted = rtnetlink.Route(7, parse_ip("192.168.50.1"), parse_ip("192.168.50.2"))
    assert rtnetlink.parse_route(head + found) == wanted
    assert rtnetlink.parse_route(head + found[:8]) == rtnetlink.Route(7, None, None)
    assert rtnetlink.parse_route(head) is None and rtnetlink.parse_route(head[:-1]) is None


def test_the_kernel_says_which_way_it_would_take() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        sock.send(rtnetlink.ask_route(IPv4Address("127.0.0.1")))
        ((kind, body),) = rtnetlink.messages(sock.recv(1 << 16))
    found = rtnetlink.parse_route(body)
    assert kind == rtnetlink.NEWROUTE and found is not None
    assert (socket.if_indextoname(found.index), found.gateway, str(found.source)) == ("lo", None, "127.0.0.1")
