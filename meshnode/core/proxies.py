"""Which HTTP proxy, if any, a connection to a control server or a relay goes through.

A setting rules; without one HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY of the environment do, read as
curl and Go programs read them. Hosts are compared as they are written: nothing is resolved.
Source: docs/protocol/paths.md 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from meshnode.base.errors import ConfigError
from meshnode.base.proxy import OFF, Proxy

VARIABLES: Final = {
    "https": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    "http": ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"),
}
"""By the scheme of what is dialled; the first that is not empty counts."""


@dataclass(frozen=True, slots=True)
class _Exception:
    """One entry of NO_PROXY."""

    port: int | None = None
    network: IPv4Network | IPv6Network | None = None
    name: str = ""
    """Of a host; '' with no network either: everything."""
    inside_only: bool = False
    """Names below it, not itself."""

    def covers(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.network is not None:
            with suppress(ValueError):
                return ip_address(host) in self.network
            return False
        if not self.name:
            return True
        return host.endswith(f".{self.name}") or (host == self.name and not self.inside_only)


class NoProxy:
    """The hosts that are reached without a proxy, as NO_PROXY lists them, apart by commas or spaces.

    `*` is everything; `10.0.0.0/8` a network; `example.com` a name with all below it, `.example.com` and
    `*.example.com` only what is below; any may end in `:PORT`. An entry that is none of these covers nothing.
    """

    def __init__(self, text: str) -> None:
        found = (_read_exception(word) for word in text.replace(",", " ").split())
        self._exceptions = [each for each in found if each is not None]

    def covers(self, host: str, port: int) -> bool:
        """Whether this host is reached directly."""
        host = host.strip("[]").rstrip(".").lower()
        return any(each.covers(host, port) for each in self._exceptions)


def _read_exception(word: str) -> _Exception | None:
    if word == "*":
        return _Exception()
    with suppress(ValueError):
        return _Exception(network=ip_network(word.strip("[]"), strict=False))
    host, colon, digits = word.rpartition(":")
    port = None
    if colon:
        if not (digits.isascii() and digits.isdigit()):
            return None
        port = int(digits)
        if host == "*":
            return _Exception(port)
        with suppress(ValueError):
            return _Exception(port, network=ip_network(host.strip("[]"), strict=False))
    else:
        host = word
    name = host.lower().rstrip(".").removeprefix("*")
    bare = name.removeprefix(".")
    return _Exception(port, name=bare, inside_only=name != bare) if bare else None


class Proxies:
    """The choice, made anew for each connection."""

    def __init__(self, setting: str = OFF, environment: Mapping[str, str] | None = None) -> None:
        """setting: 'off', a proxy's URL for everything, or '' to go by the environment. ConfigError if it is no URL.

        A variable that names no HTTP proxy, a SOCKS one say, counts for nothing and is told in `problems`.
        """
        self.problems: list[str] = []
        self._fixed = Proxy.parse(setting) if setting not in ("", OFF) else None
        self._by_scheme: dict[str, Proxy] = {}
        environment = (environment or {}) if not setting else {}
        names = [name for name in ("NO_PROXY", "no_proxy") if environment.get(name)]
        self._direct = NoProxy(environment[names[0]] if names else "")
        for scheme, variables in VARIABLES.items():
            self._read(scheme, variables, environment)

    def _read(self, scheme: str, variables: tuple[str, ...], environment: Mapping[str, str]) -> None:
        # A CGI program finds a request's `Proxy:` header in HTTP_PROXY: whoever asks would choose our proxy.
        trusted = (v for v in variables if v != "HTTP_PROXY" or "REQUEST_METHOD" not in environment)
        name = next((v for v in trusted if environment.get(v)), "")
        if not name:
            return
        try:
            self._by_scheme[scheme] = Proxy.parse(environment[name], name)
        except ConfigError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))

    def choose(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy for this target; None: connect directly. scheme: http or https.

        The environment's proxies are never asked for this machine itself, as Go has it.
        """
        if self._fixed is not None:
            return self._fixed
        proxy = self._by_scheme.get(scheme)
        if proxy is None or _is_this_machine(host) or self._direct.covers(host, port):
            return None
        return proxy


def _is_this_machine(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost":
        return True
    with suppress(ValueError):
        return ip_address(host.strip("[]")).is_loopback
    return False
