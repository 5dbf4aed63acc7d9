"""One read-only view of a plain WireGuard network, for the command line, HTTP and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshnode.base.addr import IP, Endpoint, Prefix
from meshnode.base.keys import NodePublic
from meshnode.node.status import rfc3339


@dataclass(frozen=True, slots=True)
class WgPeerStatus:
    """One peer at one moment."""

    key: NodePublic
    allowed: tuple[Prefix, ...]
    endpoint: Endpoint | None
    """Where it was heard last, else where it is looked for; None: nowhere yet."""
    host: str = ""
    """HOST:PORT of the file, where HOST is a name."""
    keepalive_s: int = 0
    last_handshake: float | None = None
    """Wall seconds; None: never."""
    rx_bytes: int = 0
    tx_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """In the words of `meshnode status --json`."""
        return {
            "PublicKey": self.key.base64,
            "AllowedIPs": [str(prefix) for prefix in self.allowed],
            "Endpoint": str(self.endpoint) if self.endpoint else "",
            "EndpointName": self.host,
            "PersistentKeepalive": self.keepalive_s,
            "LastHandshake": rfc3339(self.last_handshake),
            "RxBytes": self.rx_bytes,
            "TxBytes": self.tx_bytes,
        }


@dataclass(frozen=True, slots=True)
class WgStatus:
    """A network at one moment."""

    name: str
    public_key: NodePublic
    addresses: tuple[IP, ...]
    port: int
    mtu: int
    peers: tuple[WgPeerStatus, ...]

    def to_json(self) -> dict[str, Any]:
        """In the words of `meshnode status --json`."""
        return {
            "Kind": "wireguard",
            "PublicKey": self.public_key.base64,
            "Addresses": [str(ip) for ip in self.addresses],
            "ListenPort": self.port,
            "MTU": self.mtu,
            "Peers": [peer.to_json() for peer in self.peers],
        }
