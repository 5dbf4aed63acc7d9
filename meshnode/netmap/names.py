"""Names ↔ addresses of one snapshot.

A Names is built from a netmap and thrown away with it. A name is a node's, short or full, in any
case, with or without the trailing dot, or an extra record's. Which record types a DNS question gets
is decided in core.answers; here a name simply has all its addresses.
Source: docs/protocol/control.md 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from meshnode.base.addr import IP, parse_ip
from meshnode.base.errors import NameNotFound
from meshnode.netmap.model import Netmap, Node

NEAR_MAX: Final = 3


class Names:
    """Look-ups over one netmap."""

    __slots__ = ("_by_ip", "_by_name", "_extra", "_netmap")

    def __init__(self, netmap: Netmap) -> None:
        self._netmap = netmap
        nodes = [netmap.self_node, *netmap.peers.values()]
        self._by_name: dict[str, Node] = {}
        self._by_ip: dict[IP, Node] = {}
        for node in reversed(nodes):  # first wins, and we come first
            if node.name:
                self._by_name[node.name] = node
            for ip in node.ips:
                self._by_ip[ip] = node
        self._extra: dict[str, list[IP]] = {}
        for name, ip in netmap.dns.extra:
            self._extra.setdefault(name, []).append(ip)

    def addresses(self, host: str) -> tuple[IP, ...]:
        """Where `host` is: an address stands for itself, a name for its node or its extra records.

        NameNotFound with the nearest names. An address outside the tailnet is the dialler's concern.
        """
        try:
            return (parse_ip(host.strip("[]")),)
        except ValueError:
            pass
        node = self.node(host)
        if node is not None:
            return node.ips
        for name in self._candidates(host):
            if name in self._extra:
                return tuple(self._extra[name])
        raise self._unknown(host)

    def node(self, host: str) -> Node | None:
        """The node of this name or address, us included; None if there is none."""
        try:
            return self._by_ip.get(parse_ip(host.strip("[]")))
        except ValueError:
            pass
        for name in self._candidates(host):
            if name in self._by_name:
                return self._by_name[name]
        return None

    def extra(self, host: str) -> tuple[IP, ...]:
        """Addresses of extra records of exactly this full name."""
        return tuple(self._extra.get(_clean(host), ()))

    def owner(self, ip: IP) -> Node | None:
        """The node that has this tailnet address."""
        return self._by_ip.get(ip)

    def _candidates(self, host: str) -> Iterable[str]:
        """The name itself, then completed by our suffix and the search domains, each once."""
        name = _clean(host)
        yield name
        if host.endswith("."):
            return
        seen = {""}
        for domain in (self._netmap.suffix, *self._netmap.dns.domains):
            if domain not in seen:
                seen.add(domain)
                yield f"{name}.{domain}"

    def _unknown(self, host: str) -> NameNotFound:
        from difflib import get_close_matches  # late: only a mistake needs it

        name = _clean(host)
        labels = {node.label: None for node in self._by_name.values()}
        pool = [*labels, *self._extra] if "." not in name else [*self._by_name, *self._extra]
        near = get_close_matches(name, pool, n=NEAR_MAX, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else _what_there_is(len(self._netmap.peers))
        return NameNotFound(f"no node of this tailnet is called {host!r}{hint}", near)


def _what_there_is(peers: int) -> str:
    if not peers:
        return "; this node sees no peers at all, see the policy of the tailnet"
    return f"; `meshnode status` lists the {peers} peers this node sees"


def _clean(host: str) -> str:
    return host.strip().rstrip(".").lower()
