"""What a NAT maps and filters, found out with plain sockets in the namespaces on both sides of it.

One client socket asks four endpoints (two addresses of the hub, two ports each), which tells the mapping; then
endpoints that it never asked send to what they saw, which tells the filter. What has to stay out is followed by
an answer that may come in: when that has arrived, nothing else is on its way.
Source: RFC 4787 section 4, RFC 5780 section 4.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from interop.lab import Host, Lab

ADDRESSES = ("10.77.0.1", "10.77.0.251", "10.77.0.252")
"""Of the hub: two that the client asks, and one that it does not."""
ARRIVES_S = 5.0
STAYS_OUT_S = 0.1
"""How much longer than the answer that follows it a packet may take."""
_ports = itertools.count(20000, 10)

Address = tuple[str, int]


@dataclass(frozen=True)
class Kind:
    """A NAT in the words of RFC 4787: EIM, ADM, APDM; EIF, ADF, APDF. Empty: nothing passes."""

    mapping: str
    filtering: str
    keeps_port: bool = False


@contextlib.contextmanager
def extra_addresses(lab: Lab) -> Iterator[None]:
    """The hub has all of ADDRESSES."""
    for address in ADDRESSES[1:]:
        lab.hub.ip("address", "add", f"{address}/24", "dev", "br0")
    yield
    for address in ADDRESSES[1:]:
        lab.hub.ip("address", "delete", f"{address}/24", "dev", "br0")


def open_socket(host: Host, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    with host.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(ARRIVES_S)
    return sock


def ask(client: socket.socket, server: socket.socket, tries: int = 1) -> Address | None:
    """Where the server sees the client; None if its questions do not arrive."""
    for _ in range(tries):
        client.sendto(b"ask", server.getsockname())
        with contextlib.suppress(TimeoutError):
            return tuple(server.recvfrom(100)[1])
    return None


def gets_in(client: socket.socket, mapped: Address, stranger: socket.socket, known: socket.socket) -> bool:
    """Whether what `stranger` sends to `mapped` reaches the client; `known` may send there."""
    stranger.sendto(b"stranger", mapped)
    known.sendto(b"known", mapped)
    heard = {client.recvfrom(100)[0]}
    client.settimeout(STAYS_OUT_S)
    with contextlib.suppress(TimeoutError):
        heard.add(client.recvfrom(100)[0])
    client.settimeout(ARRIVES_S)
    assert b"known" in heard, "the answer of a server that was asked does not come back"
    return b"stranger" in heard


def classify(lab: Lab, host: Host, *, blocked_after_s: float = 0.3, tries: int = 3) -> Kind:
    """The kind of NAT between `host` and the hub, which has `extra_addresses`."""
    first = next(_ports)
    with contextlib.ExitStack() as stack:

        def at(address: int, port: int) -> socket.socket:
            return stack.enter_context(open_socket(lab.hub, ADDRESSES[address], first + port))

        client = stack.enter_context(open_socket(host))
        asked = [at(address, port) for address in (0, 1) for port in (0, 1)]
        for server in asked:
            server.settimeout(blocked_after_s)
        first_seen = ask(client, asked[0], tries)
        if first_seen is None:
            return Kind("", "")
        seen = [first_seen, *(ask(client, server, tries) for server in asked[1:])]
        local_port = client.getsockname()[1]
        from_nowhere = gets_in(client, first_seen, at(2, 2), asked[0])
        from_port = gets_in(client, first_seen, at(0, 3), asked[0])
    if len(set(seen)) == 1:
        mapping = "EIM"
    else:
        mapping = "ADM" if seen[0] == seen[1] and seen[2] == seen[3] else "APDM"
    filtering = "EIF" if from_nowhere else "ADF" if from_port else "APDF"
    return Kind(mapping, filtering, mapping == "EIM" and first_seen[1] == local_port)
