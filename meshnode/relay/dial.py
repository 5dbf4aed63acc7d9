"""Reach a region: TCP to its nodes in order, through a proxy if one leads there, TLS verified, each wait bounded.

The result is a Link that is connected and logged in; what is said on it afterwards is its owner's
business. A proxy is asked for a node's name, as the map has it. Where an answer shows that something on the way
strips the relay's own upgrade, the next attempt is by WebSocket, and later ones begin with that.
Source: docs/protocol/paths.md 2.1.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

from meshnode.base.errors import ProtocolError, ProxyPassword, RelayError
from meshnode.base.keys import NodePublic
from meshnode.netmap.model import RelayNode, RelayRegion
from meshnode.relay.link import Link
from meshnode.relay.opening import UpgradeRefused
from meshnode.relay.options import PIN, Carrier, DialOptions
from meshnode.relay.trust import check_certificate, check_pin, told_key
from meshnode.run.connect import connect_through
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope

NODE_S: Final = 1.5
"""For the TCP connection to one node; TLS and login have the rest of the total."""
TOTAL_S: Final = 10.0
V4_AFTER_S: Final = 0.2
"""What IPv6 is given before IPv4 is tried beside it, where IPv6 is known to work."""
NO_FAMILY: Final = "none"
PLAIN_PORT: Final = 3340
"""What a relay without TLS listens on when its map entry names no port."""

_log = get_logger("relay")

FAILURES: Final = (OSError, TimeoutError, ssl.SSLError, RelayError, ProtocolError)


async def dial_region(region: RelayRegion, options: DialOptions, make: Callable[[], Link]) -> tuple[Link, RelayNode]:
    """The first node of the region that takes us, logged in.

    RelayError names every node and what went wrong with it. Ends within TOTAL_S.
    """
    nodes = [n for n in region.nodes if not n.stun_only]
    if not nodes:
        raise RelayError(f"relay region {region.code or region.id} has no node that relays")
    problems: list[str] = []
    deadline = asyncio.get_running_loop().time() + TOTAL_S
    for node in nodes:
        for by_websocket in options.ways_to(node):
            link = make()
            try:
                async with asyncio.timeout_at(deadline):
                    await _dial_node(node, nodes[0].name, options, link, by_websocket)
                options.note_way(node, by_websocket)
                return link, node
            except FAILURES as error:
                link.abort()
                options.note_failure(node)
                where = f"{node.host}:{_port(node, options)}{' by WebSocket' if by_websocket else ''}"
                problems.append(f"{where}: {explain(error)}")
                if not (isinstance(error, UpgradeRefused) and error.is_stripped):
                    break
            except BaseException:
                link.abort()
                raise
    raise RelayError(f"relay region {region.code or region.id}: " + "; ".join(problems))


def explain(error: BaseException) -> str:
    """One failure in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); set ca_file or pin it in the relay map"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error}); does it speak plain HTTP?"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address only
    return str(error) or type(error).__name__


async def _dial_node(node: RelayNode, ideal: str, options: DialOptions, link: Link, by_websocket: bool) -> None:
    loop = asyncio.get_running_loop()
    sock = await connect_node(node, options)
    if sock.family != socket.AF_UNIX:  # a pair before a proxy over TLS has no address
        link.local_ip = sock.getsockname()[0]
    told = b""
    try:
        if options.carrier is not None:
            told = await _hand_over(node, options, options.carrier, sock, link)
        elif options.plain:
            await loop.create_connection(lambda: link, sock=sock)
        else:
            context = options.context_for(node)
            await loop.create_connection(lambda: link, sock=sock, ssl=context, server_hostname=node.host)
            check_certificate(node, link.ssl_object, allow_insecure=options.allow_insecure)
            told = told_key(link.ssl_object)
    except BaseException:
        sock.close()
        raise
    ideal = ideal if ideal != node.name else ""
    await link.login(node.host, ideal, by_websocket=by_websocket, told=NodePublic(told) if told else None)


async def connect_node(node: RelayNode, options: DialOptions) -> socket.socket:
    """A connection to one node of a map; what is said on it is the caller's business. OSError, TimeoutError."""
    port = _port(node, options)
    proxy = options.proxies.choose("http" if options.plain else "https", node.host, port)
    if proxy is None:
        return await _connect(node, port, V4_AFTER_S if options.prefers_v6 else 0.0)
    options.check_password(proxy)
    try:
        return await connect_through(proxy, node.host, port, ca_file=options.ca_file)
    except ProxyPassword as error:
        options.note_password(proxy, error)
        raise


async def _hand_over(node: RelayNode, options: DialOptions, carrier: Carrier, sock: socket.socket, link: Link) -> bytes:
    """Returns the relay's key, if TLS told it."""
    tls = None if options.plain else options.carried_context_for(node)
    verified = "" if node.cert_name.startswith(PIN) else node.cert_name
    stream = await carrier(sock, link, tls, node.host, verified)
    if tls is not None and node.cert_name.startswith(PIN):
        check_pin(node, stream.certificate)
    return stream.relay_key


def _port(node: RelayNode, options: DialOptions) -> int:
    return node.port or (PLAIN_PORT if options.plain else 443)


async def _connect(node: RelayNode, port: int, v4_after_s: float) -> socket.socket:
    """One TCP connection: to the map's literal addresses if it has any, else to what the name resolves to."""
    async with asyncio.timeout(NODE_S):
        literals = _literals(node)
        if literals:
            try:
                return await _race([(family, (text, port)) for family, text in literals], v4_after_s)
            except OSError:
                if all((node.ipv4, node.ipv6)):
                    raise
        return await _race(await _resolve(node, port), v4_after_s)


def _literals(node: RelayNode) -> list[tuple[socket.AddressFamily, str]]:
    found = []
    for text, family in ((node.ipv4, socket.AF_INET), (node.ipv6, socket.AF_INET6)):
        if text and text != NO_FAMILY:
            found.append((family, text))
    if not found:
        with suppress(ValueError):
            version = ip_address(node.host).version
            found.append((socket.AF_INET if version == 4 else socket.AF_INET6, node.host))
    return found


async def _resolve(node: RelayNode, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(node.host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"its name does not resolve ({error.strerror})") from None
    barred = {socket.AF_INET: node.ipv4 == NO_FAMILY, socket.AF_INET6: node.ipv6 == NO_FAMILY}
    targets: dict[socket.AddressFamily, Any] = {}
    for family, _, _, _, address in found:
        if not barred.get(family, True):
            targets.setdefault(family, address)
    return list(targets.items())


async def _race(targets: list[tuple[socket.AddressFamily, Any]], v4_after_s: float) -> socket.socket:
    """The first connection that stands; the others are closed. The first error if none does.

    v4_after_s: IPv4's start, unless another failed before.
    """
    if not targets:
        raise OSError("it has no address we may use")
    if len(targets) == 1:
        return await _connect_one(*targets[0])
    results: asyncio.Queue[socket.socket | OSError] = asyncio.Queue()
    failed = asyncio.Event()

    async def attempt(family: socket.AddressFamily, address: Any) -> None:
        try:
            if family == socket.AF_INET and v4_after_s:
                with suppress(TimeoutError):
                    async with asyncio.timeout(v4_after_s):
                        await failed.wait()
            results.put_nowait(await _connect_one(family, address))
        except OSError as error:
            failed.set()
            results.put_nowait(error)

    first_error: OSError | None = None
    winner: socket.socket | None = None
    async with Scope("dial") as scope:
        for family, address in targets:
            scope.spawn(attempt(family, address), str(address[0]))
        for _ in targets:
            result = await results.get()
            if isinstance(result, socket.socket):
                winner = result
                break
            first_error = first_error or result
    while not results.empty():
        late = results.get_nowait()
        if isinstance(late, socket.socket):
            late.close()
    if winner is None:
        raise first_error or OSError("no answer")
    return winner


async def _connect_one(family: socket.AddressFamily, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return sock
    except BaseException:
        sock.close()
        raise
