"""Rule sets of nftables for every kind of NAT, as text.

One function a table, one statement a line (nft 1.0.6 wants that). The router's devices are `wan` and
`br-lan`. What each kind maps and filters is what `interop/scenarios/test_nat_types.py` measures.
Source: RFC 4787; docs/nat.md.
"""

from __future__ import annotations

from enum import Enum

LEARNED_FOR = "2m"
BLOCK = (40000, 40063)
"""The ports a customer of a carrier's NAT gets."""


class Nat(Enum):
    """What stands between a LAN and the rest."""

    ONE_TO_ONE = "1:1"
    FULL_CONE = "full cone"
    ADDRESS_RESTRICTED = "addr-restricted"
    PORT_RESTRICTED = "port-restricted"
    PORT_RESTRICTED_OPEN = "PR*"
    """Port-restricted, and the router's own ports are not closed: a probe that comes early spoils the mapping."""
    ADDRESS_DEPENDENT = "ADM"
    SYMMETRIC = "symmetric"
    SYMMETRIC_BLOCK = "symmetric block"
    UDP_BLOCKED = "UDP blocked"
    ONLY_UDP_53 = "UDP 53 only"
    ONLY_TCP_443 = "TCP 443 only"


_LEARNING = (Nat.FULL_CONE, Nat.ADDRESS_RESTRICTED)


def router(nat: Nat, wan: str, lan: str, host: str = "", *, hairpin: bool = False) -> str:
    """All rules of a router: its NAT and its closed input. wan: its address; lan: prefix; host: of 1:1."""
    tables = [f"table ip nat {{\n{_translation(nat, wan, lan, host, hairpin)}\n}}"]
    if nat not in (Nat.PORT_RESTRICTED_OPEN, Nat.ONE_TO_ONE):
        tables.append(_closed_input())
    tables += [_forward(line) for line in _BLOCKS.get(nat, ())]
    return "\n".join(tables)


def _translation(nat: Nat, wan: str, lan: str, host: str, hairpin: bool) -> str:
    if nat is Nat.ONE_TO_ONE:
        inward = _chain("pre", "nat hook prerouting priority -100", f'iifname "wan" dnat to {host}')
        return inward + "\n" + _chain("post", "nat hook postrouting priority 100", f'oifname "wan" snat to {wan}')
    parts, before = [], []
    if nat in _LEARNING or hairpin:
        parts.append(_learned(nat))
    if nat is Nat.FULL_CONE:
        before.append('iifname "wan" meta l4proto udp dnat ip addr . port to udp dport map @fc')
    if nat is Nat.ADDRESS_RESTRICTED:
        known = "ip saddr . udp dport @ok"
        before.append(f'iifname "wan" meta l4proto udp {known} dnat ip addr . port to udp dport map @fc')
    after = [_outward(nat, wan)]
    if hairpin:
        before.append(f'iifname "br-lan" ip daddr {wan} meta l4proto udp dnat ip addr . port to udp dport map @fc')
        after.insert(0, f'oifname "br-lan" ip saddr {lan} snat to {wan}')
    if before:
        parts.append(_chain("pre", "nat hook prerouting priority -100", *before))
    parts.append(_chain("post", "nat hook postrouting priority 100", *after))
    return "\n".join(parts)


def _outward(nat: Nat, wan: str) -> str:
    if nat is Nat.ADDRESS_DEPENDENT:
        port = "jhash ip saddr . udp sport . ip daddr mod 20000 offset 40000"
        return f'oifname "wan" meta l4proto udp snat ip to {wan} : {port}\noifname "wan" masquerade'
    if nat is Nat.SYMMETRIC:
        return 'oifname "wan" masquerade fully-random'
    if nat is Nat.SYMMETRIC_BLOCK:
        ports = f"{BLOCK[0]}-{BLOCK[1]}"
        return f'oifname "wan" meta l4proto udp masquerade to :{ports} fully-random\noifname "wan" masquerade'
    return 'oifname "wan" masquerade'


def _learned(nat: Nat) -> str:
    """Which inner address a mapped port belongs to; port-keyed, so hosts of a LAN need ports of their own."""
    learn = ['oifname "wan" meta l4proto udp update @fc { udp sport : ip saddr . udp sport }']
    text = _named("map fc", "type inet_service : ipv4_addr . inet_service")
    if nat is Nat.ADDRESS_RESTRICTED:
        learn.append('oifname "wan" meta l4proto udp update @ok { ip daddr . udp sport }')
        text += "\n" + _named("set ok", "type ipv4_addr . inet_service")
    return text + "\n" + _chain("learn", "filter hook postrouting priority 90", *learn)


def _named(what: str, kind: str) -> str:
    return f"{what} {{\n{kind}\nflags dynamic,timeout\ntimeout {LEARNED_FOR}\n}}"


def _closed_input() -> str:
    """Without it, what comes unasked makes an entry of its own and moves a mapping that comes later."""
    chain = _chain("input", "filter hook input priority 0", 'iifname "wan" ct state new drop')
    return f"table ip f {{\n{chain}\n}}"


def _chain(name: str, hook: str, *lines: str) -> str:
    return "\n".join([f"chain {name} {{", f"type {hook}", *lines, "}"])


_BLOCKS = {
    Nat.UDP_BLOCKED: ("meta l4proto udp drop",),
    Nat.ONLY_UDP_53: ("meta l4proto udp udp dport != 53 ct direction original drop",),
    Nat.ONLY_TCP_443: ("meta l4proto udp drop\nmeta l4proto tcp tcp dport != 443 ct direction original drop",),
}


def _forward(lines: str, name: str = "f_block") -> str:
    return f"table inet {name} {{\n{_chain('through', 'filter hook forward priority -10', lines)}\n}}"


# ---- what a router does to packets on their way, beside its NAT -------------------------------------

IN, OUT = 'iifname "wan" ', 'oifname "wan" '
BOTH = ""
WIREGUARD_DATA = "0x04000000"
WIREGUARD_ALL = "{ 0x01000000, 0x02000000, 0x03000000, 0x04000000 }"


def cut_udp(way: str = BOTH, name: str = "cut") -> str:
    """All UDP one way or both."""
    return _forward(f"{way}meta l4proto udp drop", name)


def scrub_wireguard(kinds: str = WIREGUARD_DATA, way: str = BOTH, name: str = "scrub") -> str:
    """WireGuard messages of these types, one way or both; DISCO and STUN pass."""
    return _forward(f"{way}meta l4proto udp @th,64,32 {kinds} drop", name)


def hole(limit: int, name: str = "hole") -> str:
    """UDP in IPv4 packets above `limit` bytes vanishes without a word, as where a tunnel eats into the MTU."""
    return _forward(f"meta l4proto udp ip length > {limit} drop", name)


def count_udp(address: str, name: str = "count") -> str:
    """A counter of what passes to and from one address, read with `nft -j list table inet NAME`."""
    lines = f"ip saddr {address} meta l4proto udp counter\nip daddr {address} meta l4proto udp counter"
    return _forward(lines, name)


def remap_udp(wan: str, seed: int) -> str:
    """From now on UDP of new flows leaves from other ports, for all destinations the same: with forgotten flows, a
    rebinding. Another seed, other ports."""
    port = f"jhash ip saddr . udp sport mod 20000 seed {seed} offset 40000"
    line = f'oifname "wan" meta l4proto udp snat ip to {wan} : {port}'
    return f"table ip remap {{\n{_chain('post', 'nat hook postrouting priority 99', line)}\n}}"


def drop_table(name: str, family: str = "inet") -> str:
    return f"delete table {family} {name}"
