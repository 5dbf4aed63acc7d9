"""The capability server: every answer of M-102 to M-110, and what its commands leave behind: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.errors import ConfigError
from meshnode.config.model import Secret
from meshnode.serve.capability import capability_door
from tests.e2e.street import Answer, StandIn, call, exchange, identity, raw, site
from tests.e2e.town import LOOPS, make_town, run, until

loops = pytest.mark.parametrize("loop", LOOPS)
TOKEN = "a-good-token"
BEARER = ("Authorization", f"Bearer {TOKEN}")
SPEC = """\
[capabilities.say]
argv = ["printf", "%s", "{text}"]
params.text.pattern = "[a-z $();-]+"
[capabilities.wait]
argv = ["sh", "-c", "echo $$ > FOLDER/pids; touch here; sleep 60 & echo $! >> FOLDER/pids; wait"]
timeout_s = 30
queue = 1
[capabilities.brief]
argv = ["sh", "-c", "echo started; trap '' TERM; sleep 60 & wait; sleep 60"]
timeout_s = 0.3
[capabilities.flood]
argv = ["sh", "-c", "yes | head -c 3000000; exit 3"]
output_max = 1000
[capabilities.environment]
argv = ["env"]
env = { GREETING = "hello" }
[capabilities.preset]
argv = ["echo", "{preset}"]
params.preset.choices = ["1080p", "4k-h265"]
"""
NAMES = ["say", "wait", "brief", "flood", "environment", "preset"]


@asynccontextmanager
async def server(folder: Path, text: str = SPEC, token: str = TOKEN, who: Any = None) -> AsyncIterator[int]:
    """A capability server on loopback; its port."""
    spec = folder / "caps.toml"
    spec.write_text(text.replace("FOLDER", str(folder)))
    node = StandIn(who)
    async with site(capability_door(spec=spec, token=Secret(token), port=3001), node):
        yield node.port(3001)


async def order(port: int, body: Any, *headers: tuple[str, str]) -> Answer:
    """POST /exec with the token."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await call(port, "/exec", method="POST", headers=[*(headers or (BEARER,))], body=text)


def value(answer: Answer) -> Any:
    return json.loads(answer.body)


@loops
def test_health_has_the_exact_shape(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            answer = await call(port, "/health")
            assert answer.status == 200
            wanted = json.dumps({"status": "ok", "capabilities": NAMES}, separators=(",", ":"))
            assert answer.body.decode() == wanted
            assert answer.headers["content-type"].startswith("application/json")

    run(loop, work)


def test_health_names_the_tool_that_is_missing(tmp_path: Path) -> None:
    async def work() -> None:
        text = '[capabilities.a]\nargv = ["true"]\n[capabilities.b]\nargv = ["no-such-tool-here"]\n'
        async with server(tmp_path, text) as port:
            answer = await call(port, "/health")
            assert answer.status == 503
            assert value(answer) == {
                "status": "degraded",
                "capabilities": ["a"],
                "reasons": ["b: no-such-tool-here is not installed"],
            }
            refused = await order(port, {"capability": "b"})
            assert (refused.status, value(refused)["error"]) == (503, "Capability unavailable")
            assert (await order(port, {"capability": "a"})).status == 200

    run("asyncio", work)


@loops
def test_exec_runs_and_answers(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            answer = await order(port, {"capability": "say", "params": {"text": "$(id); ls"}})
            result = value(answer)
            assert answer.status == 200
            assert result.pop("duration_ms") >= 0
            assert result == {
                "capability": "say",
                "exit_code": 0,
                "stdout": "$(id); ls",
                "stderr": "",
                "truncated": False,
            }
            beside = await order(port, {"capability": "say", "text": "beside"})
            assert value(beside)["stdout"] == "beside"
            # What curl -d sends: no JSON in the type, JSON in the body.
            form = ("Content-Type", "application/x-www-form-urlencoded")
            assert (await order(port, {"capability": "say", "text": "a"}, BEARER, form)).status == 200

    run(loop, work)


def test_a_single_capability_needs_no_name(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path, '[capabilities.only]\nargv = ["echo", "{x}"]\nparams.x.pattern = "a+"\n') as port:
            assert value(await order(port, {"x": "aa"}))["stdout"] == "aa\n"

    run("asyncio", work)


WRONG = [
    [],
    [("Authorization", "")],
    [("Authorization", TOKEN)],
    [("Authorization", "Bearer")],
    [("Authorization", "Bearer wrong-token")],
    [("Authorization", f"Basic {TOKEN}")],
    [("Authorization", f"Bearer {TOKEN}x")],
    [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")],
    [("X-Token", TOKEN)],
]


@pytest.mark.parametrize("headers", WRONG, ids=range(len(WRONG)))
def test_without_the_token_nothing_happens(headers: list[tuple[str, str]], tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            body = json.dumps({"capability": "wait"}).encode()
            answer = await call(port, f"/exec?token={TOKEN}", method="POST", headers=headers, body=body)
            assert (answer.status, answer.body) == (401, b'{"error":"Unauthorized"}')
            assert answer.headers["www-authenticate"] == "Bearer"
            assert not (tmp_path / "pids").exists()

    run("asyncio", work)


def test_the_token_is_checked_before_the_body_comes(tmp_path: Path) -> None:
    """The answer arrives although not one byte of a huge body was sent, and no 100 Continue asks for it."""

    async def work() -> None:
        async with server(tmp_path) as port:
            head = b"POST /exec HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\nExpect: 100-continue\r\n"
            answer = await raw(port, head + b"\r\n", until=b"}")
            assert answer.startswith(b"HTTP/1.1 401")
            good = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
            answer = await raw(port, head + good, until=b"}")
            assert answer.startswith(b"HTTP/1.1 413")
            small = head.replace(b"10737418240", b"2") + good
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(small)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            writer.write(b"{}")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404")
            writer.close()

    run("asyncio", work)


def test_guessing_tokens_is_slowed_down(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            statuses = [(await order(port, {}, ("Authorization", f"Bearer guess-{n}"))).status for n in range(12)]
            assert statuses == [401] * 10 + [429] * 2

    run("asyncio", work)


def test_two_tokens_live_while_one_is_rotated(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path, token="the-old-one,the-new-one") as port:
            for token in ("the-old-one", "the-new-one"):
                answer = await order(port, {"capability": "say", "text": "a"}, ("Authorization", f"Bearer {token}"))
                assert answer.status == 200

    run("asyncio", work)


def test_thirty_a_minute(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            answers = [await order(port, {"capability": "say", "text": "a"}) for _ in range(31)]
            assert [a.status for a in answers] == [200] * 30 + [429]
            assert answers[-1].body == b'{"error":"Rate limit exceeded"}'
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
            assert (await call(port, "/health")).status == 200

    run("asyncio", work)


@loops
def test_beyond_its_places_it_is_busy_and_leavers_are_cleaned_up(loop: str, tmp_path: Path) -> None:
    """One runs, one waits, the others are told; a caller that leaves takes its whole process group along."""

    async def work() -> None:
        async with server(tmp_path) as port:
            body = json.dumps({"capability": "wait"}).encode()
            head = f"POST /exec HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n"
            _, running = await asyncio.open_connection("127.0.0.1", port)
            running.write(head.encode() + b"\r\n" + body)
            pids = await until(lambda: _pids(tmp_path), "the command runs")
            folder = Path(os.readlink(f"/proc/{pids[0]}/cwd"))
            assert folder.name.startswith("meshnode-job-") and folder.stat().st_mode & 0o077 == 0
            _, waiting = await asyncio.open_connection("127.0.0.1", port)
            waiting.write(head.encode() + b"\r\n" + body)
            busy = await until_busy(port)
            assert value(busy) == {"error": "Busy", "capability": "wait"}
            assert int(busy.headers["retry-after"]) > 0
            (tmp_path / "pids").unlink()
            running.transport.abort()
            await until(lambda: not any(_is_alive(pid) for pid in pids), "the group is gone")
            await until(lambda: not folder.exists(), "its directory is gone")
            second = await until(lambda: _pids(tmp_path), "the waiting one has its place")
            waiting.transport.abort()
            await until(lambda: not any(_is_alive(pid) for pid in second), "that group is gone too")

    run(loop, work)


async def until_busy(port: int) -> Answer:
    """Ask for `wait` until its places are taken; each try leaves at once if it was let in."""
    for _ in range(20):
        try:
            async with asyncio.timeout(0.3):
                answer = await order(port, {"capability": "wait"})
        except TimeoutError:
            continue
        assert answer.status == 503
        return answer
    raise AssertionError("never busy")


def _pids(folder: Path) -> list[int]:
    try:
        found = [int(word) for word in (folder / "pids").read_text().split()]
    except FileNotFoundError:
        return []
    return found if len(found) == 2 else []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_that_stops_leaves_no_command_and_no_directory(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            body = json.dumps({"capability": "wait"}).encode()
            head = f"POST /exec HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n"
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + b"\r\n" + body)
            pids = await until(lambda: _pids(tmp_path), "the command runs")
            folder = Path(os.readlink(f"/proc/{pids[0]}/cwd"))
        # Not "soon": by the time the door is closed.
        assert not folder.exists()
        assert not any(_is_alive(pid) for pid in pids)
        writer.close()

    run("asyncio", work)


def test_time_and_output_are_bounded(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            late = await order(port, {"capability": "brief"})
            assert late.status == 504
            assert value(late)["error"] == "Timed out" and value(late)["stdout"] == "started\n"
            flood = value(await order(port, {"capability": "flood"}))
            assert (flood["exit_code"], len(flood["stdout"]), flood["truncated"]) == (3, 1000, True)

    run("asyncio", work)


def test_commands_see_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            out = value(await order(port, {"capability": "environment"}))["stdout"]
            assert "GREETING=hello" in out and "PATH=" in out
            assert TOKEN not in out and "MESHNODE" not in out

    monkeypatch.setenv("CAPABILITY_TOKEN", TOKEN)
    monkeypatch.setenv("MESHNODE_AUTH_KEY", "hidden")
    run("asyncio", work)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "must be a JSON object"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"capability":', 400, "must be a JSON object"),
        (b"[" * 100_000, 400, "must be a JSON object"),
        (b"x" * (1 << 20) + b"x", 413, "too large"),
        (b'{"capability":"nope"}', 404, "Unknown capability"),
        (b'{"capability":["say"]}', 404, "Unknown capability"),
        (b'{"capability":"say"}', 400, "text is missing"),
        (b'{"capability":"say","params":{"text":"A"}}', 400, "does not match"),
        (b'{"capability":"say","params":{"text":"a"},"more":1}', 400, "nothing stands beside"),
        (b'{"capability":"say","params":[]}', 400, "must be an object"),
        (b'{"capability":"preset","preset":"8k"}', 400, "one of the listed"),
    ],
)
def test_orders_that_are_refused(body: bytes, status: int, error: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            answer = await order(port, body)
            assert answer.status == status
            assert error in value(answer)["error"]
            if b"8k" in body:
                assert value(answer)["allowed"] == ["1080p", "4k-h265"]

    run("asyncio", work)


def test_other_methods_and_paths(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(tmp_path) as port:
            answer = await call(port, f"/exec?token={TOKEN}", headers=[BEARER])
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
            assert (await call(port, "/health", method="POST", body=b"{}")).status == 405
            assert (await call(port, "/")).status == 404
            assert (await call(port, "/capabilities")).status == 401
            listed = value(await call(port, "/capabilities", headers=[BEARER]))["capabilities"]
            assert listed["preset"]["params"]["preset"]["choices"] == ["1080p", "4k-h265"]
            zipped = await order(port, {}, BEARER, ("Content-Encoding", "gzip"))
            assert zipped.status == 415

    run("asyncio", work)


def test_logs_have_paths_and_no_queries_bodies_or_tokens(tmp_path: Path) -> None:
    import io

    from meshnode.run import log

    async def work() -> None:
        async with server(tmp_path, who=identity()) as port:
            await call(port, "/exec?token=in-the-query", headers=[("Authorization", "Bearer in-the-header")])
            await order(port, {"capability": "say", "text": "in the body"})

    stream = io.StringIO()
    log.configure(level="debug", stream=stream)
    try:
        run("asyncio", work)
    finally:
        log.configure(level="off")
    text = stream.getvalue()
    assert "path=/exec" in text and "peer=laptop.mesh.test" in text
    for secret in ("in-the-query", "in-the-header", "in the body", TOKEN):
        assert secret not in text


@pytest.mark.parametrize(
    ("token", "text", "problem"),
    [("", SPEC, "token: it is empty"), ("tiny", SPEC, "shorter than"), (TOKEN, "[capabilities.x]\n", "caps.toml:1")],
)
def test_it_refuses_to_start(token: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "caps.toml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        capability_door(spec=tmp_path / "caps.toml", token=Secret(token), port=3001)


@pytest.mark.parametrize(
    ("token", "text", "problem"),
    [
        (None, SPEC, "CAPABILITY_TOKEN"),
        ("tiny", SPEC, "token: shorter than 8 characters"),
        (TOKEN, '[capabilities.x]\nargv = "ls"\n', "caps.toml:2"),
        (TOKEN, None, "cannot read"),
    ],
)
def test_the_command_refuses_in_one_line_with_exit_code_2(
    token: str | None, text: str | None, problem: str, tmp_path: Path
) -> None:
    spec = tmp_path / "caps.toml"
    if text is not None:
        spec.write_text(text)
    environment = {k: v for k, v in os.environ.items() if k != "CAPABILITY_TOKEN"}
    environment |= {"CAPABILITY_TOKEN": token} if token else {}
    words = ["capability", "--port", "3001", "--token", "env:CAPABILITY_TOKEN", "--spec", str(spec)]
    words += ["--control-url", "http://127.0.0.1:1", "--state-dir", "mem:"]
    done = subprocess.run(
        [sys.executable, "-m", "meshnode", *words], env=environment, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@loops
def test_a_peer_calls_it_through_the_tunnel(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        spec = tmp_path / "caps.toml"
        spec.write_text(SPEC.replace("FOLDER", str(tmp_path)))
        async with make_town() as town:
            one, other = await town.pair()
            async with site(capability_door(spec=spec, token=Secret(TOKEN), port=3001), other):
                reader, writer = await one.open_connection("other", 3001)
                assert (await exchange(reader, writer, "/health")).status == 200
                writer.close()
                reader, writer = await one.open_connection("other", 3001)
                body = b'{"capability":"say","text":"hello"}'
                answer = await exchange(reader, writer, "/exec", method="POST", headers=[BEARER], body=body)
                assert value(answer)["stdout"] == "hello"
                writer.close()

    run(loop, work)
