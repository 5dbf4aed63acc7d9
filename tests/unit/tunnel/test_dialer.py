"""Names become connections; every refusal is a typed error that is also its built-in."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from meshnode.base.addr import IP, Endpoint
from meshnode.base.errors import AccessDenied, DialError, NameNotFound, PeerOffline, Refused, TimedOut
from meshnode.base.keys import NodePublic
from meshnode.engine.flow import TunnelSocket
from meshnode.tunnel.dialer import Dialer

V4, V6 = IPv4Address("100.64.0.2"), IPv6Address("fd7a:115c:a1e0::2")


def make_socket(ip: IP) -> TunnelSocket:
    one, other = socket.socketpair()
    other.close()
    return TunnelSocket(
        one.detach(), local=Endpoint(ip, 1), remote=Endpoint(ip, 80), peer_key=NodePublic.zero(), flow_id=1
    )


class Tailnet:
    """Answers connects as told, and remembers them."""

    def __init__(self, **answers: DialError | None) -> None:
        self.answers = {V4: answers.get("v4"), V6: answers.get("v6")}
        self.tried: list[IP] = []
        self.never = False
        self.dialer = Dialer(self.connect, self.resolve)

    async def connect(self, ip: IP, port: int) -> TunnelSocket:
        self.tried.append(ip)
        if self.never:
            await asyncio.Event().wait()
        error = self.answers[ip]
        if error is not None:
            raise error
        return make_socket(ip)

    def resolve(self, host: str) -> Sequence[IP]:
        if host == "db":
            return (V4, V6)
        if host == str(V4):
            return (V4,)
        raise NameNotFound(f"no {host}", ("db",))

    def dial(self, host: Any = "db", port: int = 80, timeout: float = 5.0) -> TunnelSocket:
        return asyncio.run(self.dialer.dial(host, port, timeout=timeout))


def test_ipv4_first() -> None:
    tailnet = Tailnet()
    with tailnet.dial() as sock:
        assert sock.remote.ip == V4
    assert tailnet.tried == [V4]


def test_ipv6_where_it_could_differ() -> None:
    for error in (Refused("no"), AccessDenied("no")):
        tailnet = Tailnet(v4=error)
        with tailnet.dial() as sock:
            assert sock.remote.ip == V6


@pytest.mark.parametrize("error", [PeerOffline("gone"), TimedOut("slow"), DialError("odd")])
def test_the_same_absent_peer_is_not_asked_twice(error: DialError) -> None:
    tailnet = Tailnet(v4=error)
    with pytest.raises(type(error)):
        tailnet.dial()
    assert tailnet.tried == [V4]


def test_the_first_error_is_told_with_the_name_in_front() -> None:
    refused = Refused("100.64.0.2:80 refused")
    refused.errno = errno.ECONNREFUSED
    with pytest.raises(ConnectionRefusedError) as caught:
        Tailnet(v4=refused, v6=AccessDenied("policy")).dial()
    assert str(caught.value) == "db: 100.64.0.2:80 refused"
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(Refused) as plain:
        Tailnet(v4=refused).dial(V4)
    assert str(plain.value) == "100.64.0.2:80 refused"


def test_bounded() -> None:
    tailnet = Tailnet()
    tailnet.never = True
    with pytest.raises(TimeoutError) as caught:
        tailnet.dial(timeout=0.01)
    assert isinstance(caught.value, TimedOut)
    assert caught.value.errno == errno.ETIMEDOUT
    assert "db port 80 did not answer within 0.01 s" in str(caught.value)


def test_unknown_name_and_no_port() -> None:
    with pytest.raises(NameNotFound) as caught:
        Tailnet().dial("dbx")
    assert caught.value.near == ("db",)
    with pytest.raises(DialError, match="70000 is no port"):
        Tailnet().dial("db", 70000)
