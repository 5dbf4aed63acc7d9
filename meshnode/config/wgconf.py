"""A WireGuard configuration file, as wg(8) and wg-quick(8) read it → WgConfig.

No I/O. Sections and keys are read without regard to case, `#` begins a comment, lists may be repeated. What would
run a command or change the machine (PreUp, PostUp, PreDown, PostDown, SaveConfig, Table, FwMark) is refused with a
warning and never done. Errors name the file and the line and say what to try; the text of a key never enters one.
Source: wg(8) "CONFIGURATION FILE FORMAT", wg-quick(8) "CONFIGURATION".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_interface, ip_network
from typing import Final, NoReturn, TypeVar

from meshnode.base.addr import IP, Prefix, parse_ip, unmap
from meshnode.base.bounds import WGCONF_MAX, WGCONF_PEERS_MAX, WGCONF_WARNINGS_MAX
from meshnode.base.errors import ConfigError, KeyFormatError
from meshnode.base.keys import NodePrivate, NodePublic, PresharedKey

DEFAULT_MTU: Final = 1420
"""wg-quick's, for an Ethernet below: 1500 less 80 for IPv6, UDP and WireGuard."""
MTU_RANGE: Final = (576, 9000)
"""What the packet engine takes."""
AnyKey = TypeVar("AnyKey", NodePrivate, NodePublic, PresharedKey)
_LIKE_A_KEY: Final = re.compile(r"[A-Za-z0-9+/]{24,}=*")
_HOST: Final = re.compile(r"[^\s+/=@\[\]#,;]{1,253}")
"""No character of base64 that a name cannot have: a key in the wrong place is never looked up."""
_COMMANDS: Final = ("preup", "postup", "predown", "postdown")
_INTERFACE: Final = {
    "privatekey": "PrivateKey", "listenport": "ListenPort", "address": "Address", "dns": "DNS", "mtu": "MTU",
    "table": "Table", "fwmark": "FwMark", "saveconfig": "SaveConfig",
    "preup": "PreUp", "postup": "PostUp", "predown": "PreDown", "postdown": "PostDown",
}  # fmt: skip
_PEER: Final = {
    "publickey": "PublicKey", "presharedkey": "PresharedKey", "allowedips": "AllowedIPs", "endpoint": "Endpoint",
    "persistentkeepalive": "PersistentKeepalive",
}  # fmt: skip
_SECTIONS: Final = {"interface": _INTERFACE, "peer": _PEER}


@dataclass(frozen=True, slots=True)
class WgPeer:
    """One `[Peer]`."""

    key: NodePublic
    allowed: tuple[Prefix, ...] = ()
    """What is routed to it, and what it may send from."""
    psk: PresharedKey | None = None
    host: str = ""
    """Address or name of its endpoint; '': it must speak first."""
    port: int = 0
    keepalive_s: int = 0
    """0: no keepalives."""


@dataclass(frozen=True, slots=True)
class WgWarning:
    """Something in the file that has no effect here."""

    where: str
    """FILE:LINE."""
    text: str

    def __str__(self) -> str:
        return f"{self.text}  ({self.where})"


@dataclass(frozen=True, slots=True)
class WgConfig:
    """A whole file."""

    private: NodePrivate
    addresses: tuple[IP, ...]
    """Ours, inside the network."""
    peers: tuple[WgPeer, ...] = ()
    port: int = 0
    """UDP; 0: any."""
    mtu: int = DEFAULT_MTU
    dns: tuple[IP, ...] = ()
    search: tuple[str, ...] = ()
    """Search domains of `DNS =`."""
    warnings: tuple[WgWarning, ...] = ()


@dataclass(slots=True)
class _Draft:
    """A `[Peer]` being read."""

    line: int
    key: NodePublic | None = None
    key_line: int = 0
    allowed: list[Prefix] = field(default_factory=list)
    psk: PresharedKey | None = None
    host: str = ""
    port: int = 0
    keepalive_s: int = 0
    seen: set[str] = field(default_factory=set)


def parse_wgconf(text: str, name: str = "wg.conf") -> WgConfig:
    """Read the text of a file; `name` is what errors and warnings call it. ConfigError, one line."""
    if len(text) > WGCONF_MAX:
        raise ConfigError(f"the file is larger than {WGCONF_MAX >> 20} MiB; is it a WireGuard configuration?  ({name})")
    reader = _Reader(name)
    for number, line in enumerate(text.splitlines(), 1):
        reader.take(number, line.partition("#")[0].strip())
    return reader.finish()


class _Reader:
    """Takes lines in order; knows the section it is in."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._line = 0
        self._section = ""
        self._interface_line = 0
        self._seen: set[str] = set()
        self._private: NodePrivate | None = None
        self._addresses: list[IP] = []
        self._port = 0
        self._mtu = DEFAULT_MTU
        self._dns: list[IP] = []
        self._search: list[str] = []
        self._drafts: list[_Draft] = []
        self._warnings: list[WgWarning] = []
        self._setters: dict[str, Callable[[str], None]] = {
            "privatekey": self._set_private,
            "listenport": self._set_port,
            "address": self._add_addresses,
            "dns": self._add_dns,
            "mtu": self._set_mtu,
            "publickey": self._set_public,
            "presharedkey": self._set_psk,
            "allowedips": self._add_allowed,
            "endpoint": self._set_endpoint,
            "persistentkeepalive": self._set_keepalive,
        }

    # --- lines ---

    def take(self, number: int, line: str) -> None:
        """One line without its comment."""
        self._line = number
        if not line:
            return
        if line.startswith("["):
            self._begin(line)
            return
        key, sep, value = (part.strip() for part in line.partition("="))
        if not sep:
            # Not repeated: it may be a key that lost its name.
            self._fail("this line is neither [Section] nor Key = value", number)
        if not self._section:
            self._fail("a setting stands before the first section; begin with [Interface]", number)
        self._set(key.lower(), key, value)

    def _begin(self, line: str) -> None:
        section = line[1:-1].strip().lower()
        if section not in _SECTIONS or not line.endswith("]"):
            shown = line
            self._fail(f"{_shown(shown)} is no section; a WireGuard file has [Interface] and [Peer]", self._line)
        if section == "interface":
            if self._interface_line:
                self._fail(f"[Interface] was begun in line {self._interface_line} already; keep one", self._line)
            self._interface_line = self._line
        else:
            if len(self._drafts) >= WGCONF_PEERS_MAX:
                self._fail(f"more than {WGCONF_PEERS_MAX} peers", self._line)
            self._drafts.append(_Draft(self._line))
        self._section = section

    def _set(self, key: str, shown: str, value: str) -> None:
        known = _SECTIONS[self._section]
        if key not in known:
            self._fail_unknown(key, shown)
        label = known[key]
        if key in _COMMANDS:
            self._warn(f"{label} would run a command: it is refused and never run")
            return
        if key in ("table", "fwmark", "saveconfig"):
            self._warn(f"{label} has no effect: this network has no interface on the machine")
            return
        if not value:
            self._fail(f"{label} is empty", self._line)
        seen = self._seen if self._section == "interface" else self._drafts[-1].seen
        if key not in ("address", "dns", "allowedips"):
            if key in seen:
                self._fail(f"{label} is set twice in this section; keep one", self._line)
            seen.add(key)
        self._setters[key](value)

    def _fail_unknown(self, key: str, shown: str) -> NoReturn:
        section = {"interface": "Interface", "peer": "Peer"}[self._section]
        other = "peer" if self._section == "interface" else "interface"
        if key in _SECTIONS[other]:
            right = {"interface": "[Interface]", "peer": "[Peer]"}[other]
            self._fail(f"{_SECTIONS[other][key]} belongs below {right}, not [{section}]", self._line)
        close = difflib.get_close_matches(key, _SECTIONS[self._section], n=1)
        tip = f"did you mean {_SECTIONS[self._section][close[0]]}?" if close else "remove the line"
        self._fail(f"[{section}] has no setting {_shown(shown)}; {tip}", self._line)

    # --- [Interface] ---

    def _set_private(self, value: str) -> None:
        key = self._key(NodePrivate, "PrivateKey", value, "wg genkey makes one")
        if key.is_zero:
            self._fail("PrivateKey is all zeros; make one with wg genkey", self._line)
        self._private = key

    def _set_port(self, value: str) -> None:
        self._port = self._number("ListenPort", value, 0, 65535)

    def _set_mtu(self, value: str) -> None:
        self._mtu = self._number("MTU", value, *MTU_RANGE)

    def _add_addresses(self, value: str) -> None:
        for part in _parts(value):
            try:
                ip = unmap(ip_interface(part).ip)
            except ValueError:
                self._fail(f"Address: {_shown(part)} is no IP address; write 10.0.0.2/24", self._line)
            if ip.is_unspecified or ip.is_multicast or ip.is_loopback:
                self._fail(f"Address: {ip} cannot be an address of ours; write 10.0.0.2/24", self._line)
            if ip not in self._addresses:
                self._addresses.append(ip)

    def _add_dns(self, value: str) -> None:
        for part in _parts(value):
            try:
                self._dns.append(parse_ip(part))
            except ValueError:
                self._search.append(part.rstrip(".").lower())

    # --- [Peer] ---

    def _set_public(self, value: str) -> None:
        draft = self._drafts[-1]
        draft.key = self._key(NodePublic, "PublicKey", value, "wg pubkey prints it from a private key")
        draft.key_line = self._line

    def _set_psk(self, value: str) -> None:
        key = self._key(PresharedKey, "PresharedKey", value, "wg genpsk makes one")
        self._drafts[-1].psk = None if key.is_zero else key

    def _add_allowed(self, value: str) -> None:
        for part in _parts(value):
            try:
                self._drafts[-1].allowed.append(ip_network(part, strict=False))
            except ValueError:
                self._fail(f"AllowedIPs: {_shown(part)} is no address range; write 10.0.0.0/24", self._line)

    def _set_endpoint(self, value: str) -> None:
        host, sep, digits = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not sep or not host or not _is_number(digits) or not 0 < int(digits) <= 65535:
            self._fail(f"Endpoint: {_shown(value)} is not HOST:PORT, as vpn.example.com:51820", self._line)
        if (":" in host) != bracketed or not _HOST.fullmatch(host):
            self._fail(f"Endpoint: {_shown(value)}: an IPv6 address wants brackets, as [fd00::1]:51820", self._line)
        draft = self._drafts[-1]
        draft.host, draft.port = host, int(digits)

    def _set_keepalive(self, value: str) -> None:
        is_off = value.lower() == "off"
        self._drafts[-1].keepalive_s = 0 if is_off else self._number("PersistentKeepalive", value, 0, 65535)

    # --- end ---

    def finish(self) -> WgConfig:
        """What the lines amount to."""
        if not self._interface_line:
            self._fail("there is no [Interface] section; is this a WireGuard configuration?", 0)
        if self._private is None:
            self._fail("[Interface] has no PrivateKey; make one with wg genkey", self._interface_line)
        if not self._addresses:
            self._fail("[Interface] has no Address; give it ours, as Address = 10.0.0.2/24", self._interface_line)
        peers = self._peers(self._private.public())
        if not peers:
            self._line = self._interface_line
            self._warn("there is no peer: nothing can be reached and nobody can reach us")
        return WgConfig(
            private=self._private,
            addresses=tuple(self._addresses),
            peers=peers,
            port=self._port,
            mtu=self._mtu,
            dns=tuple(self._dns),
            search=tuple(self._search),
            warnings=tuple(self._warnings),
        )

    def _peers(self, own: NodePublic) -> tuple[WgPeer, ...]:
        lines: dict[NodePublic, int] = {}
        owner: dict[Prefix, NodePublic] = {}
        kept: list[tuple[NodePublic, _Draft]] = []
        for draft in self._drafts:
            self._line = draft.key_line or draft.line
            if draft.key is None:
                self._fail("this [Peer] has no PublicKey", draft.line)
            if draft.key == own:
                self._warn("this peer has our own key and is left out")
                continue
            if draft.key in lines:
                self._fail(f"the peer of line {lines[draft.key]} has the same PublicKey; keep one", self._line)
            lines[draft.key] = self._line
            for prefix in draft.allowed:
                before = owner.get(prefix, draft.key)
                if before != draft.key:
                    # As WireGuard does it: a range has one peer, and the last to claim it wins.
                    self._warn(f"{prefix} was the peer's of line {lines[before]}; this peer takes it over")
                owner[prefix] = draft.key
            kept.append((draft.key, draft))
        return tuple(
            WgPeer(
                key,
                tuple(p for p in dict.fromkeys(draft.allowed) if owner[p] == key),
                draft.psk,
                draft.host,
                draft.port,
                draft.keepalive_s,
            )
            for key, draft in kept
        )

    # --- values ---

    def _key(self, kind: type[AnyKey], label: str, value: str, tip: str) -> AnyKey:
        try:
            return kind.parse_base64(value)
        except KeyFormatError as error:
            problem = str(error).partition(": ")[2]
            self._fail(f"{label} is no key: {problem}; {tip}", self._line)

    def _number(self, label: str, value: str, low: int, high: int) -> int:
        if not _is_number(value) or not low <= int(value) <= high:
            self._fail(f"{label}: {_shown(value)} is not a whole number from {low} to {high}", self._line)
        return int(value)

    def _warn(self, text: str) -> None:
        if len(self._warnings) < WGCONF_WARNINGS_MAX:
            self._warnings.append(WgWarning(self._where(self._line), text))

    def _fail(self, text: str, line: int) -> NoReturn:
        raise ConfigError(f"{text}  ({self._where(line)})")

    def _where(self, line: int) -> str:
        return f"{self._name}:{line}" if line else self._name


def _parts(value: str) -> list[str]:
    return [part for piece in value.split(",") if (part := piece.strip())]


def _shown(text: str) -> str:
    """A piece of the file for an error: short, and without what may be a key that stands in the wrong place."""
    return repr(_LIKE_A_KEY.sub("…", text)[:60])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6
