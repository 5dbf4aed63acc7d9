"""The tailnet of the embedded control server: members, auth keys, policy; in memory, no I/O.

Owns who is a member and what each member may see. `register` and `update` take requests,
`full_map` and `delta` make messages; every change is told to the listeners as a Change, from which
each stream makes its own delta. Semantics follow Headscale where the protocol leaves a choice.
Source: docs/protocol/control.md 3, 4, 5, 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from meshnode.base.addr import IP, TAILNET_V4, TAILNET_V6
from meshnode.base.errors import KeyFormatError
from meshnode.base.keys import DiscoPublic, Entropy, MachinePublic, NodePublic
from meshnode.base.units import Unix
from meshnode.control.policy import Policy
from meshnode.netmap.tailcfg import NO_TIME, parse_time

MEMBERS_MAX: Final = 10_000
PENDING_MAX: Final = 1024
ENDPOINTS_MAX: Final = 64
DAY_S: Final = 86_400.0


@dataclass(slots=True)
class AuthKey:
    """A pre-auth key of this server."""

    text: str = field(repr=False)
    user: str
    reusable: bool
    ephemeral: bool
    tags: tuple[str, ...]
    expires_at: Unix
    used: bool = False
    revoked: bool = False


@dataclass(slots=True)
class Member:
    """A node as the server knows it."""

    id: int
    user: str
    machine: MachinePublic
    key: NodePublic
    name: str
    """First label of its name."""
    v4: IPv4Address
    v6: IPv6Address
    hostinfo: Mapping[str, Any]
    created: Unix
    ephemeral: bool = False
    tags: tuple[str, ...] = ()
    disco: str = str(DiscoPublic.zero())
    endpoints: tuple[str, ...] = ()
    home: int = 0
    expires_at: Unix | None = None
    streams: int = 0
    """Map streams it has open; online while there is one."""
    last_seen: Unix | None = None

    @property
    def ips(self) -> tuple[IP, IP]:
        """Both tailnet addresses."""
        return self.v4, self.v6

    def is_expired(self, wall: Unix) -> bool:
        """Whether its key is past its date."""
        return self.expires_at is not None and self.expires_at <= wall


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to the tailnet, for every stream to digest."""

    member: int = 0
    """Whom it is about; 0: everybody."""
    removed: bool = False
    patch: Mapping[str, Any] | None = None
    """PeerChange fields; None: the whole node."""
    policy: bool = False
    relays: bool = False


class Tailnet:
    """All members and their rules."""

    def __init__(self, *, url: str, domain: str, relays: Mapping[str, Any], entropy: Entropy) -> None:
        """`relays` is a DERPMap as JSON; `url` is where humans and pings go."""
        self.url = url
        self.domain = domain
        self.relays = relays
        self.policy = Policy.allow_all()
        self.members: dict[int, Member] = {}
        self.keys: dict[str, AuthKey] = {}
        self.pending: dict[str, tuple[MachinePublic, NodePublic, bool]] = {}
        """Logins that wait for a human: id → (machine, node key, approved)."""
        self.listeners: list[Callable[[Change], None]] = []
        self._entropy = entropy
        self._users: dict[str, int] = {}
        self._next_id = 1

    # --- administration ---------------------------------------------------------------------------

    def add_key(
        self,
        *,
        user: str = "mesh",
        reusable: bool = True,
        ephemeral: bool = False,
        tags: Sequence[str] = (),
        expires_at: Unix,
    ) -> str:
        """A new pre-auth key."""
        text = "hskey-auth-" + self._entropy(24).hex()
        self.keys[text] = AuthKey(text, user, reusable, ephemeral, tuple(tags), expires_at)
        return text

    def set_policy(self, policy: Policy) -> None:
        """Replace the policy; every stream gets its new filter."""
        self.policy = policy
        self._tell(Change(policy=True))

    def set_relays(self, relays: Mapping[str, Any]) -> None:
        """Replace the relay map."""
        self.relays = relays
        self._tell(Change(relays=True))

    def find(self, name: str) -> Member | None:
        """The member of this label."""
        return next((m for m in self.members.values() if m.name == name), None)

    def remove(self, ident: int) -> None:
        """Delete a member."""
        if self.members.pop(ident, None) is not None:
            self._tell(Change(ident, removed=True))

    def expire(self, ident: int, wall: Unix) -> None:
        """End a member's key now."""
        member = self.members[ident]
        member.expires_at = wall
        self._tell(Change(ident))

    def rename(self, ident: int, name: str) -> None:
        """Give a member another label."""
        self.members[ident].name = self._free_name(name, ident)
        self._tell(Change(ident))

    def approve(self, login: str, user: str, wall: Unix) -> None:
        """Let a pending login in, as a human would."""
        machine, key, _ = self.pending[login]
        self.pending[login] = (machine, key, True)
        self._admit(machine, key, {}, user=user, ephemeral=False, tags=(), wall=wall)

    # --- register ---------------------------------------------------------------------------------

    def register(self, machine: MachinePublic, request: Mapping[str, Any], wall: Unix) -> dict[str, Any]:
        """A RegisterResponse. ValueError if the request is not one."""
        key = _node_key(request.get("NodeKey"))
        hostinfo = _mapping(request.get("Hostinfo"))
        member = self._of_machine(machine)
        expiry = parse_time(request.get("Expiry"))
        holder = self.by_key(key)
        if holder is not None and holder.machine != machine:
            return _refusal("node exists with a different machine key")
        if expiry is not None and expiry <= wall:
            return self._logout(member if member is holder else None, wall)
        known = member is not None and member.key == key
        if known and member is not None and not member.is_expired(wall):
            return self._welcome(self._renewed(member, hostinfo))
        auth = _mapping(request.get("Auth")).get("AuthKey")
        if isinstance(auth, str) and auth:
            return self._register_by_key(machine, key, auth, hostinfo, expiry, wall)
        if known:
            return {"NodeKeyExpired": True, "MachineAuthorized": False}
        return self._register_by_human(machine, key, str(request.get("Followup") or ""), hostinfo)

    def _register_by_key(
        self,
        machine: MachinePublic,
        key: NodePublic,
        text: str,
        hostinfo: Mapping[str, Any],
        expiry: Unix | None,
        wall: Unix,
    ) -> dict[str, Any]:
        auth = self.keys.get(text)
        if auth is None:
            return _refusal("invalid pre auth key")
        if auth.revoked:
            return _refusal("authkey revoked")
        if auth.expires_at <= wall:
            return _refusal("authkey expired")
        if auth.used and not auth.reusable:
            return _refusal("authkey already used")
        if hostinfo.get("RequestTags"):
            return _refusal(f"requested tags {hostinfo['RequestTags']} are invalid or not permitted")
        if len(self.members) >= MEMBERS_MAX:
            return _refusal("this tailnet is full")
        auth.used = True
        member = self._admit(
            machine, key, hostinfo, user=auth.user, ephemeral=auth.ephemeral, tags=auth.tags, wall=wall
        )
        member.expires_at = expiry
        return self._welcome(member)

    def _register_by_human(
        self, machine: MachinePublic, key: NodePublic, followup: str, hostinfo: Mapping[str, Any]
    ) -> dict[str, Any]:
        login = followup.rpartition("/")[2]
        waiting = self.pending.get(login)
        if waiting is not None and waiting[:2] == (machine, key) and waiting[2]:
            del self.pending[login]
            member = self._of_machine(machine)
            if member is not None:
                return self._welcome(self._renewed(member, hostinfo))
        if waiting is None or waiting[:2] != (machine, key):
            if len(self.pending) >= PENDING_MAX:
                self.pending.pop(next(iter(self.pending)))
            login = "hskey-authreq-" + self._entropy(12).hex()
            self.pending[login] = (machine, key, False)
        return {"AuthURL": f"{self.url}/register/{login}", "MachineAuthorized": False}

    def is_waiting(self, followup: str) -> bool:
        """Whether a Followup waits for a human that has not come yet."""
        waiting = self.pending.get(followup.rpartition("/")[2])
        return waiting is not None and not waiting[2]

    def _logout(self, member: Member | None, wall: Unix) -> dict[str, Any]:
        if member is None:
            return _refusal("node not found")
        if member.ephemeral:
            self.remove(member.id)
        else:
            self.expire(member.id, wall)
        return {"NodeKeyExpired": True, "MachineAuthorized": False}

    def _admit(
        self,
        machine: MachinePublic,
        key: NodePublic,
        hostinfo: Mapping[str, Any],
        *,
        user: str,
        ephemeral: bool,
        tags: tuple[str, ...],
        wall: Unix,
    ) -> Member:
        member = self._of_machine(machine)
        if member is None:
            ident, self._next_id = self._next_id, self._next_id + 1
            member = Member(
                id=ident,
                user=user,
                machine=machine,
                key=key,
                name="",
                v4=TAILNET_V4[ident],
                v6=TAILNET_V6[ident],
                hostinfo=hostinfo,
                created=wall,
            )
            self.members[ident] = member
        member.key, member.user, member.ephemeral, member.tags = key, user, ephemeral, tags
        member.expires_at = None
        member.hostinfo = hostinfo or member.hostinfo
        member.name = member.name or self._free_name(str(hostinfo.get("Hostname") or "node"), member.id)
        self._users.setdefault(user, len(self._users) + 1)
        self._tell(Change(member.id))
        return member

    def _renewed(self, member: Member, hostinfo: Mapping[str, Any]) -> Member:
        if hostinfo and dict(hostinfo) != dict(member.hostinfo):
            member.hostinfo = hostinfo
            self._tell(Change(member.id))
        return member

    def _welcome(self, member: Member) -> dict[str, Any]:
        ident = self._users.setdefault(member.user, len(self._users) + 1)
        return {
            "User": {"ID": ident, "DisplayName": member.user},
            "Login": {"ID": ident, "LoginName": member.user, "DisplayName": member.user},
            "MachineAuthorized": True,
        }

    # --- map --------------------------------------------------------------------------------------

    def authenticate(self, machine: MachinePublic, request: Mapping[str, Any]) -> Member | None:
        """The member that sends this MapRequest; None: not found. ValueError if it is not one."""
        member = self.by_key(_node_key(request.get("NodeKey")))
        return member if member is not None and member.machine == machine else None

    def update(self, member: Member, request: Mapping[str, Any]) -> None:
        """Take what a MapRequest says of its sender; tells the others what is new."""
        patch: dict[str, Any] = {}
        disco = str(DiscoPublic.parse(str(request.get("DiscoKey") or DiscoPublic.zero())))
        if disco != member.disco:
            member.disco = patch["DiscoKey"] = disco
        endpoints = request.get("Endpoints")
        if isinstance(endpoints, list):
            wanted = tuple(str(endpoint) for endpoint in endpoints[:ENDPOINTS_MAX])
            if wanted != member.endpoints:
                member.endpoints = wanted
                patch["Endpoints"] = list(wanted)
        hostinfo = _mapping(request.get("Hostinfo"))
        home = _mapping(hostinfo.get("NetInfo")).get("PreferredDERP")  # absent: as before
        if isinstance(home, int) and home and home != member.home:
            member.home = patch["DERPRegion"] = home
        whole = bool(hostinfo) and _without_network(hostinfo) != _without_network(member.hostinfo)
        member.hostinfo = hostinfo or member.hostinfo
        if whole or (patch.get("Endpoints") == []):  # a patch cannot say "none"
            self._tell(Change(member.id))
        elif patch:
            self._tell(Change(member.id, patch=patch))

    def came(self, member: Member) -> None:
        """A stream of this member opened."""
        member.streams += 1
        if member.streams == 1:
            self._tell(Change(member.id, patch={"Online": True}))

    def went(self, member: Member, wall: Unix) -> None:
        """A stream of this member ended."""
        member.streams -= 1
        if member.streams == 0 and member.id in self.members:
            member.last_seen = wall
            self._tell(Change(member.id, patch={"Online": False, "LastSeen": format_time(wall)}))

    def full_map(self, viewer: Member, wall: Unix) -> dict[str, Any]:
        """The first message of a stream."""
        peers = [self.node_json(m, wall) for m in self.members.values() if m.id != viewer.id]
        return {
            "Node": self.node_json(viewer, wall),
            "DERPMap": self.relays,
            "Peers": peers,
            "DNSConfig": self._dns(),
            "Domain": self.domain,
            "PacketFilters": {"base": self.filter_json(viewer)},
            "UserProfiles": self._profiles(),
            "ControlTime": format_time(wall),
        }

    def delta(self, viewer: Member, changes: Sequence[Change], wall: Unix) -> dict[str, Any]:
        """One message for what happened since the last; {} if nothing of it concerns the viewer."""
        message: dict[str, Any] = {}
        whole: dict[int, None] = {}
        patches: dict[int, dict[str, Any]] = {}
        for change in changes:
            if change.policy or (change.member and change.patch is None):
                message["PacketFilters"] = {"base": self.filter_json(viewer)}  # names and tags may decide
            if change.relays:
                message["DERPMap"] = self.relays
            if change.removed:
                message.setdefault("PeersRemoved", []).append(change.member)
            elif change.member == viewer.id:
                message["Node"] = self.node_json(viewer, wall)
            elif change.patch is not None:
                patches.setdefault(change.member, {"NodeID": change.member}).update(change.patch)
            elif change.member in self.members:
                whole[change.member] = None
        if whole:
            message["PeersChanged"] = [self.node_json(self.members[i], wall) for i in whole if i in self.members]
            message["UserProfiles"] = self._profiles()
        if rest := [patch for ident, patch in patches.items() if ident not in whole]:
            message["PeersChangedPatch"] = rest
        if message:
            message["ControlTime"] = format_time(wall)
        return message

    def node_json(self, member: Member, wall: Unix) -> dict[str, Any]:
        """A member as tailcfg.Node."""
        prefixes = [f"{member.v4}/32", f"{member.v6}/128"]
        node: dict[str, Any] = {
            "ID": member.id,
            "StableID": str(member.id),
            "Name": f"{member.name}.{self.domain}.",
            "User": self._users.get(member.user, 1),
            "Key": str(member.key),
            "KeyExpiry": format_time(member.expires_at),
            "Machine": str(member.machine),
            "DiscoKey": member.disco,
            "Addresses": prefixes,
            "AllowedIPs": prefixes,
            "Endpoints": list(member.endpoints),
            "HomeDERP": member.home,
            "Hostinfo": member.hostinfo,
            "Created": format_time(member.created),
            "Online": member.streams > 0,
            "MachineAuthorized": not member.is_expired(wall),
            "Expired": member.is_expired(wall),
        }
        if member.tags:
            node["Tags"] = list(member.tags)
        if not member.streams and member.last_seen is not None:
            node["LastSeen"] = format_time(member.last_seen)
        return node

    def filter_json(self, viewer: Member) -> list[dict[str, Any]]:
        """The viewer's packet filter: rules whose destination it is."""
        return self.policy.rules_for(viewer, self.members.values())

    def by_key(self, key: NodePublic) -> Member | None:
        """The member that holds this node key."""
        return next((m for m in self.members.values() if m.key == key), None)

    # --- small things -----------------------------------------------------------------------------

    def _of_machine(self, machine: MachinePublic) -> Member | None:
        return next((m for m in self.members.values() if m.machine == machine), None)

    def _free_name(self, wanted: str, ident: int) -> str:
        base = "".join(c if c.isascii() and c.isalnum() else "-" for c in wanted.lower())[:60].strip("-") or "node"
        taken = {m.name for m in self.members.values() if m.id != ident}
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        return name

    def _dns(self) -> dict[str, Any]:
        return {"Proxied": True, "Domains": [self.domain], "Routes": {}, "Resolvers": []}

    def _profiles(self) -> list[dict[str, Any]]:
        return [{"ID": ident, "LoginName": name, "DisplayName": name} for name, ident in self._users.items()]

    def _tell(self, change: Change) -> None:
        for listener in list(self.listeners):
            listener(change)


def format_time(wall: Unix | None) -> str:
    """RFC 3339; the zero time for None."""
    if wall is None:
        return NO_TIME
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refusal(text: str) -> dict[str, Any]:
    return {"Error": text, "MachineAuthorized": False}


def _node_key(text: Any) -> NodePublic:
    try:
        key = NodePublic.parse(str(text))
    except KeyFormatError as error:
        raise ValueError(str(error)) from None
    if key.is_zero:
        raise ValueError("the zero node key")
    return key


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _without_network(hostinfo: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hostinfo.items() if name != "NetInfo"}
