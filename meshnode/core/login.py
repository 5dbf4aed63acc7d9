"""Registration: auth key, interactive, expiry, rotation, logout. Sans-IO.

Owns which node key is offered next and what each reply of `/machine/register` means. One Login
lives for one attempt to become registered: ask `request()`, send it, hand the reply to `on_reply`,
act on the Step, repeat until Registered or Refused. An identity that was registered before is tried
without the auth key first: a restart must not spend one (behaviours.md D-01).
Source: docs/protocol/control.md 3, 12.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from meshnode.base.errors import (
    AuthError,
    ControlError,
    KeyExpired,
    KeyRejected,
    MeshError,
    RemoteProtocolError,
    VersionRejected,
)
from meshnode.base.keys import DiscoPublic, Entropy, MachinePrivate, NodePrivate, NodePublic
from meshnode.base.units import Seconds, Unix
from meshnode.netmap import tailcfg
from meshnode.netmap.model import User

REPROMPTS_MAX: Final = 5
"""Stale Followups, empty replies and the like before we give up."""
RETRY_AFTER_MAX_S: Final = 3600.0
RETRY_AFTER_DEFAULT_S: Final = 7.0


@dataclass(frozen=True, slots=True)
class Keys:
    """What makes this node itself. The node persists all but `disco`."""

    machine: MachinePrivate
    node: NodePrivate
    disco: DiscoPublic
    old_node: NodePrivate | None = None


@dataclass(frozen=True, slots=True)
class LoginResult:
    """What a successful registration told us."""

    node_key: NodePublic
    user: User | None
    authorized: bool
    """False: an administrator has to approve this machine first; keep polling."""
    used_auth_key: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """Done: `keys` are current from now on."""

    keys: Keys
    result: LoginResult


@dataclass(frozen=True, slots=True)
class Again:
    """Send `request()` at once."""

    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """Send `request()` after `delay_s`, or after the caller's backoff if None."""

    reason: str
    delay_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """A human must visit `url`; `request()` is the long wait for that."""

    url: str
    ignored_key: bool
    """An auth key was sent and the server asked for a human all the same."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The server will not have us; a human has to change something."""

    error: MeshError


Step = Registered | Again | Later | Visit | Refused


@dataclass(slots=True)
class Login:
    """One attempt to become registered."""

    keys: Keys
    hostinfo: Mapping[str, Any]
    entropy: Entropy = field(repr=False)
    auth_key: str = field(default="", repr=False)
    known: bool = False
    """The state says this node key was registered before."""
    ephemeral: bool = False
    version: int = tailcfg.CAPABILITY_VERSION
    _candidate: NodePrivate | None = field(default=None, repr=False)
    _with_key: bool = field(default=False, init=False)
    _followup: str = field(default="", init=False)
    _rotations: int = field(default=0, init=False)
    _mixups: int = field(default=0, init=False)
    _restarts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._with_key = bool(self.auth_key) and not self.known

    @property
    def node_key(self) -> NodePrivate:
        """The key the next request offers."""
        return self._candidate or self.keys.node

    def rotate(self) -> None:
        """Offer a fresh node key from now on; it becomes current only once accepted."""
        self._candidate = NodePrivate.generate(self.entropy)
        self._with_key = bool(self.auth_key)
        self._followup = ""

    def request(self) -> bytes:
        """The body of the next POST /machine/register."""
        old = self.keys.node.public() if self._candidate else None
        return tailcfg.emit_register(
            version=self.version,
            node_key=self.node_key.public(),
            old_node_key=old,
            auth_key=self.auth_key if self._with_key else "",
            followup=self._followup,
            ephemeral=self.ephemeral,
            hostinfo=self.hostinfo,
        )

    def headers(self) -> list[tuple[str, str]]:
        """The load-balancer hints that go with `request()`."""
        keys = [self.keys.node.public()] if self._candidate else []
        return [(tailcfg.LB_HEADER, str(key)) for key in [*keys, self.node_key.public()]]

    def on_reply(self, status: int, headers: Mapping[str, str], body: bytes, wall: Unix) -> Step:
        """What to do after a reply. Never raises: a broken reply is Refused or Later."""
        if status != 200:
            return self._on_status(status, headers, body, wall)
        try:
            reply = tailcfg.parse_register(body)
        except RemoteProtocolError as error:
            return Refused(error)
        if reply is None:
            return self._start_over("the server no longer knows this node")
        if reply.error:
            return self._on_error(reply.error)
        if reply.node_key_signature:
            return Refused(AuthError(_LOCKED.format(key=self.node_key.public())))
        if reply.node_key_expired:
            return self._on_expired()
        if reply.auth_url:
            return self._on_auth_url(reply.auth_url)
        return self._on_success(reply)

    # --- replies ----------------------------------------------------------------------------------

    def _on_success(self, reply: tailcfg.RegisterResponse) -> Step:
        keys = self.keys
        if self._candidate:
            keys = replace(keys, node=self._candidate, old_node=keys.node)
        result = LoginResult(
            node_key=keys.node.public(),
            user=reply.to_user(),
            authorized=reply.machine_authorized is True,
            used_auth_key=self._with_key,
        )
        return Registered(keys, result)

    def _on_auth_url(self, url: str) -> Step:
        if self.auth_key and not self._with_key and not self._followup:
            self._with_key = True
            return Again("the server does not know this node; using the auth key")
        if not url.lower().startswith(("https://", "http://")):
            return Refused(RemoteProtocolError("the control server sent a login address that is no web address"))
        if self._followup and url != self._followup:
            self._restarts += 1
            if self._restarts > REPROMPTS_MAX:
                return Refused(AuthError("the login was rejected or never completed; start again when ready"))
        repeated = url == self._followup
        self._followup = url
        return Later("still waiting for the login") if repeated else Visit(url, self._with_key)

    def _on_expired(self) -> Step:
        self._rotations += 1
        if self._rotations > 1:
            return Refused(KeyExpired("the control server says that even a fresh node key is expired; log in again"))
        self.rotate()
        return Again("this node's key is expired; offering a fresh one")

    def _start_over(self, reason: str) -> Step:
        self._restarts += 1
        if self._restarts > REPROMPTS_MAX:
            return Refused(AuthError(f"registration does not come to an end: {reason}"))
        self._followup = ""
        self._with_key = bool(self.auth_key)
        return Later(reason)

    def _on_error(self, text: str) -> Step:
        lower = text.lower()
        if any(part in lower for part in _STALE):
            return self._start_over(f"the control server said {_quoted(text)}")
        if any(part in lower for part in _MIXED_UP) and not self._mixups:
            self._mixups += 1
            self.rotate()
            return Again("another machine holds this node key; offering a fresh one")
        return Refused(explain_refusal(text))

    def _on_status(self, status: int, headers: Mapping[str, str], body: bytes, wall: Unix) -> Step:
        text = body[:200].decode("utf-8", "replace").strip()
        if status == 429:
            delay = retry_after_s(headers.get("retry-after", ""), wall)
            return Later(f"rate limited by the control server, retrying in {delay:.0f} s", delay)
        if status >= 500:
            return Later(f"the control server failed ({status}): {_quoted(text)}")
        if status == 400 and "version" in text.lower():
            return Refused(VersionRejected(_VERSION.format(version=self.version, text=_quoted(text))))
        if status in (401, 403):
            return Refused(AuthError(f"the control server refused this node ({status}): {_quoted(text)}"))
        return Refused(ControlError(f"the control server answered {status} to a registration: {_quoted(text)}"))


def emit_logout(keys: Keys, hostinfo: Mapping[str, Any], version: int = tailcfg.CAPABILITY_VERSION) -> bytes:
    """The body that expires this node now; an ephemeral one is deleted at once (control.md 3.5)."""
    return tailcfg.emit_register(
        version=version, node_key=keys.node.public(), hostinfo=hostinfo, expiry=tailcfg.LOGOUT_TIME
    )


def retry_after_s(value: str, wall: Unix) -> Seconds:
    """Seconds to wait from a Retry-After header; nonsense, absence or more than an hour: a default."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        delay = float(text)
    else:
        when = tailcfg.parse_http_date(text)
        delay = when - wall if when is not None else 0.0
    return Seconds(delay if 0 < delay <= RETRY_AFTER_MAX_S else RETRY_AFTER_DEFAULT_S)


def explain_refusal(text: str) -> AuthError:
    """A RegisterResponse.Error as one sentence that says what to do, the raw text at its end."""
    lower = text.lower()
    for parts, kind, sentence in _REFUSALS:
        if any(part in lower for part in parts):
            return kind(f"{sentence} (the server said {_quoted(text)})")
    return AuthError(f"the control server refused the registration: {_quoted(text)}")


def _quoted(text: str) -> str:
    clean = " ".join(text.split())
    return f'"{clean[:200]}"'


_STALE: Final = (
    "registration timed out",
    "followup registration not found",
    "node not found",
    "invalid followup url",
    "invalid registration id",
)
_MIXED_UP: Final = ("different machine key", "already in use by another machine")
_REFUSALS: Final[tuple[tuple[tuple[str, ...], type[AuthError], str], ...]] = (
    (("authkey expired", "auth key expired"), KeyExpired, "the auth key has expired; make a new one"),
    (
        ("authkey already used", "auth key already used"),
        KeyRejected,
        "the auth key was already used; make a new one, or a reusable one for nodes that lose their state",
    ),
    (("authkey revoked", "auth key revoked"), KeyRejected, "the auth key was revoked; make a new one"),
    (
        ("requested tags",),
        KeyRejected,
        "the tags are not allowed for this key; with Headscale the tags belong to the key, so ask for none",
    ),
    (
        ("failed to parse auth-key",),
        KeyRejected,
        "the auth key is malformed; copy it again, whole",
    ),
    (
        ("invalid pre auth key", "invalid auth key", "invalid authkey", "invalid key", "authkey not found"),
        KeyRejected,
        "this server does not know the auth key; check the key and the control URL",
    ),
    (
        ("extending key is not allowed",),
        AuthError,
        "the server does not let a node extend its own expiry; ask for none",
    ),
    (
        _MIXED_UP,
        AuthError,
        "another machine holds this identity; the state directory was copied: start with an empty one",
    ),
)
_LOCKED: Final = (
    "this tailnet uses tailnet lock and wants this node key signed; have an administrator sign {key} and start again"
)
_VERSION: Final = "the control server refuses capability version {version}; upgrade meshnode (the server said {text})"
