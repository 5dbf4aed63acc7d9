"""Where a relay map comes from while no control server hands one out: a file, an https URL, or one relay's name.

What is fetched is bounded in bytes and in time, and its certificate is checked as usual. Redirects are not followed.
Source: docs/protocol/paths.md 1.14.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from meshnode.base.addr import parse_ip, split_host_port
from meshnode.base.bounds import RELAY_MAP_MAX
from meshnode.base.errors import CertificateError, ConfigError, ProxyError, RemoteProtocolError
from meshnode.core.proxies import Proxies
from meshnode.netmap.model import RelayMap
from meshnode.netmap.relayfile import map_of_one, parse_relay_map
from meshnode.run.connect import connect_through
from meshnode.wire.http1 import ClientHttp, Response

FETCH_S: Final = 10.0
HTTPS_PORT: Final = 443
READ_SIZE: Final = 64 * 1024
OPTION: Final = "--derp-map"


async def load_relay_map(source: str, *, ca_file: str, proxies: Proxies) -> RelayMap:
    """The map in that file or at that URL. ConfigError, CertificateError, ProxyError, each a sentence that names it."""
    name = f"{OPTION} {_shown(source)}"
    if "://" in source:
        data = await _fetch(_checked(source, name), name, ca_file, proxies)
    else:
        data = _read(Path(source), name)
    return parse_relay_map(data, name)


async def relay_map_of(target: str, *, proxies: Proxies) -> RelayMap:
    """The map with HOST or HOST:PORT alone. ConfigError if it is neither, or nobody knows the name."""
    host, port = _split(target)
    if proxies.choose("https", host, port) is None:
        try:
            await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(f"--relay: {host} does not resolve: {(error.strerror or str(error)).lower()}") from None
    return map_of_one(host, port)


def _split(target: str) -> tuple[str, int]:
    bare = target.strip("[]")
    with suppress(ValueError):
        return str(parse_ip(bare)), HTTPS_PORT
    with suppress(ValueError):
        host, port = split_host_port(target) if ":" in target else (target, HTTPS_PORT)
        if host and port and host.isascii() and not any(c.isspace() or c in "/@[]" for c in host):
            return host, port
    raise ConfigError(f"--relay {target!r} is no relay; write HOST or HOST:PORT")


def _shown(source: str) -> str:
    """A URL without what may be a password."""
    scheme, mark, rest = source.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}" if mark else source


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(RELAY_MAP_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _checked(url: str, name: str) -> SplitResult:
    """https, or http to this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(f"{name} is no URL") from None
    if not host or parts.username is not None:
        raise ConfigError(f"{name}: {'it takes no user name' if host else 'it names no host'}")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_here(host)):
        raise ConfigError(f"{name}: only https is fetched, where the sender is proved; for another, save it to a file")
    return parts


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return parse_ip(host).is_loopback
    return host == "localhost"


async def _fetch(url: SplitResult, name: str, ca_file: str, proxies: Proxies) -> bytes:
    try:
        async with asyncio.timeout(FETCH_S):
            answer = await _exchange(url, ca_file, proxies)
    except TimeoutError:
        raise ConfigError(f"{name}: no answer within {FETCH_S:.0f} s") from None
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(
            f"{name}: the certificate is not trusted: {error.verify_message}; "
            "if its CA is your own, name its file with --ca-file"
        ) from None
    except ProxyError as error:
        raise type(error)(f"{name}: {error}") from None
    except RemoteProtocolError as error:
        raise ConfigError(f"{name}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be fetched: {(error.strerror or str(error)).lower()}") from None
    if 300 <= answer.status <= 399:
        where = answer.headers.get("location", "")[:200]
        raise ConfigError(f"{name}: the server sends us on to {where!r}; name that if you trust it")
    if answer.status != 200:
        raise ConfigError(f"{name}: the server answers {answer.status} {answer.reason}".rstrip())
    return answer.body


async def _exchange(url: SplitResult, ca_file: str, proxies: Proxies) -> Response:
    host, port = url.hostname or "", url.port or (HTTPS_PORT if url.scheme == "https" else 80)
    tls = {"ssl": _context(ca_file), "server_hostname": host} if url.scheme == "https" else {}
    proxy = proxies.choose(url.scheme, host, port)
    if proxy is None:
        reader, writer = await asyncio.open_connection(host, port, **tls)  # type: ignore[arg-type]
    else:
        sock = await connect_through(proxy, host, port, ca_file=ca_file)
        reader, writer = await asyncio.open_connection(sock=sock, **tls)  # type: ignore[arg-type]
    try:
        http = ClientHttp(url.netloc, body_limit=RELAY_MAP_MAX)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        fields = [("User-Agent", "meshnode"), ("Accept", "application/json, application/yaml"), ("Connection", "close")]
        writer.write(http.request("GET", target, fields))
        answer = None
        while answer is None:
            answer = http.receive(await reader.read(READ_SIZE))
        return answer
    finally:
        writer.transport.abort()


def _context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise ConfigError(f"--ca-file {ca_file} cannot be used") from None
    return context
