"""The JSON dialect of control: each message as a struct, what absence means, times and texts.

Structs carry wire values; `null` and absent mean the same for every field we read, and are None;
empty is not None. Unknown fields are skipped by the decoder. Turning them into the values of
`model` is the work of `translate`; merging them that of `delta`.
Source: docs/protocol/control.md 0.2, 3, 4, 7, 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.base.units import Unix
from meshnode.netmap.model import User

CAPABILITY_VERSION: Final = 131
"""The one integer claimed in /key, Noise, register and map. What it obliges us to: control.md 9."""
LB_HEADER: Final = "ts-lb"
LOGOUT_TIME: Final = "1970-01-01T00:02:03Z"
"""Any past instant logs out; this is the one the Go client sends."""
NO_TIME: Final = "0001-01-01T00:00:00Z"

T = TypeVar("T")


class EndpointKind(IntEnum):
    """How we know an endpoint of ours (MapRequest.EndpointTypes)."""

    UNKNOWN = 0
    LOCAL = 1
    STUN = 2
    PORTMAPPED = 3
    STUN_LOCAL_PORT = 4
    EXPLICIT = 5


class _Wire(Struct, rename="pascal", gc=False):
    """Base of every struct: Go's field names."""


class KeyReply(Struct):
    """Answer of GET /key."""

    public_key: str | None = field(name="publicKey", default=None)


class EarlyPayload(Struct):
    """JSON of EarlyNoise. Nobody answers the challenge today."""

    node_key_challenge: str | None = field(name="nodeKeyChallenge", default=None)


# --- register -------------------------------------------------------------------------------------


class WireUser(_Wire):
    """Owner of a node, in RegisterResponse."""

    id: int | None = field(name="ID", default=None)
    display_name: str | None = None
    profile_pic_url: str | None = field(name="ProfilePicURL", default=None)


class WireLogin(_Wire):
    """The identity provider's view of the owner."""

    id: int | None = field(name="ID", default=None)
    login_name: str | None = None
    display_name: str | None = None


class RegisterResponse(_Wire):
    """Answer of /machine/register. A non-empty `error` makes every other field void."""

    user: WireUser | None = None
    login: WireLogin | None = None
    node_key_expired: bool | None = None
    machine_authorized: bool | None = None
    auth_url: str | None = field(name="AuthURL", default=None)
    node_key_signature: str | None = None
    error: str | None = None

    def to_user(self) -> User | None:
        """The owner, if the reply names one."""
        user, login = self.user or WireUser(), self.login or WireLogin()
        ident = user.id or login.id
        if not ident:
            return None
        name = login.login_name or user.display_name or ""
        shown = user.display_name or login.display_name or name
        return User(ident, name, shown, user.profile_pic_url or "")


def emit_register(
    *,
    version: int,
    node_key: NodePublic,
    hostinfo: Mapping[str, Any],
    old_node_key: NodePublic | None = None,
    auth_key: str = "",
    followup: str = "",
    ephemeral: bool = False,
    expiry: str = NO_TIME,
) -> bytes:
    """A RegisterRequest. Hostinfo must be complete: a missing one is stored as empty."""
    request: dict[str, Any] = {
        "Version": version,
        "NodeKey": str(node_key),
        "OldNodeKey": str(old_node_key or NodePublic.zero()),
        "NLKey": "nlpub:" + "0" * 64,
        "Expiry": expiry,
        "Followup": followup,
        "Hostinfo": hostinfo,
        "Ephemeral": ephemeral,
        "NodeKeySignature": None,
    }
    if auth_key:
        request["Auth"] = {"AuthKey": auth_key}
    return msgspec.json.encode(request)


def parse_register(body: bytes) -> RegisterResponse | None:
    """The reply; None for the bare `null` of a deleted node. RemoteProtocolError for anything else."""
    return _decode(_REGISTER, body, "registration reply")


# --- map ------------------------------------------------------------------------------------------


class WireNode(_Wire):
    """tailcfg.Node: us or a peer. Fields we do not use are not listed."""

    id: int | None = field(name="ID", default=None)
    stable_id: str | None = field(name="StableID", default=None)
    name: str | None = None
    user: int | None = None
    key: str | None = None
    key_expiry: str | None = None
    machine: str | None = None
    disco_key: str | None = None
    addresses: list[str] | None = None
    allowed_ips: list[str] | None = field(name="AllowedIPs", default=None)
    endpoints: list[str] | None = None
    home_derp: int | None = field(name="HomeDERP", default=None)
    legacy_derp: str | None = field(name="DERP", default=None)
    hostinfo: dict[str, Any] | None = None
    created: str | None = None
    tags: list[str] | None = None
    primary_routes: list[str] | None = None
    last_seen: str | None = None
    online: bool | None = None
    machine_authorized: bool | None = None
    capabilities: list[str] | None = None
    cap_map: dict[str, list[Any] | None] | None = None
    unsigned_peer_api_only: bool | None = field(name="UnsignedPeerAPIOnly", default=None)
    expired: bool | None = None
    masquerade4: str | None = field(name="SelfNodeV4MasqAddrForThisPeer", default=None)
    masquerade6: str | None = field(name="SelfNodeV6MasqAddrForThisPeer", default=None)
    is_wireguard_only: bool | None = field(name="IsWireGuardOnly", default=None)
    is_jailed: bool | None = None


class WirePeerChange(_Wire):
    """tailcfg.PeerChange: what is present replaces."""

    node_id: int | None = field(name="NodeID", default=None)
    derp_region: int | None = field(name="DERPRegion", default=None)
    cap_map: dict[str, list[Any] | None] | None = None
    endpoints: list[str] | None = None
    key: str | None = None
    disco_key: str | None = None
    online: bool | None = None
    last_seen: str | None = None
    key_expiry: str | None = None
    """The zero time clears the expiry; absence leaves it."""


class WireDerpNode(_Wire):
    """tailcfg.DERPNode."""

    name: str | None = None
    region_id: int | None = field(name="RegionID", default=None)
    host_name: str | None = None
    cert_name: str | None = None
    ipv4: str | None = field(name="IPv4", default=None)
    ipv6: str | None = field(name="IPv6", default=None)
    stun_port: int | None = field(name="STUNPort", default=None)
    stun_only: bool | None = field(name="STUNOnly", default=None)
    derp_port: int | None = field(name="DERPPort", default=None)
    insecure: bool | None = field(name="InsecureForTests", default=None)
    stun_test_ip: str | None = field(name="STUNTestIP", default=None)
    can_port80: bool | None = field(name="CanPort80", default=None)


class WireDerpRegion(_Wire):
    """tailcfg.DERPRegion."""

    region_id: int | None = field(name="RegionID", default=None)
    region_code: str | None = None
    region_name: str | None = None
    avoid: bool | None = None
    no_measure_no_home: bool | None = None
    nodes: list[WireDerpNode | None] | None = None


class WireHomeParams(_Wire):
    """tailcfg.DERPHomeParams."""

    region_score: dict[int, float] | None = None


class WireDerpMap(_Wire):
    """tailcfg.DERPMap; absent `regions` keeps those we have."""

    home_params: WireHomeParams | None = None
    regions: dict[int, WireDerpRegion | None] | None = None


class WireResolver(_Wire):
    """dnstype.Resolver."""

    addr: str | None = None
    bootstrap: list[str] | None = field(name="BootstrapResolution", default=None)
    use_with_exit_node: bool | None = None


class WireRecord(_Wire):
    """tailcfg.DNSRecord."""

    name: str | None = None
    type: str | None = None
    value: str | None = None


class WireDns(_Wire):
    """tailcfg.DNSConfig; always replaced as a whole."""

    resolvers: list[WireResolver | None] | None = None
    fallback_resolvers: list[WireResolver | None] | None = None
    routes: dict[str, list[WireResolver | None] | None] | None = None
    domains: list[str] | None = None
    proxied: bool | None = None
    cert_domains: list[str] | None = None
    extra_records: list[WireRecord | None] | None = None


class WirePorts(_Wire):
    """tailcfg.PortRange."""

    first: int | None = None
    last: int | None = None


class WireTarget(_Wire):
    """tailcfg.NetPortRange."""

    ip: str | None = field(name="IP", default=None)
    ports: WirePorts | None = None
    bits: int | None = None


class WireGrant(_Wire):
    """tailcfg.CapGrant."""

    dsts: list[str] | None = None
    caps: list[str] | None = None
    cap_map: dict[str, list[Any] | None] | None = None


class WireRule(_Wire):
    """tailcfg.FilterRule."""

    src_ips: list[str] | None = field(name="SrcIPs", default=None)
    src_bits: list[int] | None = None
    dst_ports: list[WireTarget | None] | None = None
    ip_proto: list[int] | None = field(name="IPProto", default=None)
    cap_grant: list[WireGrant | None] | None = None


class WireProfile(_Wire):
    """tailcfg.UserProfile."""

    id: int | None = field(name="ID", default=None)
    login_name: str | None = None
    display_name: str | None = None
    profile_pic_url: str | None = field(name="ProfilePicURL", default=None)


class WirePing(_Wire):
    """tailcfg.PingRequest."""

    url: str | None = field(name="URL", default=None)
    url_is_noise: bool | None = field(name="URLIsNoise", default=None)
    types: str | None = None
    ip: str | None = field(name="IP", default=None)
    payload: str | None = None


class WireMessage(_Wire):
    """tailcfg.DisplayMessage."""

    title: str | None = None
    text: str | None = None
    severity: str | None = None


class WireLock(_Wire):
    """tailcfg.TKAInfo."""

    head: str | None = None
    disabled: bool | None = None


class WireDebug(_Wire):
    """tailcfg.Debug."""

    sleep_seconds: float | None = None
    exit: int | None = None


class WireCandidate(_Wire):
    """tailcfg.ControlIPCandidate."""

    ip: str | None = field(name="IP", default=None)
    priority: int | None = None


class WireDialPlan(_Wire):
    """tailcfg.ControlDialPlan."""

    candidates: list[WireCandidate | None] | None = None


class MapResponse(_Wire):
    """One message of the map stream."""

    keep_alive: bool | None = None
    ping_request: WirePing | None = None
    pop_browser_url: str | None = field(name="PopBrowserURL", default=None)
    node: WireNode | None = None
    derp_map: WireDerpMap | None = field(name="DERPMap", default=None)
    peers: list[WireNode | None] | None = None
    peers_changed: list[WireNode | None] | None = None
    peers_removed: list[int] | None = None
    peers_changed_patch: list[WirePeerChange | None] | None = None
    peer_seen_change: dict[int, bool | None] | None = None
    online_change: dict[int, bool | None] | None = None
    dns_config: WireDns | None = field(name="DNSConfig", default=None)
    domain: str | None = None
    packet_filter: list[WireRule | None] | None = None
    packet_filters: dict[str, list[WireRule | None] | None] | None = None
    user_profiles: list[WireProfile | None] | None = None
    health: list[str] | None = None
    display_messages: dict[str, WireMessage | None] | None = None
    control_time: str | None = None
    tka_info: WireLock | None = field(name="TKAInfo", default=None)
    debug: WireDebug | None = None
    control_dial_plan: WireDialPlan | None = None


def emit_map_request(
    *,
    version: int,
    node_key: NodePublic,
    disco_key: DiscoPublic,
    hostinfo: Mapping[str, Any],
    endpoints: Sequence[tuple[Endpoint, EndpointKind]],
    stream: bool,
    compress: bool = False,
) -> bytes:
    """A MapRequest, of the stream or of a lite update; both carry all we are (control.md 4.2)."""
    request: dict[str, Any] = {
        "Version": version,
        "Compress": "zstd" if compress and stream else "",
        "KeepAlive": True,
        "NodeKey": str(node_key),
        "DiscoKey": str(disco_key),
        "Stream": stream,
        "OmitPeers": not stream,
        "Hostinfo": hostinfo,
        "Endpoints": [str(endpoint) for endpoint, _ in endpoints],
        "EndpointTypes": [int(kind) for _, kind in endpoints],
    }
    return msgspec.json.encode(request)


def with_net_info(
    hostinfo: Mapping[str, Any], home: RegionId, net_info: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Hostinfo completed with what changes: the home relay and the last network report."""
    network = dict(net_info)
    if home:
        network["PreferredDERP"] = int(home)
    return {**hostinfo, "NetInfo": network} if network else dict(hostinfo)


def parse_map(payload: bytes) -> MapResponse:
    """One message of the map stream. RemoteProtocolError if it is not one."""
    message = _decode(_MAP, payload, "map message")
    if message is None:
        raise RemoteProtocolError("the control server sent a map message that is null")
    return message


def parse_key_reply(body: bytes) -> KeyReply:
    """The answer of /key. RemoteProtocolError if it is no JSON object."""
    reply = _decode(_KEY, body, "answer of /key")
    if reply is None:
        raise RemoteProtocolError("the control server answered /key with null")
    return reply


def parse_early(body: bytes) -> EarlyPayload:
    """The JSON of EarlyNoise."""
    return _decode(_EARLY, body, "early payload") or EarlyPayload()


_REGISTER: Final[msgspec.json.Decoder[RegisterResponse | None]] = msgspec.json.Decoder(RegisterResponse | None)
_MAP: Final[msgspec.json.Decoder[MapResponse | None]] = msgspec.json.Decoder(MapResponse | None)
_KEY: Final[msgspec.json.Decoder[KeyReply | None]] = msgspec.json.Decoder(KeyReply | None)
_EARLY: Final[msgspec.json.Decoder[EarlyPayload | None]] = msgspec.json.Decoder(EarlyPayload | None)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # The decoder's text names a field and a type, never a value.
        raise RemoteProtocolError(f"the control server sent a {what} that cannot be read: {error}") from None


# --- times ----------------------------------------------------------------------------------------

_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def parse_time(text: str | None) -> Unix | None:
    """An RFC 3339 instant; None for absence, for the zero time and for what cannot be read."""
    match = _RFC3339.fullmatch(text) if text else None
    if match is None or match[1].startswith("0001-01-01"):
        return None
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        whole = datetime.fromisoformat(match[1].upper().replace(" ", "T") + zone).timestamp()
    except (ValueError, OverflowError):
        return None
    return Unix(whole + float(match[2] or 0))


def is_zero_time(text: str | None) -> bool:
    """Whether the text is present and says "no time"."""
    return bool(text) and str(text).startswith("0001-01-01")


def parse_http_date(text: str) -> Unix | None:
    """An HTTP date, as Retry-After may carry; None if it is none."""
    try:
        stamp = datetime.strptime(text.strip(), "%a, %d %b %Y %H:%M:%S GMT")
    except ValueError:
        return None
    return Unix((stamp - datetime(1970, 1, 1)).total_seconds())
