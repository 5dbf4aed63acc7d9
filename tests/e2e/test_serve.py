"""`--serve` over real sockets: files, another server, TCP; then the same through the tunnel."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from meshnode.node.node import Node
from meshnode.serve.ingress import Ingress, current_peer
from meshnode.serve.sites import site_door
from tests.e2e.street import Loopback, StandIn, call, exchange, identity, raw, site
from tests.e2e.town import LOOPS, make_town, open_files, run, until

loops = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site with everything that could lead out of it."""
    root = tmp_path / "site"
    (root / "docs").mkdir(parents=True)
    (root / "app").mkdir()
    (root / ".git").mkdir()
    (root / "a.txt").write_text("hello")
    (root / "big").write_bytes(os.urandom(3 << 20))
    (root / "empty").touch()
    (root / "docs" / "ä & <b>.txt").write_text("x")
    (root / "app" / "index.html").write_text("<h1>app</h1>")
    (root / ".git" / "config").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "site-twin").mkdir()
    (tmp_path / "site-twin" / "a.txt").write_text("secret")
    (root / "inside").symlink_to("a.txt")
    (root / "escape").symlink_to("../outside.txt")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "away").symlink_to("..")
    (root / "twin").symlink_to("../site-twin")
    (root / "hidden").symlink_to(".git/config")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    return root


@loops
def test_files_are_served_with_types_and_validators(loop: str, folder: Path) -> None:
    async def work() -> None:
        node = StandIn()
        async with site(site_door(f"http:80={folder}"), node):
            port = node.port(80)
            answer = await call(port, "/a.txt")
            assert (answer.status, answer.body) == (200, b"hello")
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["accept-ranges"] == "bytes"
            again = await call(port, "/a.txt", headers=[("If-None-Match", answer.headers["etag"])])
            assert (again.status, again.body) == (304, b"")
            assert again.headers["etag"] == answer.headers["etag"]
            later = await call(port, "/a.txt", headers=[("If-Modified-Since", answer.headers["last-modified"])])
            assert later.status == 304
            head = await call(port, "/a.txt", method="HEAD")
            assert (head.headers["content-length"], head.body) == ("5", b"")
            assert (await call(port, "/empty")).body == b""
            assert (await call(port, "/inside")).body == b"hello"
            wrong = await call(port, "/a.txt", method="POST", body=b"x")
            assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")

    run(loop, work)


@loops
def test_ranges_of_small_and_big_files(loop: str, folder: Path) -> None:
    async def work() -> None:
        node = StandIn()
        whole = (folder / "big").read_bytes()
        async with site(site_door(f"http:80={folder}"), node):
            port = node.port(80)
            answer = await call(port, "/big")
            assert hashlib.sha256(answer.body).digest() == hashlib.sha256(whole).digest()
            for text, first, last in (("1-3", 1, 3), ("1000000-", 1_000_000, len(whole) - 1), ("-9", -9, None)):
                part = await call(port, "/big", headers=[("Range", f"bytes={text}")])
                wanted = whole[first:] if last is None else whole[first : last + 1]
                assert (part.status, part.body) == (206, wanted)
                assert part.headers["content-range"].endswith(f"/{len(whole)}")
            beyond = await call(port, "/big", headers=[("Range", f"bytes={len(whole)}-")])
            assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(whole)}")
            stale = await call(port, "/big", headers=[("Range", "bytes=0-1"), ("If-Range", '"old"')])
            assert (stale.status, len(stale.body)) == (200, len(whole))
            fresh = await call(port, "/big", headers=[("Range", "bytes=0-1"), ("If-Range", answer.headers["etag"])])
            assert fresh.status == 206

    run(loop, work)


OUTSIDE = [
    "/escape", "/absolute", "/away/outside.txt", "/twin/a.txt", "/twin/", "/hidden", "/dangling", "/pipe",
    "/.git/config", "/../outside.txt", "/%2e%2e/outside.txt", "/docs/..%2f..%2foutside.txt", "/a.txt/", "/nope",
    "/a.txt%00.html", "//../outside.txt", "/docs/%2E%2E/%2E%2E/outside.txt", "/" + "x" * 300,
]  # fmt: skip


def test_nothing_outside_the_directory_is_served(folder: Path) -> None:
    async def work() -> None:
        node = StandIn()
        async with site(site_door(f"http:80={folder}"), node):
            before = open_files()
            for path in OUTSIDE:
                answer = await call(node.port(80), path)
                assert answer.status == 404, path
                assert b"secret" not in answer.body and b"root:" not in answer.body
            await until(lambda: open_files() <= before, "no descriptor is left behind")

    run("asyncio", work)


def test_a_swapped_directory_never_leads_out(folder: Path) -> None:
    """A link that flips between inside and outside while it is asked for: never the outside."""

    async def work() -> None:
        node = StandIn()
        flip = folder / "flip"
        stop = asyncio.Event()

        def swap() -> None:
            for number in range(3000):
                fresh = folder / f".fresh{number % 2}"
                fresh.symlink_to("../outside.txt" if number % 2 else "a.txt")
                fresh.rename(flip)
            asyncio.run_coroutine_threadsafe(_set(stop), loop)

        loop = asyncio.get_running_loop()
        async with site(site_door(f"http:80={folder}"), node):
            swapping = loop.run_in_executor(None, swap)
            seen = set()
            while not stop.is_set():
                answer = await call(node.port(80), "/flip")
                seen.add(answer.status)
                assert answer.body in (b"hello", b"not found\n")
            await swapping
            assert 200 in seen

    run("asyncio", work)


async def _set(event: asyncio.Event) -> None:
    event.set()


def test_directories_have_an_index_or_a_listing(folder: Path) -> None:
    async def work() -> None:
        node = StandIn()
        async with site(site_door(f"http:80={folder}"), node):
            port = node.port(80)
            assert (await call(port, "/app/")).body == b"<h1>app</h1>"
            moved = await call(port, "/app?q=1")
            assert (moved.status, moved.headers["location"]) == (301, "./app/?q=1")
            assert (await call(port, "//app")).headers["location"] == "./app/"
            root = (await call(port, "/")).body.decode()
            assert 'href="./docs/"' in root and 'href="./a.txt"' in root
            assert ".git" not in root
            docs = (await call(port, "/docs/")).body.decode()
            assert "./%C3%A4%20%26%20%3Cb%3E.txt" in docs and "&lt;b&gt;" in docs
            assert "<b>" not in docs

    run("asyncio", work)


@loops
def test_many_at_once_and_one_slow_reader(loop: str, folder: Path) -> None:
    """200 parallel requests lose none, while somebody who reads nothing holds a big answer."""

    async def work() -> None:
        node = StandIn()
        wanted = hashlib.sha256((folder / "big").read_bytes()).hexdigest()
        async with site(site_door(f"http:80={folder}"), node) as found:
            port = node.port(80)
            slow = socket.create_connection(("127.0.0.1", port))
            slow.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            answers = await asyncio.gather(*(call(port, "/a.txt" if n % 10 else "/big") for n in range(200)))
            assert all(answer.status == 200 for answer in answers)
            assert {hashlib.sha256(a.body).hexdigest() for a in answers[::10]} == {wanted}
            slow.close()
            await until(lambda: found.ingress.connection_count == 0, "every connection has ended")

    run(loop, work, bound_s=60)


def test_a_file_that_shrinks_cuts_the_connection(folder: Path) -> None:
    async def work() -> None:
        node = StandIn()
        async with site(site_door(f"http:80={folder}"), node):
            (folder / "shrinks").write_bytes(bytes(64 << 20))
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port(80), limit=1 << 16)
            writer.write(b"GET /shrinks HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: 67108864" in head
            os.truncate(folder / "shrinks", 1 << 20)
            size = 0
            with pytest.raises(ConnectionResetError):
                while part := await reader.read(1 << 20):
                    size += len(part)
                raise ConnectionResetError("a clean end")
            assert size < 64 << 20
            writer.close()

    run("asyncio", work)


SMUGGLED = [
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: a\r\n b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: a\0b\r\n\r\n",
    b"GET http://other/a.txt HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET a.txt HTTP/1.1\r\nHost: x\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", SMUGGLED, ids=range(len(SMUGGLED)))
def test_odd_requests_are_refused(request_bytes: bytes, folder: Path) -> None:
    async def work() -> None:
        node = StandIn()
        async with site(site_door(f"http:80={folder}"), node):
            follow = b"GET /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            answer = await raw(node.port(80), request_bytes + follow, until=b"\r\n\r\n")
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:200]

    run("asyncio", work)


# --- another server ---------------------------------------------------------------------------------


STEP = web.AppKey("step", asyncio.Semaphore)
"""Each release lets the event stream go one further."""
LEFT = web.AppKey("left", asyncio.Event)
"""Set once the endless answer was given up."""


async def _echo(request: web.Request) -> web.Response:
    digest, size = hashlib.sha256(), 0
    async for chunk in request.content.iter_any():
        digest.update(chunk)
        size += len(chunk)
    fields = [[name, value] for name, value in request.headers.items()]
    about = {"path": request.raw_path, "method": request.method, "headers": fields, "size": size}
    headers = [("X-One", "1"), ("X-One", "2"), ("Connection", "x-gone"), ("X-Gone", "1"), ("Set-Cookie", "a=b")]
    from multidict import CIMultiDict

    return web.json_response(about | {"sha256": digest.hexdigest()}, headers=CIMultiDict(headers))


async def _events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(f"data: {number}\n\n".encode())
        await asyncio.wait_for(request.app[STEP].acquire(), 10)
    return response


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(bytes(65536))
    except (ConnectionError, asyncio.CancelledError):
        request.app[LEFT].set()
        raise


async def _broken(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.abort()
    return response


async def _socket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(protocols=("chat",))
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
        if message.type is WSMsgType.TEXT:
            await ws.send_str(json.dumps({"text": message.data, "peer": request.headers.get("Meshnode-Peer")}))
    return ws


async def _no_socket(_: web.Request) -> web.Response:
    return web.Response(status=403, text="no sockets here")


@asynccontextmanager
async def backend() -> AsyncIterator[tuple[web.Application, int]]:
    """An ordinary HTTP server, and its port."""
    app = web.Application(client_max_size=1 << 30)
    app[STEP], app[LEFT] = asyncio.Semaphore(0), asyncio.Event()
    app.router.add_get("/events", _events)
    app.router.add_get("/endless", _endless)
    app.router.add_get("/broken", _broken)
    app.router.add_get("/socket", _socket)
    app.router.add_get("/nosocket", _no_socket)
    app.router.add_route("*", "/{rest:.*}", _echo)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    try:
        yield app, listener.getsockname()[1]
    finally:
        await runner.cleanup()


CLAIMS = [
    ("Tailscale-User-Login", "root@example.com"), ("tailscale_user_login", "root@example.com"),
    ("Meshnode-Peer", "root"), ("X-Forwarded-For", "1.2.3.4"), ("X_Forwarded_For", "1.2.3.4"),
    ("Forwarded", "for=1.2.3.4"), ("X-Real-IP", "1.2.3.4"), ("X-Forwarded-Proto", "https"), ("Via", "1.1 me"),
]  # fmt: skip


@loops
def test_requests_are_rebuilt_and_identity_is_ours(loop: str) -> None:
    async def work() -> None:
        node = StandIn(identity())
        async with backend() as (_, port), site(site_door(f"http:80=http://127.0.0.1:{port}/base"), node):
            odd = [("Connection", "x-secret"), ("X-Secret", "1"), ("TE", "trailers"), ("X-Keep", "1"), ("X-Keep", "2")]
            answer = await call(node.port(80), "/a//b/%2e?q=%20", headers=[*CLAIMS, *odd])
            seen = json.loads(answer.body)
            assert seen["path"] == "/base/a//b/%2e?q=%20"
            fields = {name.lower(): value for name, value in seen["headers"]}
            assert fields["tailscale-user-login"] == "ada@example.com"
            assert fields["tailscale-user-name"] == "Ada Lovelace"
            assert fields["meshnode-peer"] == "laptop.mesh.test"
            assert fields["x-forwarded-for"] == "127.0.0.1"
            assert (fields["x-forwarded-proto"], fields["x-forwarded-host"]) == ("http", "site.test")
            assert fields["host"] == "site.test"
            assert not {"tailscale_user_login", "x_forwarded_for", "forwarded", "x-real-ip", "via", "x-secret"} & set(
                fields
            )
            assert [v for n, v in seen["headers"] if n == "X-Keep"] == ["1", "2"]
            assert [v for n, v in answer.fields if n == "x-one"] == ["1", "2"]
            assert "x-gone" not in answer.headers
            assert "1.2.3.4" not in answer.body.decode() and "root" not in answer.body.decode()

    run(loop, work)


def test_nobody_and_tagged_nodes_have_no_user() -> None:
    async def work() -> None:
        for who in (None, identity("ci.mesh.test", None, ("tag:ci",))):
            node = StandIn(who)
            async with backend() as (_, port), site(site_door(f"http:80=127.0.0.1:{port}"), node):
                answer = await call(node.port(80), "/", headers=CLAIMS)
                fields = {name.lower(): value for name, value in json.loads(answer.body)["headers"]}
                assert not [name for name in fields if name.startswith("tailscale")]
                assert fields.get("meshnode-peer") == (who.name if who else None)

    run("asyncio", work)


@loops
def test_bodies_stream_both_ways(loop: str) -> None:
    async def work() -> None:
        node = StandIn()
        data = os.urandom(4 << 20)
        async with backend() as (_, port), site(site_door(f"http:80=127.0.0.1:{port}"), node):
            sized = json.loads((await call(node.port(80), "/up", method="PUT", body=data)).body)
            assert (sized["size"], sized["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            chunked = b"PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            chunked += b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (b"ab", data[:70000])) + b"0\r\n\r\n"
            seen = json.loads((await raw(node.port(80), chunked)).partition(b"\r\n\r\n")[2])
            assert seen["sha256"] == hashlib.sha256(b"ab" + data[:70000]).hexdigest()
            expect = await call(node.port(80), "/up", method="POST", headers=[("Expect", "100-continue")], body=b"x")
            assert expect.continued and json.loads(expect.body)["size"] == 1
            head = await call(node.port(80), "/x", method="HEAD")
            assert head.status == 200 and head.body == b"" and int(head.headers["content-length"]) > 0

    run(loop, work)


@loops
def test_events_arrive_one_by_one(loop: str) -> None:
    async def work() -> None:
        node = StandIn()
        async with backend() as (app, port), site(site_door(f"http:80=127.0.0.1:{port}"), node):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port(80))
            writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            for number in range(3):
                # The next event is not written before this one was seen here.
                async with asyncio.timeout(5):
                    await reader.readuntil(b"data: %d\n\n" % number)
                app[STEP].release()
            writer.close()

    run(loop, work)


def test_a_client_that_leaves_ends_the_request_upstream() -> None:
    async def work() -> None:
        node = StandIn()
        async with backend() as (app, port), site(site_door(f"http:80=127.0.0.1:{port}"), node):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port(80))
            writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read(1000)
            writer.transport.abort()
            async with asyncio.timeout(5):
                await app[LEFT].wait()

    run("asyncio", work)


def test_failures_upstream_are_told() -> None:
    async def work() -> None:
        node = StandIn()
        async with backend() as (_, port), site(site_door(f"http:80=127.0.0.1:{port}"), node):
            answer = await raw(node.port(80), b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", until=b"half")
            assert answer.endswith(b"half")
        async with site(site_door(f"http:80=127.0.0.1:{port}"), node):
            answer = await call(node.port(80), "/")
            assert (answer.status, answer.headers["retry-after"]) == (502, "5")
            raw_answer = await raw(
                node.port(80),
                b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                until=b"\r\n\r\n",
            )
            assert raw_answer.startswith(b"HTTP/1.1 502")

    run("asyncio", work)


@loops
def test_websockets_pass_through(loop: str) -> None:
    async def work() -> None:
        import aiohttp

        node = StandIn(identity())
        async with backend() as (_, port), site(site_door(f"http:80=127.0.0.1:{port}"), node):
            url = f"http://127.0.0.1:{node.port(80)}"
            async with aiohttp.ClientSession() as session:
                async with session.ws_connect(f"{url}/socket", protocols=("chat",)) as ws:
                    assert ws.protocol == "chat"
                    await ws.send_str("hi")
                    assert json.loads(await ws.receive_str(timeout=5)) == {"text": "hi", "peer": "laptop.mesh.test"}
                    data = os.urandom(1 << 20)
                    await ws.send_bytes(data)
                    assert await ws.receive_bytes(timeout=5) == data
                with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                    await session.ws_connect(f"{url}/nosocket")
                assert caught.value.status == 403

    run(loop, work)


@loops
def test_a_client_that_half_closes_gets_its_answer(loop: str, folder: Path) -> None:
    """As `printf … | nc` does; the pieces arrive together with the end, and big answers take a while."""

    async def work() -> None:
        node = StandIn()
        # More than the kernel's buffers hold, so that it is still on its way while the reader pauses.
        size = 48 << 20
        (folder / "huge").touch()
        os.truncate(folder / "huge", size)
        async with backend() as (_, port):
            rules = [f"http:80={folder}", f"http:81=127.0.0.1:{port}"]
            async with site(site_door(rules[0]), node), site(site_door(rules[1]), node) as reverse:
                for _ in range(10):
                    assert (await _half_closing(node.port(80), "/a.txt")).endswith(b"hello")
                    assert b'"path": "/x"' in await _half_closing(node.port(81), "/x")
                head, _, body = (await _half_closing(node.port(80), "/huge", pause_s=1.2)).partition(b"\r\n\r\n")
                assert b" 200 " in head and len(body) == size
                # A farewell is noticed too, although it begins in the same way.
                await until(lambda: reverse.ingress.connection_count == 0, "nobody is left")

    run(loop, work)


async def _half_closing(port: int, path: str, pause_s: float = 0.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 14)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    writer.write_eof()
    head = await reader.readuntil(b"\r\n\r\n")
    # A reader that pauses longer than the server's patience with silence is slow, not gone.
    await asyncio.sleep(pause_s)
    body = await reader.read()
    writer.close()
    return head + body


def test_idle_clients_that_leave_are_noticed() -> None:
    async def work() -> None:
        node = StandIn()
        async with backend() as (_, port), site(site_door(f"http:80=127.0.0.1:{port}"), node) as found:
            _, writer = await asyncio.open_connection("127.0.0.1", node.port(80))
            await until(lambda: found.ingress.connection_count == 1, "it is there")
            writer.close()
            await until(lambda: found.ingress.connection_count == 0, "it is gone", bound_s=5)

    run("asyncio", work)


# --- the ingress itself -----------------------------------------------------------------------------


@loops
def test_the_peer_is_in_the_context_of_its_handler(loop: str) -> None:
    async def work() -> None:
        listener = Loopback()
        people = {0: identity("one.mesh.test"), 1: identity("two.mesh.test")}

        async def handle(_: web.BaseRequest) -> web.Response:
            before = current_peer.get()
            await asyncio.sleep(0)
            assert before is current_peer.get() and before is not None
            return web.Response(text=before.name)

        def who(name: Any) -> Any:
            return people[name[1] % 2]

        async with Ingress(listener, web.Server(handle), identify=who) as ingress:

            async def ask() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                wanted = people[writer.get_extra_info("sockname")[1] % 2].name
                assert (await exchange(reader, writer, "/")).body.decode() == wanted
                writer.close()

            await asyncio.gather(*(ask() for _ in range(20)))
            assert current_peer.get() is None
            await until(lambda: ingress.connection_count == 0, "every connection has ended")

    run(loop, work)


def test_one_peer_cannot_take_every_place() -> None:
    async def work() -> None:
        listener = Loopback()

        async def handle(_: web.BaseRequest) -> web.Response:
            return web.Response(text="x")

        async with Ingress(listener, web.Server(handle), per_peer_max=2) as ingress:
            held = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(3)]
            await until(lambda: ingress.refused_count == 1, "the third is refused")
            for _, writer in held:
                writer.close()
            await until(lambda: ingress.connection_count == 0, "places are free again")
            assert (await call(listener.port, "/")).body == b"x"

    run("asyncio", work)


# --- through the tunnel -----------------------------------------------------------------------------


async def through(node: Node, host: str, path: str) -> Any:
    reader, writer = await node.open_connection(host, 80)
    try:
        return await exchange(reader, writer, path)
    finally:
        writer.close()


@loops
def test_a_peer_is_served_files_and_known_by_name(loop: str, folder: Path) -> None:
    async def work() -> None:
        async with make_town() as town, backend() as (_, port):
            one, other = await town.pair()
            async with site(site_door(f"http:80={folder}"), other):
                answers = await asyncio.gather(*(through(one, "other", "/big") for _ in range(5)))
                assert {a.body for a in answers} == {(folder / "big").read_bytes()}
            async with site(site_door(f"http:80=127.0.0.1:{port}"), other):
                for host in ("other", str(other.addresses[1])):
                    seen = json.loads((await through(one, host, "/")).body)
                    fields = {name.lower(): value for name, value in seen["headers"]}
                    assert fields["meshnode-peer"] == one.name
                    assert fields["x-forwarded-for"] == str(one.addresses[0 if host == "other" else 1])

    run(loop, work)


@loops
def test_two_hundred_requests_through_the_tunnel_lose_none(loop: str, folder: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            async with site(site_door(f"http:80={folder}"), other):
                answers = await asyncio.gather(*(through(one, "other", "/a.txt") for _ in range(200)))
                assert [a.body for a in answers] == [b"hello"] * 200

    run(loop, work, bound_s=60)


@loops
def test_a_tunnel_port_leads_to_a_local_one(loop: str) -> None:
    async def work() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Answers only after the caller's end: a half-close has to travel.
            data = await reader.read()
            writer.write(data[::-1])
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        data = os.urandom(1 << 20)
        async with make_town() as town:
            one, other = await town.pair()
            async with site_door(f"tcp:5432=127.0.0.1:{port}")(other) as forward:
                for _ in range(3):
                    reader, writer = await one.open_connection("other", 5432)
                    writer.write(data)
                    writer.write_eof()
                    assert await reader.read() == data[::-1]
                    writer.close()
                server.close()
                reader, writer = await one.open_connection("other", 5432)
                assert await _rest(reader) == b""
                writer.close()
                assert forward.failed_count == 1

    run(loop, work)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
