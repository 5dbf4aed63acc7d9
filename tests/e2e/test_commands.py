"""The commands as a person types them: `meshnode up` in a process, the others asking it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from meshnode.control.tailnet import Member
from meshnode.netmap.model import Peer
from meshnode.node.node import Node
from meshnode.tunnel.streams import TunnelWriter
from tests.e2e.town import Town, make_town, run, until

BOUND_S = 20.0


@dataclass
class Up:
    """A running `meshnode up`."""

    process: asyncio.subprocess.Process
    state: str
    environment: dict[str, str]
    errors: list[str] = field(default_factory=list)
    ready: str = ""

    async def read_ready(self) -> None:
        """Its one line on standard output."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), BOUND_S)
        self.ready = line.decode().strip()
        assert self.ready.startswith("ready "), "".join(self.errors)

    async def read_errors(self) -> None:
        """Its log, for ever."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line.decode())

    async def ask(self, *words: str, given: bytes = b"") -> tuple[int, str, str]:
        """(exit code, output, errors) of another command."""
        words = (words[0], "--state-dir", self.state, *words[1:])
        process = await start(words, self.environment)
        out, err = await asyncio.wait_for(process.communicate(given), BOUND_S)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def say(self, *words: str, given: bytes = b"") -> str:
        """The output of a command that succeeds."""
        code, out, err = await self.ask(*words, given=given)
        assert code == 0, err
        return out

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 3.0)


async def start(words: tuple[str, ...] | list[str], environment: dict[str, str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-m", "meshnode", *words]
    return await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def clean_environment(folder: Path) -> dict[str, str]:
    foreign = ("MESHNODE_", "TS_", "TAILSCALE_", "XDG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return environment | {
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "MESHNODE_PLAIN_RELAYS": "1",
        "MESHNODE_USE_LOOPBACK": "1",
    }


@asynccontextmanager
async def up(town: Town, folder: Path, *words: str, state: str = "", **environment: str) -> AsyncIterator[Up]:
    """`meshnode up` in this town; killed at the end if it still runs."""
    settings = clean_environment(folder) | {"MESHNODE_CONTROL_URL": town.control.url} | environment
    state = state or str(folder / "state")
    process = await start(["up", "--state-dir", state, "--hostname", "cli", *words], settings)
    running = Up(process, state, settings)
    reading = asyncio.ensure_future(running.read_errors())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def hello(reader: asyncio.StreamReader, writer: TunnelWriter) -> None:
    writer.write(b"hello " + await reader.read())
    writer.close()


async def see(node: Node, name: str) -> Peer:
    def found() -> Peer | None:
        peers = node.netmap.peers.values() if node.netmap else ()
        return next((p for p in peers if p.label == name), None)

    peer: Peer = await until(found, f"{name} is seen")
    return peer


def test_every_question_has_an_answer(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            other = await town.join("other")
            await other.start_server(hello, 80)
            key = town.control.add_key()
            async with up(town, tmp_path, "--auth-key", key, "--log", "json") as node:
                await node.read_ready()
                v4, v6 = (str(ip) for ip in town_member(town, "cli").ips)
                assert node.ready == f"ready cli.mesh.test {v4} {v6}"
                await see(other, "cli")
                status = json.loads(await node.say("status", "--json"))
                assert status["BackendState"] == "Running"
                assert status["Self"]["DNSName"] == "cli.mesh.test."
                assert status["Self"]["TailscaleIPs"] == status["TailscaleIPs"] == [v4, v6]
                assert status["Self"]["Online"] is True
                (peer,) = status["Peer"].values()
                assert (peer["DNSName"], peer["Online"]) == ("other.mesh.test.", True)
                table = (await node.say("status")).splitlines()
                assert table[0].split() == [v4, "cli", "mesh", "linux", "-"]
                assert table[1].split()[:2] == [str(other.addresses[0]), "other"]
                assert (await node.say("ip")).split() == [v4, v6]
                assert (await node.say("ip", "-6")).split() == [v6]
                assert (await node.say("ip", "-4", "other")).split() == [str(other.addresses[0])]
                assert (await node.say("dns", "OTHER.mesh.test.")).split() == [str(ip) for ip in other.addresses]
                assert "Name:          other.mesh.test" in await node.say("whois", f"{other.addresses[0]}:80")
                who = json.loads(await node.say("whois", "--json", str(other.addresses[1])))
                assert who["Node"]["Name"] == "other.mesh.test."
                assert await node.say("nc", "other", "80", given=b"from nc") == "hello from nc"
                pong = await node.say("ping", "other", "--until-direct")
                assert "pong from other (" in pong and " via " in pong.splitlines()[-1]
                assert "DERP" not in pong.splitlines()[-1]
                echo = await node.say("ping", "--icmp", "--size", "100", "other")
                assert echo.startswith(f"pong from other ({other.addresses[0]}) via ICMP in "), echo
                code, _, err = await node.ask("ping", "--icmp", "--size", "1300", "other")
                assert code == 40 and "too long" in err
                result = json.loads(await node.say("ping", "--json", "-c", "1", str(other.addresses[0])))
                assert result["NodeName"] == "other" and result["LatencySeconds"] > 0
                code, out, err = await node.ask("dns", "nobody")
                assert (code, out) == (41, "") and "no node of this tailnet is called 'nobody'" in err
                code, _, err = await node.ask("ping", "nobody")
                assert code == 41, err
                assert await node.end() == 0
            assert all(json.loads(line)["message"] for line in node.errors)
            assert key not in "".join(node.errors)
            code, _, err = await node.ask("status")
            assert code == 51 and "no node runs" in err

    run("asyncio", work, bound_s=60)


def town_member(town: Town, name: str) -> Member:
    member = town.control.tailnet.find(name)
    assert member is not None
    return member


def test_logout_ends_the_process_and_mem_is_found(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            key = town.control.add_key(ephemeral=True)
            async with up(town, tmp_path, state="mem:", MESHNODE_AUTH_KEY=key) as node:
                await node.read_ready()
                assert (await node.say("ip")).split() == node.ready.split()[2:]
                await node.say("logout")
                assert await asyncio.wait_for(node.process.wait(), 5) == 0
            assert town.control.tailnet.find("cli") is None
            assert not list(tmp_path.glob("meshnode/*.sock"))

    run("asyncio", work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ephemeral_is_gone_when_the_process_ends(number: int, tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            key = town.control.add_key(ephemeral=True)
            async with up(town, tmp_path, "--ephemeral", TS_AUTHKEY=key) as node:
                await node.read_ready()
                assert await node.end(number) == 0
                assert town.control.tailnet.find("cli") is None

    run("asyncio", work)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """The control server is stopped, so the first signal's good-bye would take its time."""

    async def work() -> None:
        async with make_town() as town:
            key = town.control.add_key(ephemeral=True)
            async with up(town, tmp_path, "--ephemeral", MESHNODE_AUTH_KEY=key) as node:
                await node.read_ready()
                # A server that is reachable and says nothing more:
                for connection in list(town.control.connections):
                    assert connection.pipe.transport is not None
                    connection.pipe.transport.pause_reading()
                node.process.send_signal(signal.SIGTERM)
                await until(lambda: any("stopping" in line for line in node.errors), "it begins to stop")
                node.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(node.process.wait(), 1.0) == 128 + signal.SIGTERM

    run("asyncio", work)


def test_before_it_is_ready_status_says_what_it_waits_for(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            async with up(town, tmp_path, "--control-url", "http://127.0.0.1:1", "--timeout", "0") as node:
                await until(lambda: (tmp_path / "state" / "meshnode.sock").exists(), "its socket is there")
                status = json.loads(await node.say("status", "--json"))
                assert status["BackendState"] == "Starting"
                assert status["TailscaleIPs"] is None
                code, _, err = await node.ask("nc", "other", "80")
                assert code == 40 and "no netmap yet" in err
                assert await node.end() == 0

    run("asyncio", work)


def has_said(node: Up, lines: int) -> bool:
    return len(node.errors) >= lines or node.process.returncode is not None


def test_killed_at_any_moment_it_comes_back_as_itself(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_town() as town:
            for moment in range(12):
                key = town.control.add_key()
                async with up(town, tmp_path, MESHNODE_AUTH_KEY=key) as node:
                    # The moment is a count of log lines: before, while and after joining.
                    lines = moment % 6
                    await until(partial(has_said, node, lines), "its log goes on")
                    node.process.kill()
                    await node.process.wait()
            async with up(town, tmp_path, MESHNODE_AUTH_KEY=town.control.add_key()) as node:
                await node.read_ready()
                assert await node.end() == 0
            members: list[Any] = list(town.control.tailnet.members.values())
            assert len(members) == 1
            assert node.ready.split()[1] == "cli.mesh.test"

    run("asyncio", work, bound_s=60)
