"""Proxy: an HTTP proxy's URL taken apart; its user name and password never print.

They come percent-encoded; a message about a wrong URL does not repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from meshnode.base.errors import ConfigError

OFF: Final = "off"
"""The setting for no proxy, whatever the environment says."""
DEFAULT_PORTS: Final = {"http": 3128, "https": 443}
PROXY_FORM: Final = "http://[USER:PASSWORD@]HOST[:PORT]"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and where we were told of it."""

    host: str
    port: int
    is_tls: bool = False
    """The connection to the proxy is TLS itself."""
    source: str = "proxy"
    """The variable or setting that named it."""
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, source: str = "proxy") -> Proxy:
        """From a URL, http if it names no scheme. ConfigError, which never repeats the text: it may hold a password."""
        url = text.strip()
        if "://" not in url:
            url = f"http://{url}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigError(f"{source}: not a URL; write {PROXY_FORM}") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise ConfigError(f"{source}: {parts.scheme[:16]!r} is no kind of proxy we know; write {PROXY_FORM}")
        if not host or port == 0 or not host.isascii() or any(c.isspace() for c in host):
            raise ConfigError(f"{source}: names no host; write {PROXY_FORM}")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(f"{source}: has something after the host and port; write {PROXY_FORM}")
        credentials = None
        if parts.username is not None:
            credentials = (unquote(parts.username), unquote(parts.password or ""))
        return cls(host, port or DEFAULT_PORTS[parts.scheme], parts.scheme == "https", source, credentials)

    def __str__(self) -> str:
        return authority(self.host, self.port)


def authority(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
