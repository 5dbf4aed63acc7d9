"""Wire structs of `tailcfg` → values of `model`: every text becomes a value once, here.

A node without an id or a key, or with an address that is none, breaks its message. Endpoints we
cannot use (a zone, nonsense) are left out instead: other clients put all kinds of things there.
Source: docs/protocol/control.md 4.5, 6, 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Any, Final

from meshnode.base.addr import IP, Endpoint, Prefix, RegionId, parse_ip, parse_prefix
from meshnode.base.errors import KeyFormatError, RemoteProtocolError
from meshnode.base.keys import DiscoPublic, MachinePublic, NodePublic
from meshnode.base.units import Unix
from meshnode.netmap import tailcfg
from meshnode.netmap.model import DnsConfig, Node, RelayNode, RelayRegion, Resolver, User

LEGACY_DERP_PREFIX: Final = "127.3.3.40:"
_NO_CAPS: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})


def node_of(wire: tailcfg.WireNode, *, wall: Unix) -> Node:
    """The node; `wall` is the server's time, for what has expired. RemoteProtocolError if it is broken."""
    if not wire.id or not wire.key:
        raise RemoteProtocolError("the control server sent a node without an id or a key")
    addresses = prefixes(wire.addresses or ())
    # Absent means "the same"; an empty list really means none.
    same = wire.allowed_ips is None or wire.allowed_ips == wire.addresses
    allowed = addresses if same else prefixes(wire.allowed_ips or ())
    if wire.unsigned_peer_api_only:
        allowed = addresses
    expiry = tailcfg.parse_time(wire.key_expiry)
    return Node(
        id=wire.id,
        stable_id=wire.stable_id or str(wire.id),
        name=clean_name(wire.name),
        user_id=wire.user or 0,
        key=node_key(wire.key),
        machine=_machine_key(wire.machine),
        disco=disco_key(wire.disco_key),
        addresses=addresses,
        allowed=allowed,
        endpoints=endpoints(wire.endpoints or ()),
        home=RegionId(wire.home_derp or _legacy_region(wire.legacy_derp)),
        hostinfo=MappingProxyType(wire.hostinfo or {}),
        tags=tuple(wire.tags or ()),
        routes=prefixes(wire.primary_routes or ()),
        online=wire.online,
        last_seen=tailcfg.parse_time(wire.last_seen),
        created=tailcfg.parse_time(wire.created),
        key_expiry=expiry,
        expired=bool(wire.expired) or (expiry is not None and expiry < wall),
        authorized=wire.machine_authorized is not False,
        caps=caps_of(wire.cap_map, wire.capabilities),
        wireguard_only=bool(wire.is_wireguard_only),
        jailed=bool(wire.is_jailed),
        peerapi_only=bool(wire.unsigned_peer_api_only),
        masquerade4=_ip_or_none(wire.masquerade4),
        masquerade6=_ip_or_none(wire.masquerade6),
    )


def clean_name(name: str | None) -> str:
    """Lower case without the trailing dot."""
    return (name or "").rstrip(".").lower()


def caps_of(cap_map: Mapping[str, list[Any] | None] | None, legacy: Iterable[str] | None = None) -> Mapping[str, Any]:
    """Capability → values; a legacy capability has none. Presence is the signal."""
    if not cap_map and not legacy:
        return _NO_CAPS
    caps = {name: tuple(values or ()) for name, values in (cap_map or {}).items()}
    for name in legacy or ():
        caps.setdefault(name, ())
    return MappingProxyType(caps)


def node_key(text: str) -> NodePublic:
    """A node key that is one. RemoteProtocolError for anything else, the zero key included."""
    try:
        key = NodePublic.parse(text)
    except KeyFormatError as error:
        raise RemoteProtocolError(f"the control server sent a broken node key: {error}") from None
    if key.is_zero:
        raise RemoteProtocolError("the control server sent a node with the zero key")
    return key


def disco_key(text: str | None) -> DiscoPublic | None:
    """A disco key, or None for the zero key and for absence."""
    if not text:
        return None
    try:
        key = DiscoPublic.parse(text)
    except KeyFormatError as error:
        raise RemoteProtocolError(f"the control server sent a broken disco key: {error}") from None
    return None if key.is_zero else key


def _machine_key(text: str | None) -> MachinePublic | None:
    try:
        key = MachinePublic.parse(text or "")
    except KeyFormatError:
        return None  # informative only
    return None if key.is_zero else key


def prefixes(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """Prefixes; one with host bits or no prefix at all breaks the message."""
    try:
        return tuple(parse_prefix(text) for text in texts)
    except ValueError as error:
        raise RemoteProtocolError(f"the control server sent a broken address: {error}") from None


def endpoints(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """The endpoints that can be used, in their order, each once."""
    out: dict[Endpoint, None] = {}
    for text in texts:
        try:
            endpoint = Endpoint.parse(text)
        except ValueError:
            continue
        zoned = isinstance(endpoint.ip, IPv6Address) and endpoint.ip.scope_id is not None
        if endpoint.port and not zoned and not endpoint.ip.is_unspecified and not endpoint.ip.is_multicast:
            out[endpoint] = None
    return tuple(out)


def _legacy_region(text: str | None) -> int:
    if not text or not text.startswith(LEGACY_DERP_PREFIX):
        return 0
    digits = text[len(LEGACY_DERP_PREFIX) :]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 8 else 0


def _ip_or_none(text: str | None) -> IP | None:
    try:
        return parse_ip(text) if text else None
    except ValueError:
        raise RemoteProtocolError(f"the control server sent a broken masquerade address: {text!r}") from None


def user_of(wire: tailcfg.WireProfile) -> User | None:
    """A user profile; None without an id."""
    if not wire.id:
        return None
    login = wire.login_name or ""
    return User(wire.id, login, wire.display_name or login, wire.profile_pic_url or "")


def region_of(wire: tailcfg.WireDerpRegion, region: RegionId) -> RelayRegion:
    """A relay region with the servers we can use, in order of preference."""
    servers = tuple(_relay_of(node, region) for node in wire.nodes or () if node is not None and node.host_name)
    return RelayRegion(
        id=region,
        code=wire.region_code or str(region),
        name=wire.region_name or wire.region_code or str(region),
        nodes=servers,
        avoid=bool(wire.avoid),
        no_home=bool(wire.no_measure_no_home),
    )


def _relay_of(wire: tailcfg.WireDerpNode, region: RegionId) -> RelayNode:
    return RelayNode(
        name=wire.name or wire.host_name or "",
        region=region,
        host=wire.host_name or "",
        cert_name=wire.cert_name or "",
        ipv4=wire.ipv4 or "",
        ipv6=wire.ipv6 or "",
        port=wire.derp_port or 443,
        stun_port=wire.stun_port or 3478,
        stun_only=bool(wire.stun_only),
        insecure=bool(wire.insecure),
        stun_test_ip=wire.stun_test_ip or "",
        can_port80=bool(wire.can_port80),
    )


def dns_of(wire: tailcfg.WireDns) -> DnsConfig:
    """The DNS configuration. Extra records that are no addresses are left out."""
    extra: list[tuple[str, IP]] = []
    for record in wire.extra_records or ():
        if record is None or not record.name or (record.type or "").upper() not in ("", "A", "AAAA"):
            continue
        try:
            extra.append((clean_name(record.name), parse_ip(record.value or "")))
        except ValueError:
            continue
    routes = {clean_name(suffix): _resolvers(servers) for suffix, servers in (wire.routes or {}).items()}
    return DnsConfig(
        magic=bool(wire.proxied),
        domains=tuple(clean_name(domain) for domain in wire.domains or ()),
        resolvers=_resolvers(wire.resolvers),
        fallback=_resolvers(wire.fallback_resolvers),
        routes=MappingProxyType(routes),
        extra=tuple(extra),
        cert_domains=tuple(wire.cert_domains or ()),
    )


def _resolvers(wires: Iterable[tailcfg.WireResolver | None] | None) -> tuple[Resolver, ...]:
    out: list[Resolver] = []
    for wire in wires or ():
        if wire is None or not wire.addr:
            continue
        bootstrap: list[IP] = []
        for text in wire.bootstrap or ():
            try:
                bootstrap.append(parse_ip(text))
            except ValueError:
                continue
        out.append(Resolver(wire.addr, tuple(bootstrap), bool(wire.use_with_exit_node)))
    return tuple(out)
