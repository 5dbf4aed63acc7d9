"""Reach the server: TCP or a proxy, TLS, /key, upgrade, Noise.

`dial` turns a Server into a Link: an open control channel on a pipe, with the server's key verified. One
connection serves /key and the upgrade when the server keeps it alive. https means TLS on the URL's port and nothing
else; http means plaintext. A certificate that does not verify ends the attempt: there is no way around it. Where the
upgrade is stripped on the way, a WebSocket is tried.
Source: docs/protocol/control.md 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from urllib.parse import urlencode, urlsplit

from meshnode.base.bounds import KEY_REPLY_MAX
from meshnode.base.errors import (
    CertificateError,
    ConfigError,
    ControlError,
    KeyFormatError,
    MeshError,
    NotAControlServer,
    ProxyError,
    RemoteProtocolError,
    VersionRejected,
)
from meshnode.base.keys import Entropy, MachinePrivate, MachinePublic
from meshnode.control.pipe import Pipe
from meshnode.core.proxies import Proxies
from meshnode.netmap import tailcfg
from meshnode.run.connect import connect_through
from meshnode.run.log import get_logger
from meshnode.wire import websocket
from meshnode.wire.control import HANDSHAKE_HEADER, UPGRADE_PATH, UPGRADE_PROTOCOL, ClientChannel
from meshnode.wire.http1 import ClientHttp, Response
from meshnode.wire.noise import HandshakeError

DIAL_TIMEOUT_S: Final = 10.0
USER_AGENT: Final = "meshnode"
WEBSOCKET_PARAMETER: Final = "X-Tailscale-Handshake"
_log = get_logger("control")


@dataclass(frozen=True, slots=True)
class Server:
    """A control URL taken apart."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    """Path before /key and /machine/…; the upgrade itself is always at the root."""

    @classmethod
    def parse(cls, url: str) -> Server:
        """ConfigError for anything that is no http or https URL with a host."""
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https"):
            raise ConfigError(f"control_url: {url!r} has no scheme; try https://{url.split('://')[-1]}")
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(f"control_url: {url!r} has an impossible port") from None
        if not parts.hostname:
            raise ConfigError(f"control_url: {url!r} names no host")
        if parts.username is not None:
            raise ConfigError("control_url: a control server takes no user name; remove it from the URL")
        host = "controlplane.tailscale.com" if parts.hostname == "login.tailscale.com" else parts.hostname
        return cls(parts.scheme, host, port or _default_port(parts.scheme), parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL again."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def is_tls(self) -> bool:
        """Whether the connection is TLS."""
        return self.scheme == "https"


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


class KeyMismatch(ControlError):
    """The server does not hold the key we expect."""


class UpgradeStripped(ControlError):
    """The server answered in HTTP and did not change the protocol, as behind a proxy that drops the header."""


@dataclass(slots=True)
class Link:
    """An open control channel."""

    server: Server
    pipe: Pipe
    channel: ClientChannel
    key: MachinePublic
    early: bytes
    """Plaintext that came with the handshake."""


def make_tls(ca_file: str) -> ssl.SSLContext:
    """A verifying context: the system's authorities and this CA file's. ConfigError if the file is none."""
    context = ssl.create_default_context()
    try:
        if ca_file:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file: {ca_file!r} cannot be used: {_reason(error)}") from None
    context.set_alpn_protocols(["http/1.1"])  # never h2: the upgrade needs HTTP/1.1
    return context


@dataclass(frozen=True, slots=True)
class Route:
    """How a server is reached."""

    tls: ssl.SSLContext | None = None
    proxies: Proxies = field(default_factory=Proxies)
    ca_file: str = ""
    """For a proxy that speaks TLS; `tls` has it already."""


async def open_pipe(server: Server, route: Route) -> Pipe:
    """Connect. ControlError says what kept us, CertificateError if TLS did not verify."""
    loop = asyncio.get_running_loop()
    name = server.host if server.is_tls else None
    context = route.tls if server.is_tls else None
    proxy = route.proxies.choose(server.scheme, server.host, server.port)
    try:
        if proxy is None:
            _, pipe = await loop.create_connection(Pipe, server.host, server.port, ssl=context, server_hostname=name)
            return pipe
        sock = await connect_through(proxy, server.host, server.port, ca_file=route.ca_file)
        _, pipe = await loop.create_connection(Pipe, sock=sock, ssl=context, server_hostname=name)
        return pipe
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(
            f"the certificate of {server.authority} is not trusted: {error.verify_message}; "
            "if its CA is your own, name its file with --ca-file"
        ) from None
    except ssl.SSLError as error:
        raise NotAControlServer(
            f"{server.authority} does not speak TLS as expected ({_reason(error)}); check the scheme and port of "
            f"{server.url}"
        ) from None
    except ProxyError as error:
        raise type(error)(f"cannot reach control server {server.authority}: {error}") from None
    except OSError as error:
        raise ControlError(f"cannot reach control server {server.authority}: {_reason(error)}") from None


async def exchange(
    pipe: Pipe, http: ClientHttp, request: bytes, server: Server
) -> Response:  # fmt: skip
    """One request and its answer. NotAControlServer if what comes is not HTTP."""
    pipe.write(request)
    said_something = False
    while True:
        data = await pipe.read()
        said_something = said_something or bool(data)
        try:
            answer = http.receive(data)
        except RemoteProtocolError as error:
            if said_something:
                raise NotAControlServer(f"{server.authority} does not answer as a web server: {error}") from None
            answer = None
        if answer is not None:
            return answer
        if not data:
            raise ControlError(f"{server.authority} closed the connection without an answer")


async def dial(
    server: Server,
    machine: MachinePrivate,
    *,
    version: int,
    entropy: Entropy,
    route: Route,
    expected: MachinePublic | None = None,
) -> Link:
    """An open channel. With `expected` no key is fetched, and any other is a KeyMismatch.

    Raises ControlError and its kin, each a sentence for people, within DIAL_TIMEOUT_S.
    """
    pipe: Pipe | None = None
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            pipe = await open_pipe(server, route)
            http = ClientHttp(server.authority, body_limit=KEY_REPLY_MAX)
            key = expected
            if key is None:
                key, reusable = await _fetch_key(pipe, http, server, version)
                if not reusable:
                    pipe.close_gently()
                    pipe = await open_pipe(server, route)
                    http = ClientHttp(server.authority, body_limit=KEY_REPLY_MAX)
            initiate = partial(ClientChannel, machine, key, version, entropy)
            try:
                try:
                    return await _upgrade(pipe, http, server, key, initiate())
                except UpgradeStripped as error:
                    pipe.close_gently()
                    pipe = await open_pipe(server, route)
                    return await _upgrade_websocket(pipe, server, key, initiate(), entropy, error)
            except VersionRejected:
                if expected is None:
                    raise
                # A server that cannot open our initiation hangs up just as one that dislikes our version.
                raise KeyMismatch(f"{server.authority} does not take an initiation for the key {key}") from None
    except TimeoutError:
        _close(pipe)
        raise ControlError(
            f"cannot reach control server {server.authority}: no answer within {DIAL_TIMEOUT_S:.0f} s"
        ) from None
    except BaseException:
        _close(pipe)
        raise


def _close(pipe: Pipe | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()


async def _fetch_key(pipe: Pipe, http: ClientHttp, server: Server, version: int) -> tuple[MachinePublic, bool]:
    request = http.request("GET", f"{server.prefix}/key?v={version}", [("User-Agent", USER_AGENT)])
    answer = await exchange(pipe, http, request, server)
    if answer.status != 200:
        raise _key_refusal(answer, server, version)
    body = answer.body.strip()
    if not body:
        raise VersionRejected(f"{server.authority} refuses capability version {version}; upgrade meshnode")
    if len(body) == 64 and all(c in b"0123456789abcdefABCDEF" for c in body):
        raise NotAControlServer(f"the control server {server.authority} is too old: it does not know Noise")
    try:
        key = MachinePublic.parse(tailcfg.parse_key_reply(body).public_key or "")
    except (RemoteProtocolError, KeyFormatError):
        raise _not_control(server, "its answer to /key is no key") from None
    if key.is_zero:
        raise NotAControlServer(f"the control server {server.authority} has no Noise key")
    return key, answer.reusable


def _key_refusal(answer: Response, server: Server, version: int) -> MeshError:
    text = _first_words(answer.body)
    if answer.status == 400 and "https" in text.lower():
        return NotAControlServer(f"{server.authority} wants TLS; try https:// in the control URL")
    if answer.status == 400 and "version" in text.lower():
        return VersionRejected(f"{server.authority} refuses capability version {version} (it said {text})")
    if answer.status in (301, 302, 303, 307, 308):
        return NotAControlServer(
            f"{server.url} redirects to {answer.headers.get('location', 'elsewhere')!r}; use that address itself"
        )
    if answer.status >= 500:
        return ControlError(f"control server {server.authority} failed with {answer.status} at /key")
    return _not_control(server, f"it answered {answer.status} to /key")


def _not_control(server: Server, why: str) -> NotAControlServer:
    return NotAControlServer(
        f"{server.url} does not look like a Tailscale or Headscale control server ({why}); check the control URL"
    )


async def _upgrade(pipe: Pipe, http: ClientHttp, server: Server, key: MachinePublic, channel: ClientChannel) -> Link:
    """UpgradeStripped if the answer looks as if something on the way had not passed the upgrade on."""
    headers = [(HANDSHAKE_HEADER, channel.header_value), ("User-Agent", USER_AGENT)]
    answer = await exchange(pipe, http, http.upgrade("POST", UPGRADE_PATH, UPGRADE_PROTOCOL, headers), server)
    if answer.status != 101 or answer.headers.get("upgrade", "").lower() != UPGRADE_PROTOCOL:
        raise _upgrade_refusal(answer, server)
    return await _shake(pipe, server, key, channel, answer.rest)


async def _upgrade_websocket(
    pipe: Pipe, server: Server, key: MachinePublic, channel: ClientChannel, entropy: Entropy, refused: UpgradeStripped
) -> Link:
    """The same by WebSocket, which proxies pass that know no other upgrade. refused: raised if they do not."""
    upgrade = websocket.ClientUpgrade(UPGRADE_PROTOCOL, entropy(websocket.NONCE_LEN))
    http = ClientHttp(server.authority, body_limit=KEY_REPLY_MAX)
    target = f"{UPGRADE_PATH}?{urlencode({WEBSOCKET_PARAMETER: channel.header_value})}"
    headers = [*upgrade.headers, ("User-Agent", USER_AGENT)]
    answer = await exchange(pipe, http, http.upgrade("GET", target, "websocket", headers), server)
    if answer.status != 101:
        raise refused
    try:
        upgrade.check(answer)
    except RemoteProtocolError:
        raise refused from None
    pipe.start_websocket(answer.rest)
    _log.info("control reached by WebSocket: something on the way strips its own upgrade", server=server.authority)
    return await _shake(pipe, server, key, channel, b"")


async def _shake(pipe: Pipe, server: Server, key: MachinePublic, channel: ClientChannel, first: bytes) -> Link:
    """The server's half of the handshake. first: bytes that came with the upgrade."""
    try:
        early = channel.receive(first)
        while not channel.is_open:
            data = await pipe.read()
            if not data:
                raise VersionRejected(
                    f"{server.authority} closed the handshake; most likely capability version {channel.version} is "
                    "below its minimum: upgrade meshnode"
                )
            early += channel.receive(data)
    except HandshakeError:
        raise KeyMismatch(f"the control server {server.authority} does not hold the key {key}") from None
    except RemoteProtocolError as error:
        raise ControlError(f"the handshake with {server.authority} failed: {error}") from None
    return Link(server, pipe, channel, key, early)


def _upgrade_refusal(answer: Response, server: Server) -> MeshError:
    text = _first_words(answer.body)
    if answer.status in (404, 405):
        return _not_control(server, f"it answered {answer.status} to {UPGRADE_PATH}")
    return UpgradeStripped(
        f"{server.authority} did not upgrade the connection ({answer.status}: {text}), nor to WebSocket; a proxy in "
        f"front of it probably strips the header: it must pass 'Upgrade: {UPGRADE_PROTOCOL}' on POST, or WebSocket"
    )


def _first_words(body: bytes) -> str:
    return '"' + " ".join(body[:200].decode("utf-8", "replace").split()) + '"'


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address only
    text = getattr(error, "strerror", None) or str(error)
    return text or type(error).__name__
