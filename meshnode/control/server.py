"""A small honest control server: of `meshnode demo`, of the tests, in one process, in memory.

It speaks what an ordinary node needs: /key, TS2021 over plain http or TLS, register by pre-auth key
or by a human, logout, the map stream with deltas and keep-alives, lite updates, liveness pings. The
tailnet itself is `tailnet.Tailnet`; here are connections. A stream that does not read is dropped.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs

from meshnode.base.addr import Endpoint, parse_ip
from meshnode.base.bounds import CONTROL_REPLY_MAX, KEY_REPLY_MAX
from meshnode.base.errors import KeyFormatError, ListenError, LocalProtocolError, RemoteProtocolError
from meshnode.base.keys import MachinePrivate, MachinePublic
from meshnode.base.units import Unix
from meshnode.control.pipe import Pipe
from meshnode.control.tailnet import Change, Member, Tailnet
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.wire import control as ts2021
from meshnode.wire.h2 import Data, End, Event, Head, Reset, ServerH2
from meshnode.wire.http1 import Request, ServerHttp
from meshnode.wire.mapstream import deflate, emit_frame

VERSION_MIN: Final = 113
CONNECTIONS_MAX: Final = 1024
HTTP_TIMEOUT_S: Final = 10.0
KEEP_ALIVE_S: Final = 50.0
KEEP_ALIVE_JITTER_S: Final = 9.0
EPHEMERAL_TIMEOUT_S: Final = 60.0
FOLLOWUP_S: Final = 900.0
CHANGES_MAX: Final = 10_000
"""Changes waiting for one stream; beyond, it gets a whole map instead."""

_log = get_logger("control-server")


class ControlServer:
    """`async with ControlServer(...) as server:` listens until the block is left."""

    def __init__(
        self,
        *,
        clock: Clock,
        domain: str = "mesh.test",
        relays: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        key: MachinePrivate | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
        ephemeral_timeout_s: float = EPHEMERAL_TIMEOUT_S,
    ) -> None:
        """`relays` is a DERPMap as JSON; `port` 0 takes a free one."""
        self.clock = clock
        self.key = key or MachinePrivate.generate(clock.entropy)
        self.tailnet = Tailnet(url="", domain=domain, relays=relays or {"Regions": {}}, entropy=clock.entropy)
        self.keep_alive_s = keep_alive_s
        self.ephemeral_timeout_s = ephemeral_timeout_s
        self.pongs: dict[str, asyncio.Future[None]] = {}
        self.approved = asyncio.Event()
        self._host, self._port, self._tls = host, port, tls
        self._server: asyncio.Server | None = None
        self._scope: Scope | None = None
        self.connections: set[Connection] = set()

    async def __aenter__(self) -> Self:
        self._scope = Scope("control-server")
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self._host, self._port, ssl=self._tls)
        except OSError as error:
            raise ListenError(f"the control server cannot listen on {self._host}:{self._port}: {error}") from None
        port = self._server.sockets[0].getsockname()[1]
        scheme = "https" if self._tls else "http"
        self.tailnet.url = f"{scheme}://{Endpoint(parse_ip(self._host), port)}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.pipe.close()
        if self._scope is not None:
            await self._scope.aclose()

    @property
    def url(self) -> str:
        """What nodes are told."""
        return self.tailnet.url

    def add_key(
        self, *, expires_s: float = 3600.0, user: str = "mesh", reusable: bool = True, ephemeral: bool = False,
        tags: tuple[str, ...] = (),
    ) -> str:  # fmt: skip
        """A new pre-auth key; `expires_s` may be negative."""
        expires_at = Unix(self.clock.wall() + expires_s)
        return self.tailnet.add_key(user=user, reusable=reusable, ephemeral=ephemeral, tags=tags, expires_at=expires_at)

    def approve(self, url: str, user: str = "mesh") -> None:
        """Let in whoever waits at this login URL. KeyError if nobody does."""
        self.tailnet.approve(url.rpartition("/")[2], user, self.clock.wall())
        self.approved.set()
        self.approved = asyncio.Event()

    async def ping(self, member: Member, timeout_s: float = 5.0) -> bool:
        """Ask a member over its stream to prove it lives; whether it did."""
        ident = self.clock.entropy(8).hex()
        answered = self.pongs[ident] = asyncio.get_running_loop().create_future()
        try:
            request = {"PingRequest": {"URL": f"{self.url}/machine/ping-response?id={ident}"}}
            for connection in self.connections:
                connection.push(member, request)
            async with asyncio.timeout(timeout_s):
                await answered
            return True
        except TimeoutError:
            return False
        finally:
            del self.pongs[ident]

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """A task that ends with the server."""
        assert self._scope is not None
        return self._scope.spawn(work, name)

    def _accept(self) -> Pipe:
        pipe = Pipe()
        if self._scope is not None and len(self.connections) < CONNECTIONS_MAX:
            connection = Connection(self, pipe)
            self.connections.add(connection)
            self.spawn(connection.run(), "connection")
        else:
            asyncio.get_running_loop().call_soon(pipe.close)
        return pipe


class Connection:
    """One client's connection: HTTP/1.1 until the upgrade, then HTTP/2 inside Noise."""

    def __init__(self, server: ControlServer, pipe: Pipe) -> None:
        self.server = server
        self.pipe = pipe
        self._http = ServerHttp(body_limit=KEY_REPLY_MAX)
        self._h2: ServerH2 | None = None
        self._channel: ts2021.Channel | None = None
        self._machine = MachinePublic.zero()
        self._requests: dict[int, tuple[Head, bytearray]] = {}
        self._streams: dict[int, MapStream] = {}
        self._over = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until either side ends it."""
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_S):
                upgraded = await self._serve_http()
            if upgraded:
                await self._over
        except (TimeoutError, RemoteProtocolError, LocalProtocolError) as error:
            _log.debug("connection dropped", error=str(error))
        finally:
            for stream in list(self._streams.values()):
                stream.end()
            self.server.connections.discard(self)
            self.pipe.close_gently()

    # --- HTTP/1.1 ---------------------------------------------------------------------------------

    async def _serve_http(self) -> bool:
        """Answer requests; True once the connection is a control channel."""
        while data := await self.pipe.read():
            request = self._http.receive(data)
            while request is not None:
                if request.path == ts2021.UPGRADE_PATH:
                    return self._upgrade(request)
                status, body = self._route(request)
                self.pipe.write(self._http.respond(status, body, [("Content-Type", "application/json")]))
                request = self._http.pending()
        return False

    def _route(self, request: Request) -> tuple[int, bytes]:
        query = parse_qs(request.query)
        if request.path == "/key":
            version = query.get("v", [""])[0]
            if not version.isdigit() or int(version) < VERSION_MIN:
                return 400, b"unsupported client version"
            zero = MachinePublic.zero()
            return 200, json.dumps({"legacyPublicKey": str(zero), "publicKey": str(self.server.key.public())}).encode()
        if request.path == "/health":
            return 200, b'{"status":"pass"}'
        if request.path == "/machine/ping-response":
            answered = self.server.pongs.get(query.get("id", [""])[0])
            if answered is None:
                return 404, b""
            if not answered.done():
                answered.set_result(None)
            return 200, b""
        if request.path.startswith("/register/"):
            return 200, b'"Ask whoever runs this server to approve the login."'
        return 404, b'"not found"'

    def _upgrade(self, request: Request) -> bool:
        wanted = request.headers.get("upgrade", "").lower()
        if request.method != "POST" or wanted != ts2021.UPGRADE_PROTOCOL:
            self.pipe.write(self._http.respond(400, b"unknown next protocol"))
            return False
        try:
            initiation = ts2021.parse_handshake_header(request.headers.get(ts2021.HANDSHAKE_HEADER, ""))
        except RemoteProtocolError as error:
            self.pipe.write(self._http.respond(400, str(error).encode()))
            return False
        head, rest = self._http.switch(ts2021.UPGRADE_PROTOCOL)
        try:
            version, machine, answer, channel = ts2021.accept(initiation, self.server.key, self.server.clock.entropy)
        except RemoteProtocolError:
            self.pipe.write(head)  # made for another key: hang up, as Headscale does
            return False
        if version < VERSION_MIN:
            self.pipe.write(head + ts2021.emit_error("unsupported client version"))
            return False
        self._machine, self._channel, self._h2 = machine, channel, ServerH2()
        challenge = {"nodeKeyChallenge": "chalpub:" + self.server.clock.entropy(32).hex()}
        early = channel.seal(ts2021.emit_early(json.dumps(challenge).encode()))
        self.pipe.write(head + answer + early)
        self._flush()
        if rest:
            self._on_data(rest)
        self.pipe.attach(self._on_data, self._on_end)
        return True

    # --- HTTP/2 -----------------------------------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        assert self._channel is not None and self._h2 is not None
        try:
            plaintext = self._channel.receive(data)
            events = self._h2.receive(plaintext) if plaintext else []
            for event in events:
                self._on_event(event)
            self._flush()
        except (RemoteProtocolError, LocalProtocolError) as error:
            _log.debug("client broke the protocol", error=str(error))
            self._on_end(None)

    def _on_end(self, error: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _on_event(self, event: Event) -> None:
        assert self._h2 is not None
        match event:
            case Head():
                self._requests[event.stream] = (event, bytearray())
            case Data():
                self._h2.consumed(event.stream, event.credit)
                if event.stream in self._requests:
                    body = self._requests[event.stream][1]
                    body += event.data
                    if len(body) > CONTROL_REPLY_MAX:
                        raise RemoteProtocolError("request body too large")
            case End():
                if event.stream in self._requests:
                    head, body = self._requests.pop(event.stream)
                    self.server.spawn(self._answer(head, bytes(body)), "request")
            case Reset():
                self._requests.pop(event.stream, None)
                stream = self._streams.pop(event.stream, None)
                if stream is not None:
                    stream.end()

    async def _answer(self, head: Head, body: bytes) -> None:
        try:
            request = json.loads(body or b"null")
            if not isinstance(request, dict):
                raise ValueError("not an object")
            version = request.get("Version")
            if not isinstance(version, int) or version < VERSION_MIN:
                return self.respond(head.stream, 400, f"unsupported client version: {version}".encode())
            if head.path == "/machine/register":
                reply = await self._register(request)
                self.respond(head.stream, 200, json.dumps(reply).encode())
            elif head.path == "/machine/map":
                await self._map(head.stream, request)
            else:
                self.respond(head.stream, 501, b"not implemented")
        except (ValueError, KeyFormatError, RecursionError) as error:
            self.respond(head.stream, 400, f"bad request: {error}".encode()[:200])
        except (LocalProtocolError, RemoteProtocolError) as error:
            _log.debug("request dropped", error=str(error))
            self._on_end(None)

    async def _register(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tailnet, server = self.server.tailnet, self.server
        followup = str(request.get("Followup") or "")
        try:
            async with asyncio.timeout(FOLLOWUP_S):
                while followup and tailnet.is_waiting(followup):
                    await server.approved.wait()
        except TimeoutError:
            tailnet.pending.pop(followup.rpartition("/")[2], None)
        return tailnet.register(self._machine, request, server.clock.wall())

    async def _map(self, stream: int, request: Mapping[str, Any]) -> None:
        tailnet = self.server.tailnet
        member = tailnet.authenticate(self._machine, request)
        if member is None:
            return self.respond(stream, 404, b"node not found")
        tailnet.update(member, request)
        if not request.get("Stream"):
            return self.respond(stream, 200)
        self.respond(stream, 200, None)
        poll = self._streams[stream] = MapStream(self, stream, member, request.get("Compress") == "zstd")
        try:
            await poll.run()
        finally:
            self._streams.pop(stream, None)

    def respond(self, stream: int, status: int, body: bytes | None = b"") -> None:
        """Answer a request; body None: `send` follows."""
        assert self._h2 is not None
        self._h2.respond(stream, status, [("content-type", "application/json")], body)
        self._flush()

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Part of an answer's body. LocalProtocolError if the client does not read."""
        assert self._h2 is not None
        self._h2.send_body(stream, data, end=end)
        self._flush()

    def push(self, member: Member, message: dict[str, Any]) -> None:
        """Send an extra message on the streams of a member."""
        for stream in self._streams.values():
            if stream.member is member:
                stream.extra(message)

    def _flush(self) -> None:
        assert self._h2 is not None and self._channel is not None
        data = self._h2.to_send()
        if data and self._channel.is_open:
            self.pipe.write(self._channel.seal(data))


class MapStream:
    """One map stream: a full map, then deltas and keep-alives."""

    def __init__(self, connection: Connection, ident: int, member: Member, compress: bool) -> None:
        self.member = member
        self._connection = connection
        self._server = connection.server
        self._ident = ident
        self._compress = compress
        self._changes: list[Change] = []
        self._extras: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        """Serve until the stream or the membership ends."""
        tailnet, clock = self._server.tailnet, self._server.clock
        self._send(tailnet.full_map(self.member, clock.wall()))
        tailnet.listeners.append(self._on_change)
        tailnet.came(self.member)
        try:
            while not self._ended:
                await self._wait()
                self._send_news()
                if self.member.id not in tailnet.members:
                    self._connection.send(self._ident, b"", end=True)
                    return
        finally:
            tailnet.listeners.remove(self._on_change)
            tailnet.went(self.member, clock.wall())
            if self.member.ephemeral and not self.member.streams:
                self._server.spawn(_collect_ephemeral(self._server, self.member), "ephemeral")

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._server.keep_alive_s + self._server.clock.uniform(0, KEEP_ALIVE_JITTER_S)):
                await self._wake.wait()
        except TimeoutError:
            self._send({"KeepAlive": True})
        self._wake.clear()

    def _send_news(self) -> None:
        tailnet, wall = self._server.tailnet, self._server.clock.wall()
        changes, self._changes = self._changes, []
        extras, self._extras = self._extras, []
        if len(changes) > CHANGES_MAX:
            self._send(tailnet.full_map(self.member, wall))
        elif changes and (message := tailnet.delta(self.member, changes, wall)):
            self._send(message)
        for message in extras:
            self._send(message)

    def _on_change(self, change: Change) -> None:
        if len(self._changes) <= CHANGES_MAX:
            self._changes.append(change)
        self._wake.set()

    def extra(self, message: dict[str, Any]) -> None:
        """Send a message of its own."""
        self._extras.append(message)
        self._wake.set()

    def end(self) -> None:
        """The client is gone."""
        self._ended = True
        self._wake.set()

    def _send(self, message: dict[str, Any]) -> None:
        payload = json.dumps(message).encode()
        self._connection.send(self._ident, emit_frame(deflate(payload) if self._compress else payload))


async def _collect_ephemeral(server: ControlServer, member: Member) -> None:
    """Delete an ephemeral member that stays away."""
    await asyncio.sleep(server.ephemeral_timeout_s)
    if not member.streams:
        server.tailnet.remove(member.id)
