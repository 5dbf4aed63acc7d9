"""One read-only view of a node, for the command line, HTTP and tests.

`Status` is taken at one moment without I/O. `to_json` has the field names that scripts already parse
from `tailscale status --json` (node-surface.md 2.3), plus PathState, Since and Reason of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from meshnode.base.addr import IP, Endpoint
from meshnode.core.path_values import CandidateStatus
from meshnode.netmap.model import Netmap, Node, User

ZERO_TIME: Final = "0001-01-01T00:00:00Z"
ACTIVE_S: Final = 120.0
"""A peer with traffic this recently counts as active: WireGuard's rekey time, as tailscale does."""


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """What engine and path core know of a peer."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    last_handshake: float | None = None
    """Wall seconds."""
    path_state: str = "unknown"
    since: float | None = None
    """Wall seconds of the last change of `path_state`."""
    reason: str = ""
    endpoint: Endpoint | None = None
    """The path by UDP in use, direct or by a peer relay; None: by relay or not at all."""
    latency_s: float | None = None
    candidates: tuple[CandidateStatus, ...] = ()
    clock_offset: float = 0.0
    """Wall seconds minus loop seconds: what turns a candidate's times into dates."""
    why: str = ""
    """Why packets go the way they go: a sentence."""
    is_relay_up: bool = False
    hedges: tuple[str, ...] = ()
    """Why packets are sent by relay too, while direct."""
    limit: int | None = None
    """Longest IP packet the direct path carries, as far as it is known; longer ones go by relay."""
    by_path: Mapping[str, int] = field(default_factory=dict)
    """Bytes of WireGuard datagrams: rx_direct, rx_relay, tx_direct, tx_relay."""
    transitions: tuple[tuple[float, str, str], ...] = ()
    """(wall seconds, state, reason) of the last ones, oldest first."""
    pings_sent: int = 0
    pongs_received: int = 0
    is_active: bool = False


@dataclass(frozen=True, slots=True)
class RelayHome:
    """Our home relay."""

    region: int = 0
    code: str = ""
    is_connected: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A node at one moment."""

    version: str
    backend_state: str
    """NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting or Running."""
    reason: str
    since: float
    """Wall seconds of the last change of `backend_state` or `reason`."""
    auth_url: str
    netmap: Netmap | None
    home: RelayHome
    endpoints: tuple[Endpoint, ...]
    traffic: Mapping[int, PeerTraffic]
    """By node id."""
    health: tuple[str, ...] = ()
    filter_rules: tuple[str, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    interface: str = ""
    """Name of the kernel interface; empty: there is none."""

    @property
    def addresses(self) -> tuple[IP, ...]:
        """Our tailnet addresses; empty before the first netmap."""
        return self.netmap.self_node.ips if self.netmap else ()

    def to_json(self) -> dict[str, Any]:
        """The object `meshnode status --json` prints."""
        netmap = self.netmap
        return {
            "Version": self.version,
            "TUN": bool(self.interface),
            "Interface": self.interface,
            "BackendState": self.backend_state,
            "Reason": self.reason,
            "Since": rfc3339(self.since),
            "HaveNodeKey": netmap is not None,
            "AuthURL": self.auth_url,
            "TailscaleIPs": [str(ip) for ip in self.addresses] or None,
            "Self": self._self_json() if netmap else None,
            "Health": list(self.health),
            "MagicDNSSuffix": netmap.suffix if netmap else "",
            "CurrentTailnet": _tailnet_json(netmap) if netmap else None,
            "CertDomains": list(netmap.dns.cert_domains) or None if netmap else None,
            "Peer": {str(p.key): self._peer_json(p) for p in netmap.peers.values()} if netmap else None,
            "User": {str(u.id): user_json(u) for u in netmap.users.values()} if netmap else None,
            "FilterRules": list(self.filter_rules),
            "Counters": dict(self.counters),
        }

    def _self_json(self) -> dict[str, Any]:
        assert self.netmap is not None
        record = _node_json(self.netmap.self_node)
        record |= {
            "Addrs": [str(e) for e in self.endpoints],
            "CurAddr": "",
            "Relay": self.home.code,
            "RelayConnected": self.home.is_connected,
            "RxBytes": sum(t.rx_bytes for t in self.traffic.values()),
            "TxBytes": sum(t.tx_bytes for t in self.traffic.values()),
            "LastHandshake": ZERO_TIME,
            "Online": self.backend_state == "Running" and not self.reason,
            "Active": False,
            "InMagicSock": False,
            "InEngine": False,
        }
        return record

    def _peer_json(self, peer: Node) -> dict[str, Any]:
        assert self.netmap is not None
        traffic = self.traffic.get(peer.id, PeerTraffic())
        region = self.netmap.relays.regions.get(peer.home)
        record = _node_json(peer)
        record |= {
            "Addrs": [str(e) for e in peer.endpoints],
            "CurAddr": str(traffic.endpoint) if traffic.endpoint and not traffic.endpoint.vni else "",
            "PeerRelay": str(traffic.endpoint) if traffic.endpoint and traffic.endpoint.vni else "",
            "Relay": region.code if region else "",
            "RxBytes": traffic.rx_bytes,
            "TxBytes": traffic.tx_bytes,
            "LastHandshake": rfc3339(traffic.last_handshake),
            "Online": bool(peer.online),
            "Active": traffic.is_active,
            "InMagicSock": True,
            "InEngine": True,
            "PathState": traffic.path_state,
            "Since": rfc3339(traffic.since),
            "Reason": traffic.reason,
            "LatencyMs": round(traffic.latency_s * 1000, 3) if traffic.latency_s is not None else None,
            "Why": traffic.why,
            "RelayUp": traffic.is_relay_up,
            "Hedges": list(traffic.hedges),
            "Limit": traffic.limit,
            "Candidates": [_candidate_json(c, traffic.clock_offset) for c in traffic.candidates],
            "Bytes": dict(traffic.by_path),
            "Pings": {"Sent": traffic.pings_sent, "Answered": traffic.pongs_received},
            "Transitions": [
                {"At": rfc3339(at), "State": state, "Reason": reason} for at, state, reason in traffic.transitions
            ],
        }
        return record


def _candidate_json(candidate: CandidateStatus, clock_offset: float) -> dict[str, Any]:
    latency, pong = candidate.latency_s, candidate.pong_at
    return {
        "Addr": str(candidate.endpoint),
        "Kind": candidate.kind.name.lower(),
        "LatencyMs": round(latency * 1000, 3) if latency is not None else None,
        "LastPong": rfc3339(pong + clock_offset if pong is not None else None),
        "Loss": round(candidate.loss, 3),
        "SetAside": candidate.is_bad,
    }


def _node_json(node: Node) -> dict[str, Any]:
    record: dict[str, Any] = {
        "ID": node.stable_id,
        "NodeID": node.id,
        "PublicKey": str(node.key),
        "HostName": str(node.hostinfo.get("Hostname") or node.label),
        "DNSName": node.name + "." if node.name else "",
        "OS": str(node.hostinfo.get("OS") or ""),
        "UserID": node.user_id,
        "TailscaleIPs": [str(ip) for ip in node.ips],
        "AllowedIPs": [str(p) for p in node.allowed],
        "PeerRelay": "",
        "Created": rfc3339(node.created),
        "LastWrite": ZERO_TIME,
        "LastSeen": rfc3339(node.last_seen),
        "ExitNode": False,
        "ExitNodeOption": any(p.prefixlen == 0 for p in node.allowed),
        "PeerAPIURL": None,
        "TaildropTarget": 0,
        "NoFileSharingReason": "",
        "CapMap": {name: list(values) or None for name, values in node.caps.items()} or None,
        "InNetworkMap": True,
    }
    if node.tags:
        record["Tags"] = list(node.tags)
    if node.routes:
        record["PrimaryRoutes"] = [str(p) for p in node.routes]
    if node.key_expiry is not None:
        record["KeyExpiry"] = rfc3339(node.key_expiry)
    if node.expired:
        record["Expired"] = True
    return record


def _tailnet_json(netmap: Netmap) -> dict[str, Any]:
    return {"Name": netmap.domain, "MagicDNSSuffix": netmap.suffix, "MagicDNSEnabled": netmap.dns.magic}


def user_json(user: User) -> dict[str, Any]:
    """A UserProfile."""
    return {
        "ID": user.id,
        "LoginName": user.login,
        "DisplayName": user.display,
        "ProfilePicURL": user.picture,
    }


def rfc3339(wall: float | None) -> str:
    """A wall time as the Go client writes it; None is Go's zero time."""
    if wall is None:
        return ZERO_TIME
    moment = datetime.fromtimestamp(wall, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a tailnet address belongs to, by the netmap of the moment it was asked."""

    node: Node
    user: User | None
    caps: Mapping[str, tuple[Any, ...]]
    """Application capabilities the policy grants it towards us."""

    @property
    def name(self) -> str:
        """Its full name."""
        return self.node.name

    @property
    def login(self) -> str:
        """Its owner's login name; '' for a tagged node."""
        return "" if self.node.tags or self.user is None else self.user.login

    def to_json(self) -> dict[str, Any]:
        """As LocalAPI's whois: Node, UserProfile, CapMap."""
        node = self.node
        return {
            "Node": {
                "ID": node.id,
                "StableID": node.stable_id,
                "Name": node.name + ".",
                "Key": str(node.key),
                "Addresses": [str(p) for p in node.addresses],
                "Tags": list(node.tags),
                "Hostinfo": {"OS": node.hostinfo.get("OS"), "Hostname": node.hostinfo.get("Hostname")},
            },
            "UserProfile": user_json(self.user or User(node.user_id, "", "")),
            "CapMap": {name: list(values) for name, values in self.caps.items()},
        }


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to `Node.ping`."""

    node: Node
    ip: IP
    latency_s: float
    endpoint: Endpoint | None
    """Where it came from. None: by relay `region`, from ourselves, or through the tunnel."""
    region: int = 0
    region_code: str = ""
    is_self: bool = False
    kind: str = "disco"
    """"icmp": an echo inside the tunnel."""

    def to_json(self) -> dict[str, Any]:
        """As ipnstate.PingResult, and its kind."""
        return {
            "IP": str(self.ip),
            "NodeIP": str(self.node.ips[0]) if self.node.ips else "",
            "NodeName": self.node.label,
            "Err": "",
            "LatencySeconds": self.latency_s,
            "Endpoint": str(self.endpoint) if self.endpoint and not self.endpoint.vni else "",
            "PeerRelay": str(self.endpoint) if self.endpoint and self.endpoint.vni else "",
            "DERPRegionID": self.region,
            "DERPRegionCode": self.region_code,
            "IsLocalIP": self.is_self,
            "Kind": self.kind,
        }
