"""Who may use our relay: a verifier that is honest, down, slow or lying; lists; and what the log says of it."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from meshnode.base.errors import ConfigError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.base.units import Seconds
from meshnode.relay.admit import LOG_EVERY_S, STALE_YES_S, YES_S, Gate, KeysFile
from meshnode.relay.pool import RelayState
from meshnode.relay.station import Station
from meshnode.relay.verify import BODY_MAX, VerifyUrl
from meshnode.run import log
from meshnode.run.clock import Clock
from meshnode.wire import derp
from tests.e2e.test_derp import CLOCK, plan_in, relays_of
from tests.e2e.test_relay import LIMIT_S, Bed, Raw, make_certificate, run, until

WARNING = "nobody can be asked who may use this relay"
ANSWERS = {
    "words": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nAllow",
    "no bool": b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"Allow": "yes"}',
    "other json": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n[true]",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "failing": b'HTTP/1.1 500 No\r\nContent-Length: 15\r\n\r\n{"Allow": true}',
    "elsewhere": b"HTTP/1.1 307 There\r\nLocation: /honest\r\nContent-Length: 0\r\n\r\n",
    "huge": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 20) + bytes(1 << 20),
    "too long": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (BODY_MAX + 1)
    + b'{"Allow": true}'.ljust(BODY_MAX + 1),
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "no http": b"\x16\x03\x01\x00\x00 hello",
    "cut short": b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"Allow": true}',
}
"""What a verifier says in each mood; then it hangs up."""
MOODS = (*ANSWERS, "down", "slow", "drip", "refused", "tls")


class Verifier:
    """An HTTP server that says who may in, or misbehaves."""

    def __init__(self) -> None:
        self.allowed: set[str] = set()
        self.mood = "honest"
        self.asked = 0
        self.url = ""
        self._server: asyncio.Server
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> Verifier:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/verify"
        return self

    async def aclose(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert head.startswith("post /verify http/1.1\r\n")
                length = int(head.partition("content-length:")[2].split()[0])
                question = json.loads(await reader.readexactly(length))
                self.asked += 1
                if self.mood != "honest":
                    await self._misbehave(reader, writer)
                    break
                body = json.dumps({"Allow": question["NodePublic"] in self.allowed}).encode()
                kind = b"Content-Type: text/html\r\n"  # derper does not look at it either
                writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (kind, len(body)) + body)
        writer.transport.abort()

    async def _misbehave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mood == "drip":
            for byte in b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"Allow": true}':
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
        elif self.mood not in ("down", "slow"):
            writer.write(ANSWERS[self.mood])
            writer.write_eof()
        if self.mood != "down":
            await reader.read()  # until who asks has had enough


class Hand(Clock):
    """A clock that a test turns: `ahead` seconds before the real one, or standing still at `at`."""

    ahead = 0.0
    at: float | None = None

    def now(self) -> Seconds:
        return Seconds(super().now() + self.ahead if self.at is None else self.at)


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """The log."""
    stream = io.StringIO()
    log._sink._recent.clear()  # what other tests said counts against nobody here
    log.configure(level="info", stream=stream)
    yield stream
    log.configure(level="off")


def new_key() -> NodePublic:
    return NodePrivate.generate(CLOCK.entropy).public()


@pytest.mark.parametrize("mood", MOODS)
def test_a_verifier_that_does_not_answer_keeps_strangers_out_and_members_in(
    mood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    """Strangers and returns of a member, all within a minute: one line in the log; a minute later another."""
    is_late = mood in ("slow", "drip")
    rounds = 3 if is_late else 10
    monkeypatch.setattr("meshnode.relay.admit.ADMIT_S", 0.2 if is_late else 5.0)

    async def scenario(_: Bed) -> None:
        verifier = await Verifier().start()
        member, clock = new_key(), Hand()
        verifier.allowed.add(str(member))
        verify = VerifyUrl(verifier.url)
        gate = Gate(verify, clock=clock)
        clock.at = 0.0
        assert await gate(member, "192.0.2.1") and not await gate(new_key(), "192.0.2.2")
        assert verifier.asked == 2 and not said.getvalue()
        await in_mood(mood, verifier, gate, tmp_path)
        for n in range(rounds):
            clock.at = 100.0 + n
            assert not await gate(new_key(), "192.0.2.3"), "a stranger stays out"
            assert await gate(member, "192.0.2.1"), "a member may return"
            assert await gate.recheck(member, "192.0.2.1") is None, "and may stay"
        assert gate.failures == 3 * rounds
        assert said.getvalue().count(WARNING) == 1 and said.getvalue().count("\n") == 1
        clock.at = 100.0 + LOG_EVERY_S
        assert not await gate(new_key(), "192.0.2.3")
        assert said.getvalue().count(WARNING) == 2
        clock.at = STALE_YES_S
        assert not await gate(member, "192.0.2.1"), "that was too long ago"
        await verify.aclose()
        await verifier.aclose()

    run(scenario)


async def in_mood(mood: str, verifier: Verifier, gate: Gate, folder: Path) -> None:
    """The verifier is now at fault, or the way to it."""
    if mood == "refused":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        gate._ask = VerifyUrl(f"http://127.0.0.1:{port}/verify")
    elif mood == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(make_certificate(folder, "127.0.0.1").path)
        await verifier.aclose()
        gate._ask = VerifyUrl((await verifier.start(context)).url)
    else:
        verifier.mood = mood


def test_a_verifier_that_answers_again_is_believed_at_once(said: io.StringIO) -> None:
    async def scenario(_: Bed) -> None:
        verifier = await Verifier().start()
        member, clock = new_key(), Hand()
        verify = VerifyUrl(verifier.url)
        gate = Gate(verify, clock=clock)
        clock.at = 0.0
        verifier.mood = "down"
        assert not await gate(member, "x")
        verifier.mood = "honest"
        verifier.allowed.add(str(member))
        assert await gate(member, "x"), "a question without an answer is no no"
        verifier.allowed.clear()
        clock.at = YES_S - 1
        assert await gate(member, "x"), "a yes is believed for a while"
        assert await gate.recheck(member, "x") is False, "not by who asks anew"
        assert not await gate(member, "x")
        verifier.mood = "down"
        clock.at = YES_S + 10
        assert not await gate(member, "x"), "a no ends what was known"
        await verify.aclose()
        await verifier.aclose()

    run(scenario)


def test_a_flood_of_strangers_makes_nobody_forget_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.relay.admit.REMEMBERED_MAX", 16)

    async def scenario(_: Bed) -> None:
        member, is_down = new_key(), False

        async def ask(key: NodePublic, source: str) -> bool:
            if is_down:
                raise OSError("down")
            return key == member

        clock = Hand()
        gate = Gate(ask, clock=clock)
        clock.at = 0.0
        assert await gate(member, "x")
        for _unused in range(100):
            assert not await gate(new_key(), "x")
        is_down, clock.at = True, 100.0
        assert await gate(member, "x")
        gate.forget()
        assert await gate(member, "x"), "asked anew, in vain: what was known last still counts"
        assert len(gate._strangers) <= 16

    run(scenario)


def test_verify_url_admits_refuses_and_revokes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    """A whole relay: whatever becomes of its verifier, who is connected stays; who is removed is cut off."""
    monkeypatch.setattr("meshnode.relay.server.RECHECK_S", 0.1)
    monkeypatch.setattr("meshnode.relay.admit.ADMIT_S", 0.5)

    async def scenario(bed: Bed) -> None:
        verifier = await Verifier().start()
        member = NodePrivate.generate(CLOCK.entropy)
        verifier.allowed.add(str(member.public()))
        station = await Station.start(plan_in(tmp_path, open=False, verify_url=verifier.url))
        client = await bed.client(relays_of(station), private=member)
        stranger = await bed.client(relays_of(station), connected=False)
        await until(lambda: stranger.pool.status()[0].error)
        assert "without admitting us" in stranger.pool.status()[0].error
        for mood in (*ANSWERS, "down", "slow"):
            verifier.mood, before = mood, verifier.asked
            await until(lambda n=before: verifier.asked > n + 2, 3 * LIMIT_S)
            assert client.state() is RelayState.CONNECTED, f"a member stays while the verifier is {mood}"
            assert not station.server.find(stranger.key)
        assert said.getvalue().count(WARNING) == 1
        verifier.mood = "honest"
        verifier.allowed.clear()
        await until(lambda: not station.server.find(member.public()))
        assert station.server.counters["revoked"] >= 1
        await verifier.aclose()
        await station.aclose()

    run(scenario)


def test_a_member_returns_while_the_verifier_hangs(tmp_path: Path, said: io.StringIO) -> None:
    """With the real bounds: the question's own is the shorter one, and what is known decides, not the server's wait."""

    async def scenario(bed: Bed) -> None:
        verifier = await Verifier().start()
        clock = Hand()
        member, other = (NodePrivate.generate(CLOCK.entropy) for _ in range(2))
        verifier.allowed |= {str(member.public())}
        plan = plan_in(tmp_path, open=False, verify_url=verifier.url, plain=True, self_signed=False)
        station = await Station.start(plan, clock=clock)
        raw = await Raw.login(station.server.port, member)
        raw.close()
        await until(lambda: not station.server.client_count)
        verifier.mood = "slow"
        clock.ahead = YES_S + 1
        refused = asyncio.create_task(Raw.login(station.server.port, other))
        again = await Raw.login(station.server.port, member)
        assert station.server.find(member.public())
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await refused
        assert said.getvalue().count("\n") == 1 and WARNING in said.getvalue()
        again.close()
        await verifier.aclose()
        await station.aclose()

    run(scenario)


def test_the_log_of_the_command_has_one_line_for_a_storm_of_logins(tmp_path: Path) -> None:
    """`meshnode derp` whose verifier is gone: forty clients of forty keys, none comes in, one line says why."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gone = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "meshnode", "derp", "--listen", "127.0.0.1:0", "--stun", "off", "--plain",
        "--dir", str(tmp_path / "d"), "--verify-url", f"http://127.0.0.1:{gone}/verify",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split()[1].rpartition(":")[2])

        async def storm() -> list[object]:
            return list(await asyncio.gather(*(Raw.login(port) for _ in range(40)), return_exceptions=True))

        outcomes = asyncio.run(storm())
        assert all(isinstance(each, asyncio.IncompleteReadError | ConnectionResetError) for each in outcomes), outcomes
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=3 * LIMIT_S)
    assert errors.count(WARNING) == 1, errors
    assert errors.count("warning relay") == 1, errors


def test_the_list_of_keys_is_read_again(tmp_path: Path, said: io.StringIO) -> None:
    async def scenario(_: Bed) -> None:
        key = new_key()
        path = tmp_path / "keys"
        path.write_text(f"# members\n{key}  # laptop\n\n")
        keys = KeysFile(path)
        assert len(keys) == 1 and await keys(key, "")
        path.write_text("# nobody any more\n")
        assert not await keys(key, "")
        path.write_text("nodekey:zz\n")
        for _unused in range(10):
            assert not await keys(key, ""), "a bad file changes nothing"
        assert said.getvalue().count("the list of keys keeps its last contents") == 1, "said once, not for every client"
        with pytest.raises(ConfigError, match="keys:1"):
            KeysFile(path)

    run(scenario)


def test_a_mesh_key_opens_what_nothing_else_does(tmp_path: Path) -> None:
    """The right one comes in unverified and may watch; a wrong one is refused whoever shows it."""

    async def scenario(_: Bed) -> None:
        keys = tmp_path / "keys"
        member = NodePrivate.generate(CLOCK.entropy)
        keys.write_text(f"{member.public()}\n")
        right, wrong = "0f" * 32, "0e" * 32
        plan = plan_in(
            tmp_path, open=False, allow_keys=str(keys), plain=True, self_signed=False, mesh_key=right, mesh=()
        )  # fmt: skip
        station = await Station.start(plan)
        neighbour = await Raw.login(station.server.port, mesh_key=right)
        neighbour.writer.write(derp.emit_frame(derp.WATCH_CONNS))
        kind, payload = await neighbour.next()
        assert kind == derp.PEER_PRESENT and derp.parse_present(payload).key == neighbour.key
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await Raw.login(station.server.port, member, mesh_key=wrong)
        plain = await Raw.login(station.server.port, member)
        plain.writer.write(derp.emit_frame(derp.WATCH_CONNS))
        async with asyncio.timeout(LIMIT_S):
            with suppress(ConnectionResetError):
                assert await plain.reader.read() == b"", "no rights without the key"
        for raw in (neighbour, plain):
            raw.close()
        await station.aclose()

    run(scenario)
