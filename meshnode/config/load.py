"""(file text, environment, flags) → Config, checked once; errors name the setting and its source.

Flag beats variable beats file beats default. The file is TOML: tables `[tailscale]` or `[wireguard]`, `[tunnel]` and
`[run]` for one network, or `[networks.NAME.tailscale]` … for several: one tailnet, picked by `--network`, and every
plain WireGuard network beside it; flags and variables speak of the tailnet, or of the only network. Values of secrets
never enter an error. Reading `env:` and `file:` values goes through callables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from meshnode.base.addr import Endpoint, is_tailnet, split_host_port
from meshnode.base.errors import ConfigError
from meshnode.base.proxy import OFF, Proxy
from meshnode.config.duration import parse_duration
from meshnode.config.model import (
    MEMORY,
    SECTIONS,
    TCP_ECN,
    Config,
    Disco,
    PlainNetwork,
    Secret,
    Tunnel,
    Wireguard,
    default_of,
    environment_names,
    key_of,
    out_of_bounds,
    settings,
)

_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"0", "false", "no", "off", ""}
_NETWORK: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
MTU_RANGE: Final = (1280, 1420)
"""IPv6 needs 1280; above 1420 a tunnel packet no longer fits an Ethernet frame."""

INTERFACE_NAME_MAX: Final = 15
ADVERTISE_MAX: Final = 8
TCP_MEMORY_MIN: Final = 1 << 20
"""Bytes; below this a handful of connections would starve one another."""

ReadText = Callable[[str], str]


class _File:
    """A parsed file and the lines its settings stand on."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._lines = text.splitlines()
        self.tables = self._parse(text)

    def _parse(self, text: str) -> dict[str, Any]:
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            where = re.search(r"\(at line (\d+), column \d+\)", message)
            line = f":{where.group(1) if where else len(text.splitlines())}"
            sentence = message.partition(" (at ")[0]
            raise ConfigError(f"not valid TOML: {sentence[:1].lower()}{sentence[1:]}  ({self.name}{line})") from None

    def where(self, *path: str) -> str:
        """`node.toml:4`, the line of the setting at this path, or of its nearest table."""
        number = next((n for n, found in self._walk() if found == path), None)
        if number is None and path:
            return self.where(*path[:-1])
        return f"{self.name}:{number}" if number else self.name

    def _walk(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if text.startswith("["):
                table = _dotted(text.strip("[] ").partition("]")[0])
                yield number, table
            elif "=" in text and not text.startswith("#"):
                yield number, (*table, *_dotted(text.partition("=")[0]))


def _dotted(text: str) -> tuple[str, ...]:
    parts = re.findall(r'"([^"]*)"|\'([^\']*)\'|([A-Za-z0-9_-]+)', text)
    return tuple(next(p for p in found if p) if any(found) else "" for found in parts)


class _Source:
    """A value and where it came from, for messages."""

    __slots__ = ("value", "origin")

    def __init__(self, value: Any, origin: str) -> None:
        self.value = value
        self.origin = origin


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    read_text: ReadText,
    file_text: str | None = None,
    file_name: str = "meshnode.toml",
) -> Config:
    """Build the Config. `flags` holds only what was given, by field name, plus `network`.

    read_text: reads a file named by a `file:` value. Raises ConfigError, one line.
    """
    file = _File(file_text, file_name) if file_text is not None else None
    network = str(flags.get("network") or environment.get("MESHNODE_NETWORK") or "")
    picked = _pick(file, network)
    if flags.get("wireguard"):
        picked = _only_plain(flags, file, picked.name)
    reader = _Reader(flags, environment, file, read_text)
    sections = {name: reader.section(name, make, picked.tables, picked.path) for name, make in SECTIONS.items()}
    plain = [_plain(reader, entry) for entry in picked.plain]
    if not picked.has_tailnet and sections["tunnel"].tun:
        raise ConfigError("tun: a plain WireGuard network has no kernel interface here; wg-quick makes one")
    if not picked.has_tailnet and len(plain) == 1:
        # It is the one that flags and variables speak of; its doors are the process's.
        own = sections["tunnel"]
        plain[0] = replace(plain[0], tunnel=Tunnel(tcp_memory=own.tcp_memory, tcp_ecn=own.tcp_ecn))
    elif not picked.has_tailnet and sections["tunnel"].serve:
        names = " or ".join(f"[networks.{entry.name}.tunnel]" for entry in plain)
        raise ConfigError(f"serve: in which network? There are several; write it into {names} of the file")
    return Config(network=picked.name, plain=tuple(plain), has_tailnet=picked.has_tailnet, **sections)


class _Entry(NamedTuple):
    """One network of the file."""

    name: str
    tables: Mapping[str, Any]
    path: tuple[str, ...]
    """Of its tables in the file."""


class _Picked(NamedTuple):
    """What of the file is to run."""

    name: str
    tables: Mapping[str, Any]
    """Of the tailnet, or of the only plain network."""
    path: tuple[str, ...]
    plain: tuple[_Entry, ...] = ()
    has_tailnet: bool = True


class _Reader:
    """Reads sections out of all sources."""

    def __init__(
        self, flags: Mapping[str, Any], environment: Mapping[str, str], file: _File | None, read_text: ReadText
    ) -> None:
        self._flags = flags
        self._environment = environment
        self.file = file
        self._read_text = read_text

    def section(
        self, name: str, make: type, tables: Mapping[str, Any], path: tuple[str, ...], *, file_only: bool = False
    ) -> Any:
        """The dataclass of one section. file_only: flags and variables speak of another network."""
        flags: Mapping[str, Any] = {} if file_only else self._flags
        environment: Mapping[str, str] = {} if file_only else self._environment
        values: dict[str, Any] = {}
        for section, item in settings():
            if section != name:
                continue
            source = _find(item, flags, environment, self.file, tables.get(name, {}), (*path, name))
            if source is not None:
                values[item.name] = _convert(item, source, self._environment, self._read_text)
        return make(**values)


def _only_plain(flags: Mapping[str, Any], file: _File | None, name: str) -> _Picked:
    """`--wireguard FILE`: one plain network, and nothing else."""
    if file is not None:
        raise ConfigError("--wireguard: the file of -c says which networks there are; leave one of them out")
    for other in ("control_url", "auth_key", "hostname"):
        if flags.get(other):
            flag = other.replace("_", "-")
            raise ConfigError(f"--wireguard: a plain WireGuard network has no control server; leave out --{flag}")
    path = str(flags["wireguard"])
    name = flags.get("network") or path.rpartition("/")[2].removesuffix(".conf")
    tables = {"wireguard": {"config_file": path}}
    return _Picked(name, {}, (), (_Entry(name, tables, ()),), has_tailnet=False)


def _plain(reader: _Reader, entry: _Entry) -> PlainNetwork:
    where = reader.file.where(*entry.path, "wireguard") if reader.file is not None else "--wireguard"
    if reader.file is None:
        wireguard = Wireguard(str(entry.tables["wireguard"]["config_file"]))
    else:
        wireguard = reader.section("wireguard", Wireguard, entry.tables, entry.path, file_only=True)
    tunnel = reader.section("tunnel", Tunnel, entry.tables, entry.path, file_only=True)
    if not wireguard.config_file:
        raise ConfigError(f'{entry.name}: [wireguard] needs config_file, as config_file = "wg.conf"  ({where})')
    if tunnel.tun:
        where = reader.file.where(*entry.path, "tunnel", "tun") if reader.file is not None else where
        raise ConfigError(f"tun: the plain WireGuard network {entry.name} has no kernel interface  ({where})")
    if not _NETWORK.fullmatch(entry.name):
        raise ConfigError(f"network {entry.name!r}: use letters, digits, hyphens and underscores  ({where})")
    return PlainNetwork(entry.name, wireguard.config_file, tunnel)


def _pick(file: _File | None, wanted: str) -> _Picked:
    """Which networks of the file run: one tailnet at most, and every plain one beside it."""
    if file is None:
        return _Picked(wanted or "default", {}, ())
    networks = file.tables.get("networks")
    if networks is None:
        entry = _Entry(wanted or "default", file.tables, ())
        _check_entry(file, entry)
        if "wireguard" in file.tables:
            return _Picked(entry.name, file.tables, (), (entry,), has_tailnet=False)
        return _Picked(entry.name, file.tables, ())
    if not isinstance(networks, dict) or not networks:
        raise ConfigError(
            f"networks: needs a table per network, as [networks.home.tailscale]  ({file.where('networks')})"
        )
    if wanted and wanted not in networks:
        names = ", ".join(sorted(networks))
        raise ConfigError(f"network {wanted!r}: not in the file, which has {names}  ({file.name})")
    plain = [name for name, tables in networks.items() if isinstance(tables, dict) and "wireguard" in tables]
    tailnets = [name for name in networks if name not in plain]
    if wanted in plain:
        plain, tailnets = [wanted], []
    elif wanted:
        tailnets = [wanted]
    if len(tailnets) > 1:
        names = ", ".join(sorted(tailnets))
        raise ConfigError(f"networks: the file has several ({names}); choose one with --network  ({file.name})")
    entries = {}
    for name in (*tailnets, *plain):
        tables = networks[name]
        if not isinstance(tables, dict):
            raise ConfigError(f"networks.{name}: needs tables inside  ({file.where('networks', name)})")
        entries[name] = _Entry(name, tables, ("networks", name))
        _check_entry(file, entries[name])
    chosen = entries[tailnets[0]] if tailnets else entries[plain[0]] if len(plain) == 1 else _Entry("default", {}, ())
    return _Picked(chosen.name, chosen.tables, chosen.path, tuple(entries[n] for n in plain), bool(tailnets))


def _check_entry(file: _File, entry: _Entry) -> None:
    _refuse_unknown(file, entry.tables, entry.path)
    if "tailscale" in entry.tables and "wireguard" in entry.tables:
        where = file.where(*entry.path, "wireguard")
        raise ConfigError(f"network {entry.name!r} has both [tailscale] and [wireguard]; keep one of them  ({where})")


def _refuse_unknown(file: _File, tables: Mapping[str, Any], prefix: tuple[str, ...]) -> None:
    known = {section: [key_of(i) for s, i in settings() if s == section] for section in SECTIONS}
    for section, body in tables.items():
        where = file.where(*prefix, section)
        if section not in known:
            raise ConfigError(f"{section}: no such table{_near(section, known)}  ({where})")
        if not isinstance(body, dict):
            raise ConfigError(f"{section}: is a table, write [{section}]  ({where})")
        for key in body:
            if key not in known[section]:
                where = file.where(*prefix, section, key)
                raise ConfigError(f"{section}.{key}: no such setting{_near(key, known[section])}  ({where})")


def _near(word: str, known: Any) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _find(
    item: Field[Any],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: _File | None,
    table: Mapping[str, Any],
    path: tuple[str, ...],
) -> _Source | None:
    if flags.get(item.name) is not None:
        word = item.name if item.metadata["flag"] else key_of(item)
        return _Source(flags[item.name], "--" + word.replace("_", "-"))
    for name in environment_names(item):
        if environment.get(name):
            return _Source(environment[name], name)
    if file is not None and key_of(item) in table:
        return _Source(table[key_of(item)], file.where(*path, key_of(item)))
    return None


def _convert(item: Field[Any], source: _Source, environment: Mapping[str, str], read_text: ReadText) -> Any:
    default = default_of(item)
    value, origin = source.value, source.origin
    is_secret, name = isinstance(default, Secret), key_of(item)
    if isinstance(value, str):
        value = _indirect(name, value, origin, environment, read_text, is_secret)
    shown = "its value" if is_secret else repr(value)
    try:
        value = _as_type(default, value)
    except (TypeError, ValueError, OverflowError):
        kind = _KINDS.get(type(default), "text")
        raise ConfigError(f"{name}: {shown} is not {kind}  ({origin})") from None
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{name}: {shown} is none of {', '.join(choices)}  ({origin})")
    if problem := out_of_bounds(item, value):
        raise ConfigError(f"{name}: {problem}  ({origin})")
    check = _CHECKS.get(item.name)
    if check is not None:
        problem, value = check(value)
        if problem:
            raise ConfigError(f"{name}: {problem}  ({origin})")
    return value


_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a length of time; write seconds, or as 500ms, 2s or 1m30s",
    tuple: "a list of texts",
}


def _indirect(
    name: str, value: str, origin: str, environment: Mapping[str, str], read_text: ReadText, is_secret: bool
) -> str:
    """`file:PATH` is read for every setting, `env:NAME` for secrets."""
    if value.startswith("file:"):
        path = value.removeprefix("file:")
        try:
            text = read_text(path).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"{name}: cannot read {path}: {reason}  ({origin})") from None
        if not text:
            raise ConfigError(f"{name}: {path} is empty  ({origin})")
        return text
    if is_secret and value.startswith("env:"):
        variable = value.removeprefix("env:")
        if not environment.get(variable):
            raise ConfigError(f"{name}: environment variable {variable} is not set  ({origin})")
        return environment[variable].strip()
    return value


def read_secret(name: str, value: str, environment: Mapping[str, str], read_text: ReadText) -> Secret:
    """A secret given as a flag: `env:NAME`, `file:PATH` or the text itself. ConfigError if it is empty."""
    text = _indirect(name, value, "--" + name, environment, read_text, True)
    if not text:
        raise ConfigError(f"{name}: is empty  (--{name})")
    return Secret(text)


def _as_type(default: Any, value: Any) -> Any:
    if isinstance(default, Secret):
        if not isinstance(value, str):
            raise TypeError
        return Secret(value)
    if isinstance(default, bool):
        return _as_bool(value)
    if isinstance(default, tuple):
        if isinstance(value, str):
            return tuple(value.split())
        if not all(isinstance(part, str) for part in value):
            raise TypeError
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    if isinstance(default, float):
        return parse_duration(value)
    if isinstance(default, int):
        return int(value)
    if not isinstance(value, str):
        raise TypeError
    return value


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def check_control_url(text: str) -> tuple[str, str]:
    """(problem or '', the URL without trailing slash)."""
    try:
        url = urlsplit(text)
        port_ok = url.port is None or url.port > 0
    except ValueError:
        return f"{text!r} is not a URL; write https://HOST[:PORT]", text
    if url.scheme not in ("http", "https") or not url.netloc:
        host = text.removeprefix("//")
        tip = f"has no scheme; try https://{host}" if "://" not in text else "is neither http nor https"
        return f"{text!r} {tip}", text
    if not url.hostname or not port_ok:
        return f"{text!r} names no host; write https://HOST[:PORT]", text
    if url.username or url.password or url.query or url.fragment:
        return "holds more than scheme, host, port and path", text
    return "", text.rstrip("/")


def _check_proxy(value: Secret) -> tuple[str, Secret]:
    """The problem repeats nothing of the value: it may hold a password."""
    text = value.reveal()
    try:
        if text not in ("", OFF):
            Proxy.parse(text)
    except ConfigError as error:
        return str(error).removeprefix("proxy: "), value
    return "", value


def check_hostname(text: str) -> tuple[str, str]:
    """(problem or '', the name). One DNS label; empty means the machine's own."""
    if text and not _LABEL.fullmatch(text):
        return f"{text!r} is not one DNS label: letters, digits and inner hyphens, at most 63", text
    return "", text


def check_tun(text: str) -> tuple[str, str]:
    """(problem or '', the name). What Linux takes as the name of an interface; empty: none is made."""
    if len(text.encode()) > INTERFACE_NAME_MAX:
        return f"{text!r} is longer than the {INTERFACE_NAME_MAX} letters that an interface's name may have", text
    if text in (".", "..") or not all("!" <= c <= "~" and c not in "/:%" for c in text):
        return f"{text!r} is no name for an interface: letters, digits, '-', '_' and '.'", text
    return "", text


def check_advertise(texts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(problem or '', the endpoints as written). Addresses that somebody else could send to."""
    if len(texts) > ADVERTISE_MAX:
        return f"{len(texts)} addresses are more than the {ADVERTISE_MAX} that peers are told", tuple(texts)
    for text in texts:
        try:
            ip, port, *_ = Endpoint.parse(text)
        except ValueError as error:
            return f"{error}; write IP:PORT or [IP]:PORT", tuple(texts)
        if not port or ip.is_unspecified or ip.is_multicast or is_tailnet(ip):
            return f"{text} is no address that peers can send to from outside", tuple(texts)
    return "", tuple(texts)


def check_tcp_memory(value: int) -> tuple[str, int]:
    """(problem or '', the bytes). 0 lets the engine choose."""
    fine = value == 0 or TCP_MEMORY_MIN <= value < 1 << 63
    return ("" if fine else f"{value} is no amount of memory; use {TCP_MEMORY_MIN} bytes or more, or 0"), value


def check_tcp_ecn(word: str) -> tuple[str, str]:
    """(problem or '', the word)."""
    return ("" if word in TCP_ECN else f"{word!r} is none of {', '.join(TCP_ECN)}"), word


def check_disco(disco: Disco) -> str:
    """What is wrong with a section made by hand, setting first; '' if nothing."""
    for item in fields(disco):
        value, choices = getattr(disco, item.name), item.metadata["choices"]
        if choices and value not in choices:
            return f"{item.name}: {value!r} is none of {', '.join(choices)}"
        if problem := out_of_bounds(item, value):
            return f"{item.name}: {problem}"
    return ""


def _check_port(value: int) -> tuple[str, int]:
    return ("" if 0 <= value <= 65535 else f"{value} is no port; use 0 to 65535"), value


def _check_region(value: int) -> tuple[str, int]:
    return ("" if 0 <= value <= 65535 else f"{value} is no relay region; use its number, or 0 for the nearest"), value


def _check_mtu(value: int) -> tuple[str, int]:
    low, high = MTU_RANGE
    return ("" if low <= value <= high else f"{value} is outside {low} to {high}"), value


def _check_door(text: str) -> tuple[str, str]:
    try:
        if text:
            split_host_port(text, default_host="127.0.0.1")
    except ValueError as error:
        return str(error), text
    return "", text


def _check_state_dir(text: str) -> tuple[str, str]:
    if text.startswith(MEMORY) and text != MEMORY:
        return f"{text!r} has something after mem:", text
    return "", text


def _check_serve(rules: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    for rule in rules:
        head, sep, target = rule.partition("=")
        scheme, _, port = head.partition(":")
        fine = sep and target and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
        if not fine or scheme not in ("tcp", "http"):
            return f"{rule!r} is not SCHEME:PORT=TARGET with SCHEME tcp or http, as http:80=./site", rules
    return "", rules


_CHECKS: Final[dict[str, Callable[[Any], tuple[str, Any]]]] = {
    "control_url": check_control_url,
    "hostname": check_hostname,
    "proxy": _check_proxy,
    "state_dir": _check_state_dir,
    "port": _check_port,
    "mtu": _check_mtu,
    "home_region": _check_region,
    "socks5": _check_door,
    "metrics": _check_door,
    "tun": check_tun,
    "tcp_memory": check_tcp_memory,
    "advertise": check_advertise,
    "serve": _check_serve,
}
