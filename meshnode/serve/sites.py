"""`--serve SCHEME:PORT=TARGET`: reads rules, serves HTTP from a directory or another server.

A Site owns one tailnet port. It listens at once and loads the HTTP library beside the node's joining,
so that `ready` does not wait for it; connections made meanwhile wait in the backlog. Every request is
checked here once: one strict target form, identity by the newest netmap, bounded head and wait.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import urlsplit

from meshnode.base.addr import split_host_port
from meshnode.base.errors import ConfigError
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.serve.ingress import Accepting, Identify, Ingress

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest, StreamResponse

HEAD_LINE_MAX: Final = 16 * 1024
KEEPALIVE_S: Final = 75.0
"""An idle connection, or one that never finishes its request head, ends after this."""
READ_BUFFER: Final = 128 * 1024
STOP_S: Final = 1.0
"""What running requests get to finish when the node stops."""

_log = get_logger("serve")


@dataclass(frozen=True, slots=True)
class Directory:
    """Files below `path`."""

    path: Path


@dataclass(frozen=True, slots=True)
class Upstream:
    """Another HTTP server. `base` is its path prefix without a trailing slash."""

    scheme: str
    host: str
    port: int
    base: str = ""
    verify: bool = True

    @property
    def authority(self) -> str:
        """host:port, bracketed for IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Target = Directory | Upstream
Handler = Callable[["BaseRequest"], Awaitable["StreamResponse"]]
Open = Callable[[Identify], AbstractAsyncContextManager[Handler]]
"""Makes a site's handler and whatever it owns."""


class NodeFace(Protocol):
    """What serving needs of a node."""

    async def listen(self, port: int) -> Accepting: ...
    def whois(self, address: Any) -> Any: ...


def site_door(rule: str) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """The door for one `--serve` rule, given a Node. ConfigError names the rule and what is wrong."""
    head, _, target = rule.partition("=")
    scheme, _, text = head.partition(":")
    if scheme not in ("http", "tcp") or not target or not text.isascii() or not text.isdigit():
        raise ConfigError(f"serve: {rule!r} is not SCHEME:PORT=TARGET with SCHEME tcp or http, as http:80=./site")
    port = int(text)
    if not 1 <= port <= 65535:
        raise ConfigError(f"serve: {rule!r}: {port} is no port; use 1 to 65535")
    if scheme == "tcp":
        return _forward_door(rule, port, target)
    parsed = parse_target(target, rule)
    return lambda node: Site(node, port, opener(parsed, node))


def _forward_door(rule: str, port: int, target: str) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    try:
        host, target_port = split_host_port(target, default_host="127.0.0.1")
    except ValueError as error:
        raise ConfigError(f"serve: {rule!r}: {error}") from None
    if not target_port:
        raise ConfigError(f"serve: {rule!r}: port 0 cannot be connected to")
    from meshnode.tunnel.forward import Forward, dial_of

    return lambda node: Forward(node.listen, port, host, target_port, dial=dial_of(node, host))


def parse_target(text: str, rule: str = "") -> Target:
    """What an http rule serves: a URL, HOST:PORT, a bare port of this machine, or a directory."""
    rule = rule or text
    if "://" in text:
        return _parse_url(text, rule)
    path = Path(text).expanduser()
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise ConfigError(f"serve: {rule!r}: the directory {text} cannot be read by this user")
        return Directory(path)
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return Upstream("http", "127.0.0.1", int(text))
    if path.exists():
        raise ConfigError(f"serve: {rule!r}: {text} is a file; serve the directory that holds it")
    if re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*):[0-9]{1,5}", text):
        host, _, digits = text.rpartition(":")
        if 0 < int(digits) < 65536:
            return Upstream("http", host.strip("[]") or "127.0.0.1", int(digits))
        raise ConfigError(f"serve: {rule!r}: {digits} is no port; use 1 to 65535")
    raise ConfigError(f"serve: {rule!r}: {text} is no directory here, and neither a URL nor HOST:PORT")


def _parse_url(text: str, rule: str) -> Upstream:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"serve: {rule!r}: {str(error).lower()}") from None
    if url.username or url.password or url.query or url.fragment:
        raise ConfigError(f"serve: a target URL holds more than scheme, host, port and path  ({url.hostname})")
    scheme, _, extra = url.scheme.partition("+")
    if scheme not in ("http", "https") or extra not in ("", "insecure") or (extra and scheme == "http"):
        raise ConfigError(f"serve: {rule!r}: the scheme is {url.scheme}; use http, https or https+insecure")
    if not url.hostname:
        raise ConfigError(f"serve: {rule!r} names no host; write http://HOST[:PORT]")
    default = 443 if scheme == "https" else 80
    return Upstream(scheme, url.hostname, port or default, url.path.rstrip("/"), verify=not extra)


def opener(target: Target, node: Any = None) -> Open:
    """Makes the handler of a target, once its libraries are loaded. node: whose group its host may be in.

    ConfigError: TLS to a host inside a network, whose name no certificate can hold.
    """
    from meshnode.tunnel.forward import dial_of

    dial = dial_of(node, target.host) if isinstance(target, Upstream) else None
    if isinstance(target, Upstream) and dial is not None and target.scheme == "https":
        raise ConfigError(f"serve: https to {target.host}: WireGuard encrypts already; use http://{target.authority}")

    def open_target(identify: Identify) -> AbstractAsyncContextManager[Handler]:
        if isinstance(target, Directory):
            from meshnode.serve.files import Files

            return Files(target.path)
        from meshnode.serve.reverse import Reverse

        return Reverse(target, identify, dial=dial)

    return open_target


class Site:
    """Serves HTTP on one tailnet port while its block is entered."""

    def __init__(self, node: NodeFace, port: int, open_handler: Open) -> None:
        self._node = node
        self.port = port
        self._open = open_handler
        self._listener: Accepting | None = None
        self._scope: Scope | None = None
        self.ingress: Ingress | None = None
        self.serving = asyncio.Event()
        """Set once requests are taken."""

    async def __aenter__(self) -> Self:
        self._listener = await self._node.listen(self.port)
        self._scope = Scope(f"site:{self.port}")
        self._scope.spawn(self._serve(self._listener), "serve")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._scope is not None:
            await self._scope.aclose()

    async def _serve(self, listener: Accepting) -> None:
        await asyncio.to_thread(_load)
        async with self._open(self._node.whois) as handler:
            server = _make_server(handler)
            self.ingress = Ingress(listener, server, identify=self._node.whois, name=f"http:{self.port}")
            try:
                async with self.ingress:
                    self.serving.set()
                    await asyncio.Event().wait()
            finally:
                await server.shutdown(STOP_S)


def _load() -> None:
    """Import what HTTP needs, away from the loop."""
    import mimetypes

    import aiohttp.web  # noqa: F401

    mimetypes.init()


def _make_server(handler: Handler) -> Any:
    from aiohttp import web

    return web.Server(
        _checked(handler),
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=HEAD_LINE_MAX,
        max_field_size=HEAD_LINE_MAX,
        read_bufsize=READ_BUFFER,
        auto_decompress=False,
        access_log=None,
        logger=_quiet(),
        tcp_keepalive=False,
        lingering_time=1.0,
    )


def _quiet() -> Any:
    """The library tells of clients that left, with tracebacks; what matters is logged by `_checked`."""
    import logging

    logger = logging.getLogger("meshnode.serve.http")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


def _checked(handler: Handler) -> Handler:
    from aiohttp import web

    async def handle(request: BaseRequest) -> StreamResponse:
        if not request.raw_path.startswith("/"):
            return web.Response(status=400, text="the request target must be a path\n", headers=PLAIN)
        try:
            return await handler(request)
        except (ConnectionError, asyncio.CancelledError, web.HTTPException):
            raise
        except Exception as error:
            _log.error("a handler failed", error=f"{type(error).__name__}: {error}")
            return web.Response(status=500, text="internal error\n", headers=PLAIN)

    return handle


PLAIN: Final = {"Server": "meshnode", "X-Content-Type-Options": "nosniff"}
"""Headers of every answer that is our own."""
