"""meshnode: a member of a Tailscale-compatible network inside one Python process.

The public face, loaded on first use so that `import meshnode` stays cheap:

    async with Node(control_url=…, auth_key=…, hostname="gpu-1", state_dir=…) as node:
        await node.ready(timeout=30)
        reader, writer = await node.open_connection("db-1", 5432)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.base.errors import (
        AccessDenied,
        AuthError,
        CertificateError,
        ConfigError,
        ControlError,
        DialError,
        EngineError,
        KeyExpired,
        KeyRejected,
        ListenError,
        LoginRequired,
        MachineNotApproved,
        MeshError,
        NameNotFound,
        NotAControlServer,
        NotReady,
        PeerOffline,
        ProtocolError,
        Refused,
        RelayError,
        StateError,
        TimedOut,
        VersionRejected,
    )
    from meshnode.config.model import Config, Disco
    from meshnode.engine.flow import TunnelSocket
    from meshnode.node.node import Node
    from meshnode.node.wgnet import WireGuardNetwork

__version__ = "0.1.0"

_HOMES = {
    "Node": "node.node",
    "Config": "config.model",
    "Disco": "config.model",
    "TunnelSocket": "engine.flow",
    "WireGuardNetwork": "node.wgnet",
}

__all__ = [
    "AccessDenied",
    "AuthError",
    "CertificateError",
    "Config",
    "ConfigError",
    "ControlError",
    "DialError",
    "Disco",
    "EngineError",
    "KeyExpired",
    "KeyRejected",
    "ListenError",
    "LoginRequired",
    "MachineNotApproved",
    "MeshError",
    "NameNotFound",
    "Node",
    "NotAControlServer",
    "NotReady",
    "PeerOffline",
    "ProtocolError",
    "Refused",
    "RelayError",
    "StateError",
    "TimedOut",
    "TunnelSocket",
    "VersionRejected",
    "WireGuardNetwork",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
    value = getattr(import_module("meshnode." + _HOMES.get(name, "base.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
