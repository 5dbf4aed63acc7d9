"""Keeps a session with the control server alive; publishes netmaps.

Owns the identity towards control (keys, pinned server key) and the state that people see. One
session at a time: dial, register when needed, then the map stream and the updates beside it. While
control is unreachable the last netmap stays valid: nobody below is told to stop.

Rules: a refusal before we were ever running ends `run()` with its error; after that the node stays
up and asks again every five minutes. Callbacks are plain and quick; they run in the loop.
Source: docs/protocol/control.md 3, 4, 12.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import (
    AuthError,
    CertificateError,
    ConfigError,
    ControlError,
    KeyExpired,
    LoginRequired,
    MachineNotApproved,
    MeshError,
    NotAControlServer,
    ProtocolError,
    ProxyPassword,
    VersionRejected,
)
from meshnode.base.keys import DiscoPublic, MachinePublic
from meshnode.base.units import Seconds, Unix
from meshnode.control.announce import Announcement
from meshnode.control.dial import KeyMismatch, Link, Route, Server, dial, make_tls
from meshnode.control.poll import MapPoll, NodeGone, StreamEnded
from meshnode.control.session import Session
from meshnode.core.backoff import Backoff
from meshnode.core.login import Again, Keys, Later, Login, LoginResult, Refused, Registered, Visit, emit_logout
from meshnode.core.proxies import Proxies
from meshnode.netmap.delta import difference
from meshnode.netmap.model import Changes, Netmap
from meshnode.netmap.tailcfg import CAPABILITY_VERSION, EndpointKind
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.run.snapshot import Snapshot

__all__ = ["ControlClient", "ControlConfig", "ControlState", "Keys", "LoginResult", "Phase"]

PATIENCE_S: Final = 300.0
"""Between tries after a refusal that needs a human, while a netmap is in use."""
GONE_AGAIN_S: Final = 60.0
"""A node forgotten twice within this offers a fresh node key."""
REGISTER_TIMEOUT_S: Final = 60.0
APPROVAL_TEXT: Final = "an administrator has to approve this machine at the control server"

_log = get_logger("control")


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
    proxies: Proxies = field(default_factory=Proxies)
    """Which HTTP proxy leads there, if any."""
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


FATAL: Final = (
    AuthError, CertificateError, NotAControlServer, VersionRejected, ConfigError, KeyMismatch, ProxyPassword,
)  # fmt: skip
"""Errors that waiting does not mend."""


def _phase_of(error: MeshError) -> Phase:
    if isinstance(error, LoginRequired):
        return Phase.NEEDS_LOGIN
    return Phase.EXPIRED if isinstance(error, KeyExpired) else Phase.FAILED


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
        ConfigError if the URL or the CA file is none.
        """
        self.config = config
        self.keys = keys
        self.netmap: Netmap | None = None
        self.skew: Seconds = Seconds(0.0)
        """Server's clock less ours; 0 within a minute."""
        self.server = Server.parse(config.url)
        tls = tls or (make_tls(config.ca_file) if self.server.is_tls else None)
        self.route = Route(tls, config.proxies, config.ca_file)
        self.clock = clock
        self.says = Announcement(hostinfo, keys.disco)
        self.counters: dict[str, int] = {"dials": 0, "registrations": 0, "maps": 0, "keepalives": 0, "lite_updates": 0}
        self._on_netmap, self._on_state, self._on_login = on_netmap, on_state, on_login
        self._on_keys, self._on_pin = on_keys, on_pin
        self._pin = config.control_key or config.pinned_key
        self._known = config.known
        self._needs_register = not config.known
        self._rotate_next = False
        self._gone_at: Seconds | None = None
        self._session: Session | None = None
        self._states = Snapshot(ControlState(Phase.STARTING, clock.now()))
        self._backoff = Backoff(clock.uniform)
        self._hurry = asyncio.Event()
        self._leaving = False
        self._joined = False
        """Whether we were RUNNING once in this life."""

    # --- what others see --------------------------------------------------------------------------

    @property
    def state(self) -> ControlState:
        """Where we stand now."""
        return self._states.value

    @property
    def states(self) -> Snapshot[ControlState]:
        """The same, to be awaited."""
        return self._states

    @property
    def wall(self) -> Unix:
        """Wall time by the server's clock: for every decision about expiry."""
        return Unix(self.clock.wall() + self.skew)

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
        self.says.change(
            endpoints=endpoints, home_region=home_region, disco=disco, net_info=net_info, hostinfo=hostinfo
        )

    def reconnect(self, reason: str) -> None:
        """Drop the connection and dial again at once: the network changed or the machine slept."""
        self._backoff.succeed()
        self._hurry.set()
        if self._session is not None:
            self._session.close(ControlError(f"reconnecting: {reason}"))

    def on_network(self, gone: Collection[str]) -> None:
        """The network changed. gone: addresses that are not ours any more; a wait before a dial ends now."""
        transport = self._session.link.pipe.transport if self._session is not None else None
        if transport is None:
            self._hurry.set()
        elif (transport.get_extra_info("sockname") or ("",))[0] in gone:
            self.reconnect("our address of this connection is gone")

    async def logout(self, timeout_s: float = 3.0) -> None:
        """Expire this node at the server (an ephemeral one is gone at once) and end `run()`.

        Works with and without a live session. ControlError when the server did not confirm in time.
        """
        self._leaving = True
        session, own = self._session, None
        try:
            async with asyncio.timeout(timeout_s):
                if session is None or session.error is not None:
                    session = own = Session(await self._dial())
                body = emit_logout(self.keys, self.says.hostinfo(), self.config.version)
                reply = await session.request("POST", "/machine/register", body=body, timeout_s=None)
            if reply.status != 200:
                raise ControlError(f"the control server answered {reply.status} to the logout")
        except TimeoutError:
            raise ControlError(f"the control server did not confirm the logout within {timeout_s:.0f} s") from None
        finally:
            self._enter(Phase.LOGGED_OUT)
            self._hurry.set()
            for each in (own, self._session):
                if each is not None:
                    each.close()

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Join and stay joined. Raises AuthError, ControlError until it ran once; see the rules."""
        while not self._leaving:
            try:
                await self._live()
            except (ControlError, AuthError, ConfigError, ProtocolError) as error:
                if self._leaving:
                    return
                if not self._joined and isinstance(error, FATAL):
                    self._enter(Phase.FAILED, error=error)
                    raise
                await self._pause(error)

    async def _pause(self, error: MeshError) -> None:
        """Say what is wrong and wait before the next try; `reconnect` and `logout` cut it short."""
        if isinstance(error, FATAL):
            delay = PATIENCE_S * self.clock.uniform(0.9, 1.1)
            self._enter(_phase_of(error), error=error, url=getattr(error, "url", ""))
        elif isinstance(error, StreamEnded):
            delay = self._backoff.end(self.clock.now())
        else:
            delay = self._backoff.fail()
            self._enter(Phase.DEGRADED if self.netmap else Phase.CONNECTING, error=error)
        _log.info("control connection ended", reason=str(error), retry_in_s=round(delay, 2))
        self._hurry.clear()
        if self._leaving:
            return
        try:
            async with asyncio.timeout(delay):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _live(self) -> None:
        """One session from dial to end; always ends by an error."""
        if self.netmap is None:
            self._enter(Phase.CONNECTING, error=self.state.error)
        session = Session(await self._dial())
        self._session = session
        try:
            async with Scope("control") as scope:
                scope.failed.add_done_callback(lambda _: session.close())
                scope.spawn(session.keep_alive(), "keep-alive")
                if self._needs_register:
                    await self._register(session)
                try:
                    await MapPoll(self, session, scope).run()
                except ControlError:
                    if scope.failed.done():
                        raise scope.failed.result() from None  # a bug of ours, not the server's doing
                    raise
        except NodeGone as error:
            self._on_gone(error)
            raise
        finally:
            session.close()
            self._session = None

    async def _dial(self) -> Link:
        """A link to the server we know, or the one we get to know now."""
        self.counters["dials"] += 1
        try:
            link = await self._dial_expecting(self._pin)
        except KeyMismatch:
            link = await self._dial_expecting(None)
            vouched = self.server.is_tls and self.config.control_key is None
            if link.key != self._pin and not vouched:
                link.pipe.close()
                raise self._mismatch(link.key) from None
            if link.key != self._pin:
                _log.warning("the control server has a new key, shown over verified TLS", old=self._pin, new=link.key)
        if link.key != self._pin:
            self._pin = link.key
            self._on_pin(link.key)
        return link

    async def _dial_expecting(self, key: MachinePublic | None) -> Link:
        config = self.config
        return await dial(
            self.server,
            self.keys.machine,
            version=config.version,
            entropy=self.clock.entropy,
            route=self.route,
            expected=key,
        )

    def _mismatch(self, shown: MachinePublic) -> KeyMismatch:
        """The error that names both keys, so that an operator can decide."""
        where = "the control_key setting" if self.config.control_key else "the state directory"
        return KeyMismatch(
            f"the control server {self.server.authority} has the key {shown}, expected {self._pin} from {where}; "
            "if the server was set up anew, start with an empty state directory"
        )

    # --- register ---------------------------------------------------------------------------------

    async def _register(self, session: Session) -> None:
        login = Login(
            self.keys,
            self.says.hostinfo(),
            self.clock.entropy,
            auth_key=self.config.auth_key,
            known=self._known,
            ephemeral=self.config.ephemeral,
            version=self.config.version,
        )
        if self._rotate_next:
            login.rotate()
        waiting = False
        while True:
            self.counters["registrations"] += 1
            body, headers = login.request(), login.headers()
            # A human may take his time: the wait for one has no bound of its own, the ping watches it.
            limit = None if waiting else REGISTER_TIMEOUT_S
            reply = await session.request("POST", "/machine/register", headers, body, timeout_s=limit)
            match login.on_reply(reply.status, reply.headers, reply.body, self.clock.wall()):
                case Registered(keys, result):
                    return self._on_registered(keys, result)
                case Again(reason):
                    _log.info("registering again", reason=reason)
                case Later(reason, delay):
                    self._enter(self.state.phase, reason=reason, url=self.state.url)
                    await asyncio.sleep(self._backoff.fail() if delay is None else delay)
                case Visit(url, ignored_key):
                    self._on_visit(url, ignored_key)
                    waiting = True
                case Refused(error):
                    raise error

    def _on_visit(self, url: str, ignored_key: bool) -> None:
        ignored = "the control server ignored the auth key; " if ignored_key else ""
        if not self.config.interactive:
            hint = "" if self.config.auth_key else "no auth key was given; "
            raise LoginRequired(f"{ignored}{hint}a human has to log this node in at {url}", url)
        self._enter(Phase.NEEDS_LOGIN, reason=f"{ignored}visit {url}", url=url)

    def _on_registered(self, keys: Keys, result: LoginResult) -> None:
        if keys is not self.keys:
            self._on_keys(keys)
            self.keys = keys
        self._known, self._needs_register, self._rotate_next = True, False, False
        self._on_login(result)
        if not result.authorized:
            self._enter(Phase.NEEDS_APPROVAL, reason=APPROVAL_TEXT, error=MachineNotApproved(APPROVAL_TEXT))

    def _on_gone(self, error: NodeGone) -> None:
        now = self.clock.now()
        again = self._gone_at is not None and now - self._gone_at < GONE_AGAIN_S
        self._rotate_next = again or error.mixed_up
        self._gone_at = now
        self._needs_register = True
        self._known = False

    # --- what the poll reports --------------------------------------------------------------------

    def on_map(self, netmap: Netmap) -> None:
        """A netmap of the running stream; publishes it and what changed. Raises to end the session."""
        if netmap.locked and self.config.refuse_tailnet_lock:
            raise AuthError("this tailnet uses tailnet lock, whose signatures this client does not verify")
        me = netmap.self_node
        expired = me.expired or (me.key_expiry is not None and me.key_expiry < self.wall)
        if self._joined or not expired:
            changes = difference(self.netmap, netmap)
            self.netmap = netmap
            if changes:
                self._on_netmap(netmap, changes)
        if expired:
            self._on_self_expired()
        elif not me.authorized:
            self._enter(Phase.NEEDS_APPROVAL, reason=APPROVAL_TEXT, error=MachineNotApproved(APPROVAL_TEXT))
        else:
            self._joined = True
            if self.state.phase is not Phase.RUNNING:
                self._enter(Phase.RUNNING)

    def _on_self_expired(self) -> None:
        text = "this node's key has expired at the control server"
        self._needs_register = self._rotate_next = True
        if self.config.auth_key:
            self._enter(Phase.EXPIRED, reason=f"{text}; renewing it with the auth key")
            raise StreamEnded(text)
        self._enter(Phase.EXPIRED, error=KeyExpired(f"{text}; log in again or give an auth key"))
        raise KeyExpired(f"{text}; log in again or give an auth key")

    def on_progress(self) -> None:
        """The stream delivered a map: failures before it are forgotten."""
        self._backoff.succeed()

    def _enter(self, phase: Phase, *, reason: str = "", url: str = "", error: MeshError | None = None) -> None:
        if self._leaving and phase is not Phase.LOGGED_OUT:
            return
        state = ControlState(phase, self.clock.now(), reason or (str(error) if error else ""), url, error)
        old = self._states.value
        if (old.phase, old.reason, old.url) == (state.phase, state.reason, state.url):
            return
        self._states.publish(state)
        self._on_state(state)
