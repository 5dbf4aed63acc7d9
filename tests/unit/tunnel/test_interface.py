"""The kernel interface's layout and its steps, what is said when it cannot be made, and the bytes of rtnetlink."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest

from meshnode.base.addr import IP, Prefix
from meshnode.base.errors import ConfigError
from meshnode.tunnel import netlink
from meshnode.tunnel.interface import Interface, Layout, layout_of, merging, steps

OWN4, OWN6 = ip_address("100.64.0.1"), ip_address("fd7a:115c:a1e0::1")
PEER4, PEER6 = ip_network("100.64.0.2/32"), ip_network("fd7a:115c:a1e0::2/128")


class FakeEngine:
    """Makes an interface, or refuses to as told."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal

    def open_tun(self, name: str = "", *, fd: int = -1) -> str:
        if self.refusal is not None:
            raise self.refusal
        return "lo"  # one that has an index everywhere

    def set_tun_merge(self, *, tcp: bool, udp: bool) -> None:
        raise AssertionError("not asked for")


class FakeKernel:
    """Takes messages; answers with the errno of each kind."""

    def __init__(self, **refusals: int) -> None:
        self.refusals = refusals
        self.batches: list[list[netlink.Message]] = []

    def __call__(self, messages: Sequence[netlink.Message]) -> list[int]:
        self.batches.append(list(messages))
        names = {16: "link", 20: "address", 21: "no_address", 24: "route", 25: "no_route"}
        return [self.refusals.get(names[kind] + ("6" if body[0] == socket.AF_INET6 else ""), 0)
                for kind, _, body in messages]  # fmt: skip


def what(before: Layout, after: Layout) -> list[str]:
    return [f"{'+' if s.is_add else '-'}{s.what}" for s in steps(7, before, after)]


def test_a_layout_routes_peers_from_our_address_of_their_family() -> None:
    both = layout_of((OWN4, OWN6), (PEER4, PEER6))
    assert both.routes == {(PEER4, OWN4), (PEER6, OWN6)}
    assert layout_of((OWN4,), (PEER4, PEER6)).routes == {(PEER4, OWN4)}
    assert layout_of((OWN4, ip_address("100.64.0.9")), (PEER4,)).routes == {(PEER4, OWN4)}


def test_a_tailnets_owner_turns_merging_off() -> None:
    assert merging({"funnel": ()}) == (True, True)
    assert merging({"disable-tun-tcp-gro": ()}) == (False, True)
    assert merging({"disable-tun-udp-gro": ()}) == (True, False)


def test_steps_are_what_changed_in_an_order_the_kernel_takes() -> None:
    nothing, one = Layout(), layout_of((OWN4, OWN6), (PEER4, PEER6))
    assert what(nothing, one) == [
        "+address 100.64.0.1",
        "+address fd7a:115c:a1e0::1",
        "+route to 100.64.0.2/32",
        "+route to fd7a:115c:a1e0::2/128",
    ]
    assert what(one, one) == []
    more = layout_of((OWN4, OWN6), (PEER4, PEER6, ip_network("100.64.0.3/32")))
    assert what(one, more) == ["+route to 100.64.0.3/32"]
    assert what(more, one) == ["-route to 100.64.0.3/32"]
    moved = layout_of((ip_address("100.64.0.7"),), (PEER4,))
    assert what(layout_of((OWN4,), (PEER4,)), moved) == [
        "-route to 100.64.0.2/32",
        "+address 100.64.0.7",
        "+route to 100.64.0.2/32",
        "-address 100.64.0.1",
    ]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (OSError(errno.ENOENT, "", "/dev/net/tun"), "/dev/net/tun cannot be opened: no such file or directory; load"),
        (OSError(errno.EPERM, "", "/dev/net/tun"), "/dev/net/tun cannot be opened: operation not permitted; load"),
        (OSError(errno.EPERM, "", "mesh0"), "interface mesh0 cannot be made: CAP_NET_ADMIN is missing; run as root"),
        (OSError(errno.EBUSY, "", "mesh0"), "interface mesh0 cannot be made: there is one of that name; choose"),
        (OSError(errno.EINVAL, "", "mesh0"), "interface mesh0 cannot be made: invalid argument"),
        (ValueError("x"), "'mesh0' is no name for an interface"),
    ],
)
def test_what_stands_in_the_way_is_named(refusal: Exception, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Interface.open(FakeEngine(refusal), "mesh0", 1280, run=FakeKernel())
    assert str(caught.value).startswith(f"tun: {said}")


def test_a_kernel_that_refuses_to_bring_it_up() -> None:
    with pytest.raises(ConfigError, match="interface lo cannot be brought up: operation not permitted"):
        Interface.open(FakeEngine(), "lo", 1280, run=FakeKernel(link=errno.EPERM))


def test_only_differences_reach_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = FakeKernel()
    interface = Interface.open(FakeEngine(), "mesh0", 1280, run=kernel)
    assert interface.name == "lo"
    interface.apply(layout_of((OWN4,), (PEER4,)))
    interface.apply(layout_of((OWN4,), (PEER4,)))
    assert [len(batch) for batch in kernel.batches] == [2, 2, 0]
    assert kernel.batches[0] == [netlink.link_up(1, 1280), netlink.super_packets(1, 49)]


def test_without_ipv6_the_rest_is_set_up() -> None:
    kernel = FakeKernel(address6=errno.EACCES, route6=errno.ENODEV)
    interface = Interface.open(FakeEngine(), "mesh0", 1280, run=kernel)
    interface.apply(layout_of((OWN4, OWN6), (PEER4, PEER6)))
    interface.apply(layout_of((OWN4, OWN6), (PEER4, PEER6, ip_network("fd7a:115c:a1e0::3/128"))))
    assert [len(batch) for batch in kernel.batches] == [2, 4, 0]


def test_netlink_messages_have_the_kernels_layout() -> None:
    kind, flags, body = netlink.link_up(5, 1280)
    assert (kind, flags) == (16, 0)
    assert struct.unpack_from("=BxHiIIHHI", body) == (0, 0, 5, 1, 1, 8, 4, 1280)
    kind, _, body = netlink.super_packets(5, 49)
    assert kind == 16 and struct.unpack_from("=BxHiIIHHI", body) == (0, 0, 5, 0, 0, 8, 40, 49)
    kind, flags, body = netlink.address(5, OWN4, add=True)
    assert (kind, flags) == (20, 0x600)
    assert struct.unpack_from("=BBBBI", body) == (socket.AF_INET, 32, 0, 0, 5)
    assert body[8:] == struct.pack("=HH4sHH4s", 8, 2, OWN4.packed, 8, 1, OWN4.packed)
    kind, _, body = netlink.route(5, PEER6, OWN6, add=False)
    assert kind == 25 and body[:2] == bytes((socket.AF_INET6, 128))
    assert PEER6.network_address.packed in body and OWN6.packed in body


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel answers others with EPERM throughout")
def test_the_kernel_answers_each_message_with_its_errno() -> None:
    absent: Prefix = ip_network("203.0.113.77/32")
    address: IP = ip_address("203.0.113.78")
    nowhere = 2**30
    messages = [netlink.route(nowhere, absent, address, add=False), netlink.address(nowhere, address, add=True)] * 70
    results = netlink.run(messages)
    assert len(results) == 140 and set(results[1::2]) == {errno.ENODEV} and 0 not in results
    assert netlink.run([]) == []
