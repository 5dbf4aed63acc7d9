"""Keeps a session with the control server alive; publishes netmaps.

Owns the identity towards control (keys, pinned server key), the state that people see, and three
loops on one connection: register when needed, poll the map, push updates. While control is
unreachable the last netmap stays valid: nobody below is told to stop.

Rules: a refusal before the first netmap ends `run()` with its error; after it the node keeps
running and asks again every five minutes. Callbacks are plain and quick; they run in the loop.
Source: docs/protocol/control.md 3, 4, 12.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import MeshError
from meshnode.base.keys import DiscoPublic, MachinePublic
from meshnode.base.units import Seconds, Unix
from meshnode.core.login import Keys, LoginResult
from meshnode.netmap.model import Changes, Netmap
from meshnode.netmap.tailcfg import CAPABILITY_VERSION, EndpointKind
from meshnode.run.clock import Clock

__all__ = ["ControlClient", "ControlConfig", "ControlState", "Keys", "LoginResult", "Phase"]


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """How to reach a control server and who we say we are."""

    url: str
    auth_key: str = field(default="", repr=False)
    known: bool = False
    """The state says this node key was registered here before: try it without the auth key first."""
    ephemeral: bool = False
    interactive: bool = False
    """Wait for a human at the login URL; otherwise a login URL is the error LoginRequired."""
    ca_file: str = ""
    """Trust this CA file instead of the system's."""
    pinned_key: MachinePublic | None = None
    """The server's key as the state remembers it: no /key fetch. Over https a changed key that the
    verified server itself shows is taken with a warning; over http it is an error naming both."""
    control_key: MachinePublic | None = None
    """The server's key as the operator demands it: any other is an error."""
    proxy: str = ""
    """http://[user:password@]host:port of a CONNECT proxy; '' for none."""
    compress: bool = False
    """Ask for zstd on the map stream."""
    version: int = CAPABILITY_VERSION
    """For diagnosis only."""
    refuse_tailnet_lock: bool = False
    """Fail when the tailnet uses tailnet lock, which we cannot verify."""


class Phase(StrEnum):
    """Where we stand with the control server."""

    STARTING = "starting"
    CONNECTING = "connecting"
    NEEDS_LOGIN = "needs login"
    NEEDS_APPROVAL = "needs approval"
    RUNNING = "running"
    DEGRADED = "degraded"
    """Control is unreachable; the last netmap is in use."""
    EXPIRED = "expired"
    LOGGED_OUT = "logged out"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ControlState:
    """One phase with its cause."""

    phase: Phase
    since: Seconds
    """Loop time."""
    reason: str = ""
    url: str = ""
    """NEEDS_LOGIN: what a human must visit."""
    error: MeshError | None = None
    """What went wrong last, while it is still wrong; `NotReady` and exit codes are made of it."""


class ControlClient:
    """One node's membership: `await run()` in a scope; it ends only by error, logout or cancellation."""

    def __init__(
        self,
        config: ControlConfig,
        keys: Keys,
        hostinfo: Mapping[str, Any],
        *,
        clock: Clock,
        on_netmap: Callable[[Netmap, Changes], None],
        on_state: Callable[[ControlState], None] = lambda _: None,
        on_login: Callable[[LoginResult], None] = lambda _: None,
        on_keys: Callable[[Keys], None] = lambda _: None,
        on_pin: Callable[[MachinePublic], None] = lambda _: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`hostinfo` is the complete Hostinfo object without NetInfo (see control.hostinfo.gather).

        on_keys is called after a rotation was accepted and before the new key is used; on_pin when
        the server's key was learned; both want to be persisted before they return.
        """
        self.config = config
        self.keys = keys
        self.state = ControlState(Phase.STARTING, Seconds(0.0))
        self.netmap: Netmap | None = None
        self.skew: Seconds = Seconds(0.0)
        """Server's clock less ours; 0 within a minute."""

    async def run(self) -> None:
        """Join and stay joined. Raises AuthError, ControlError before the first netmap; see the rules."""
        raise NotImplementedError("written next")

    def update(
        self,
        *,
        endpoints: Sequence[tuple[Endpoint, EndpointKind]] | None = None,
        home_region: RegionId | None = None,
        disco: DiscoPublic | None = None,
        net_info: Mapping[str, Any] | None = None,
        hostinfo: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell control what changed; None leaves a thing as it is. Coalesced, newest wins, retried."""

    async def logout(self, timeout_s: float = 3.0) -> None:
        """Expire this node at the server (an ephemeral one is gone at once) and end `run()`.

        Works with and without a live session. ControlError when the server did not confirm in time.
        """

    def reconnect(self, reason: str) -> None:
        """Drop the connection and dial again at once: the network changed or the machine slept."""

    @property
    def wall(self) -> Unix:
        """Wall time by the server's clock: for every decision about expiry."""
        raise NotImplementedError("written next")
