"""Filter rules and grants: read from the wire, compiled for the engine, asked by `whois`.

An entry that cannot be read is left out and named in a complaint; the rest of its rule stands.
The engine's blob (`compile_rules`) is little-endian, with every address as IPv6:
u32 'MNF1', u32 rule count; per rule u8 protocols, u16 sources, u16 targets, then the protocols,
the sources {ip 16, bits u8} and the targets {ip 16, bits u8, first u16, last u16}; at the end
u32 count and {ip 16, bits u8} of addresses that may open nothing towards us.
Source: docs/protocol/control.md 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, summarize_address_range
from types import MappingProxyType
from typing import Any, Final

from meshnode.base.addr import IP, Prefix, parse_ip, parse_prefix
from meshnode.netmap import tailcfg
from meshnode.netmap.model import FilterRule, Grant, Netmap, Node, PortRange

MAGIC: Final = 0x31464E4D
DEFAULT_PROTOCOLS: Final = (6, 17, 1, 58)
"""TCP, UDP, ICMP, ICMPv6: what a rule without protocols means."""
EVERYWHERE: Final[tuple[Prefix, ...]] = (parse_prefix("0.0.0.0/0"), parse_prefix("::/0"))
COUNT_MAX: Final = 65_535
COMPLAINTS_MAX: Final = 20
_PORTS_MAX: Final = 65_535


def read_rules(
    wires: Iterable[tailcfg.WireRule | None], complaints: list[str]
) -> tuple[tuple[FilterRule, ...], tuple[Grant, ...]]:  # fmt: skip
    """Rules and grants out of their wire form; what had to be left out is added to `complaints`."""
    rules: list[FilterRule] = []
    grants: list[Grant] = []
    for wire in wires:
        if wire is None:
            continue
        if wire.src_bits:
            _complain(complaints, "a filter rule of a form older than 2021 was left out")
            continue
        sources, source_caps = _sources(wire.src_ips or (), complaints)
        for grant in wire.cap_grant or ():
            if grant is not None:
                grants.append(_grant(grant, sources, complaints))
        targets = _targets(wire.dst_ports or (), complaints)
        if targets and (sources or source_caps):
            rules.append(FilterRule(sources, targets, _protocols(wire.ip_proto), source_caps))
    return tuple(rules), tuple(grants)


def _sources(texts: Iterable[str], complaints: list[str]) -> tuple[tuple[Prefix, ...], tuple[str, ...]]:
    found: list[Prefix] = []
    caps: list[str] = []
    for text in texts:
        if text.startswith("cap:"):
            caps.append(text[4:])
        else:
            found += _addresses(text, complaints)
    return tuple(found), tuple(caps)


def _targets(
    wires: Iterable[tailcfg.WireTarget | None], complaints: list[str]
) -> tuple[tuple[Prefix, PortRange], ...]:  # fmt: skip
    out: list[tuple[Prefix, PortRange]] = []
    for wire in wires:
        if wire is None:
            continue
        ports = wire.ports or tailcfg.WirePorts()
        first, last = ports.first or 0, ports.last or 0
        if wire.bits is not None or not 0 <= first <= last <= _PORTS_MAX:
            _complain(complaints, "a filter target that cannot be read was left out")
            continue
        out += [(prefix, PortRange(first, last)) for prefix in _addresses(wire.ip or "", complaints)]
    return tuple(out)


def _addresses(text: str, complaints: list[str]) -> Sequence[Prefix]:
    """An address, a prefix, an inclusive range `a-b`, or `*`."""
    if text == "*":
        return EVERYWHERE
    try:
        first, dash, last = text.partition("-")
        if dash:
            return _range(parse_ip(first), parse_ip(last))
        return (parse_prefix(text),)
    except (ValueError, TypeError):
        _complain(complaints, f"the filter address {text[:60]!r} cannot be read and was left out")
        return ()


def _range(first: IP, last: IP) -> Sequence[Prefix]:
    return tuple(summarize_address_range(first, last))


def _protocols(numbers: list[int] | None) -> tuple[int, ...]:
    """None or [] mean the usual four; numbers outside a byte mean nothing, and may leave nothing."""
    return tuple(n for n in numbers if 0 <= n <= 255) if numbers else DEFAULT_PROTOCOLS


def _grant(wire: tailcfg.WireGrant, sources: tuple[Prefix, ...], complaints: list[str]) -> Grant:
    targets: list[Prefix] = []
    for text in wire.dsts or ():
        targets += _addresses(text, complaints)
    caps: dict[str, tuple[Any, ...]] = {name: () for name in wire.caps or ()}
    caps |= {name: tuple(values or ()) for name, values in (wire.cap_map or {}).items()}
    return Grant(sources, tuple(targets), MappingProxyType(caps))


def _complain(complaints: list[str], text: str) -> None:
    if len(complaints) < COMPLAINTS_MAX and text not in complaints:
        complaints.append(text)


# --- towards the engine ---------------------------------------------------------------------------


def poisoned(netmap: Netmap) -> bool:
    """Whether a rule would let in a peer that may only ever reach the peer API: then nothing may enter."""
    barred = [p for peer in netmap.peers.values() if peer.peerapi_only for p in peer.addresses]
    return bool(barred) and any(
        _overlaps(source, prefix) for rule in netmap.rules for source in rule.sources for prefix in barred
    )


def compile_rules(netmap: Netmap) -> bytes:
    """The engine's filter for this netmap: its rules with capability sources resolved, and the jailed."""
    rules = () if poisoned(netmap) else netmap.rules
    peers = netmap.peers.values()
    out = [
        _rule_bytes(rule.protocols[:255], sources[at : at + COUNT_MAX], rule.targets[to : to + COUNT_MAX])
        for rule in rules
        if (sources := _resolved(rule, peers))
        for at in range(0, len(sources), COUNT_MAX)
        for to in range(0, len(rule.targets), COUNT_MAX)
    ]
    jailed = [prefix for peer in peers if peer.jailed for prefix in peer.allowed]
    head = struct.pack("<II", MAGIC, len(out))
    return b"".join([head, *out, struct.pack("<I", len(jailed)), *map(_prefix_bytes, jailed)])


def deny_all() -> bytes:
    """The filter that lets nothing in."""
    return struct.pack("<III", MAGIC, 0, 0)


def allow_all() -> bytes:
    """The filter that lets everything in: for plain WireGuard, where AllowedIPs are the only rule."""
    rule = _rule_bytes(DEFAULT_PROTOCOLS, EVERYWHERE, [(prefix, PortRange(0, _PORTS_MAX)) for prefix in EVERYWHERE])
    return struct.pack("<II", MAGIC, 1) + rule + struct.pack("<I", 0)


def _resolved(rule: FilterRule, peers: Iterable[Node]) -> Sequence[Prefix]:
    if not rule.source_caps:
        return rule.sources
    holders = [p for peer in peers if any(cap in peer.caps for cap in rule.source_caps) for p in peer.addresses]
    return [*rule.sources, *holders]


def _rule_bytes(
    protocols: Sequence[int], sources: Sequence[Prefix], targets: Sequence[tuple[Prefix, PortRange]]
) -> bytes:  # fmt: skip
    parts = [struct.pack("<BHH", len(protocols), len(sources), len(targets)), bytes(protocols)]
    parts += map(_prefix_bytes, sources)
    parts += [_prefix_bytes(prefix) + struct.pack("<HH", ports.first, ports.last) for prefix, ports in targets]
    return b"".join(parts)


def _prefix_bytes(prefix: Prefix) -> bytes:
    packed = prefix.network_address.packed
    if prefix.version == 4:
        return bytes(10) + b"\xff\xff" + packed + bytes((96 + prefix.prefixlen,))
    return packed + bytes((prefix.prefixlen,))


def _overlaps(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


# --- grants ---------------------------------------------------------------------------------------


def caps_between(netmap: Netmap, source: IP, target: IP) -> Mapping[str, tuple[Any, ...]]:
    """Application capabilities that `source` has towards our address `target`.

    Values of equal names are joined. Ask with two addresses of one family: that of the connection.
    """
    caps: dict[str, tuple[Any, ...]] = {}
    for grant in netmap.grants:
        if _contains(grant.sources, source) and _contains(grant.targets, target):
            for name, values in grant.caps.items():
                caps[name] = caps.get(name, ()) + values
    return MappingProxyType(caps)


def peers_with(netmap: Netmap, cap: str) -> list[Node]:
    """The peers that have this application capability towards us, in the order of the netmap."""
    grants = [grant for grant in netmap.grants if cap in grant.caps]
    own = netmap.self_node.ips
    return [
        peer
        for peer in netmap.peers.values()
        if grants and not peer.peerapi_only and any(_is_granted(grants, ip, own) for ip in peer.ips)
    ]


def _is_granted(grants: Iterable[Grant], source: IP, own: Iterable[IP]) -> bool:
    """Addresses of one family speak to each other."""
    return any(
        _contains(grant.sources, source)
        and any(ip.version == source.version and _contains(grant.targets, ip) for ip in own)
        for grant in grants
    )


def caps_towards_us(netmap: Netmap, source: IP) -> Mapping[str, tuple[Any, ...]]:
    """`caps_between` with our own address of the source's family."""
    kind = IPv4Address if source.version == 4 else None
    for own in netmap.self_node.ips:
        if (kind is IPv4Address) == isinstance(own, IPv4Address):
            return caps_between(netmap, source, own)
    return MappingProxyType({})


def _contains(prefixes: Iterable[Prefix], ip: IP) -> bool:
    return any(prefix.version == ip.version and ip in prefix for prefix in prefixes)


def describe(rules: Iterable[FilterRule]) -> list[str]:
    """One line per rule, for `status`: who may reach what."""
    lines: list[str] = []
    for rule in rules:
        sources = [str(prefix) for prefix in rule.sources] + [f"cap:{cap}" for cap in rule.source_caps]
        targets = [f"{prefix}:{_ports(ports)}" for prefix, ports in rule.targets]
        protocols = "" if rule.protocols == DEFAULT_PROTOCOLS else f" proto {','.join(map(str, rule.protocols))}"
        lines.append(f"{', '.join(sources)} → {', '.join(targets)}{protocols}")
    return lines


def _ports(ports: PortRange) -> str:
    if (ports.first, ports.last) == (0, _PORTS_MAX):
        return "*"
    return str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}"
