"""`meshnode up` with plain WireGuard networks: alone, and two with the same addresses beside a tailnet."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from meshnode import WireGuardNetwork
from meshnode.config.wgconf import WgPeer
from tests.e2e.test_commands import BOUND_S, Up, clean_environment, see, start, up
from tests.e2e.test_wgnet import End, end, free_port
from tests.e2e.town import make_town, run, until


def conf(path: Path, own: End, peer: WgPeer) -> Path:
    path.touch(mode=0o600)
    path.write_text(f"""[Interface]
PrivateKey = {base64.b64encode(own.private.reveal()).decode()}
Address = {", ".join(map(str, own.addresses))}
PostUp = false
[Peer]
PublicKey = {peer.key.base64}
AllowedIPs = {", ".join(map(str, peer.allowed))}
Endpoint = {peer.host}:{peer.port}
PersistentKeepalive = 25
""")
    return path


@asynccontextmanager
async def far(name: str, folder: Path) -> AsyncIterator[tuple[WireGuardNetwork, Path]]:
    """(a network whose port 80 says its name, the file of a peer of it)"""
    here, there = end(2), end(1, free_port())

    async def say(reader: asyncio.StreamReader, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
        await end_of(writer)

    async with WireGuardNetwork(there.config(here.peer()), name=name) as network:
        await network.start_server(say, 80)
        yield network, conf(folder / f"{name}.conf", here, there.peer())


def free_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def through(door: int, host: str, port: int = 80) -> tuple[int, str]:
    """(SOCKS5 reply code, body of a GET)"""
    reader, writer = await asyncio.open_connection("127.0.0.1", door)
    try:
        name = host.encode()
        writer.write(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        assert await reader.readexactly(2) == b"\x05\x00"
        code = (await reader.readexactly(2))[1]
        if code:
            return code, ""
        _, kind = await reader.readexactly(2)
        await reader.readexactly({1: 6, 4: 18}[kind])
        return code, await get(reader, writer)
    finally:
        await end_of(writer)


async def get(reader: asyncio.StreamReader, writer: Any) -> str:
    """The body of a GET."""
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = (await reader.read()).decode().rpartition("\r\n")[2]
    await end_of(writer)
    return answer


async def end_of(writer: Any) -> None:
    writer.close()
    await writer.wait_closed()


def test_two_networks_with_the_same_addresses_beside_a_tailnet(tmp_path: Path) -> None:
    async def work() -> None:
        site = tmp_path / "site"
        site.mkdir()
        (site / "index.html").write_text("from the gateway")
        door, own_door = free_tcp_port(), free_tcp_port()
        async with (
            make_town() as town,
            far("office", tmp_path) as (office, office_file),
            far("lab", tmp_path) as (lab, lab_file),
        ):
            config = tmp_path / "n.toml"
            config.write_text(f"""
[networks.home.tailscale]
auth_key = "{town.control.add_key()}"
[networks.home.tunnel]
socks5 = "127.0.0.1:{door}"
serve = ["http:81=http://10.0.0.1.office:80", "tcp:82=10.0.0.1.lab:80"]
[networks.office.wireguard]
config_file = "{office_file}"
[networks.office.tunnel]
serve = ["http:80={site}"]
socks5 = "127.0.0.1:{own_door}"
[networks.lab.wireguard]
config_file = "{lab_file}"
""")
            other = await town.join("other")

            async def say(reader: asyncio.StreamReader, writer: Any) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\n\r\nother")
                await end_of(writer)

            await other.start_server(say, 80)
            async with up(town, tmp_path, "-c", str(config)) as node:
                await node.read_ready()
                assert node.ready.startswith("ready cli.mesh.test 100.64.")
                await see(other, "cli")
                # Out: by name of the network, by the network's own door, and the tailnet as ever.
                assert await through(door, "10.0.0.1.office") == (0, "office")
                assert await through(door, "10.0.0.1.LAB") == (0, "lab")
                assert await through(door, "fd00--1.lab") == (0, "lab")
                assert await through(own_door, "10.0.0.1") == (0, "office")
                assert await through(door, "other") == (0, "other")
                assert (await through(door, "10.0.0.1"))[0] == 3
                said = "10.0.0.1 is in several networks (office, lab); say which: 10.0.0.1.office or 10.0.0.1.lab"
                await until(lambda: any(said in line for line in node.errors), "the log says why")
                # In: served in the office network, and from the tailnet through to either.
                reader, writer = await office.open_connection("10.0.0.2", 80)
                assert await get(reader, writer) == "from the gateway"
                for port, name in ((81, "office"), (82, "lab")):
                    reader, writer = await other.open_connection("cli", port)
                    assert await get(reader, writer) == name
                # Commands.
                assert "pong from office (10.0.0.1) via ICMP" in await node.say("ping", "10.0.0.1.office")
                answer = await node.say("nc", "10.0.0.1.lab", "80", given=b"GET / HTTP/1.0\r\n\r\n")
                assert answer.endswith("lab")
                assert "10.0.0.1\n" in await node.say("dns", "10.0.0.1.lab")
                told = json.loads(await node.say("status", "--json"))
                assert told["BackendState"] == "Running" and set(told["Networks"]) == {"office", "lab"}
                peer = told["Networks"]["office"]["Peers"][0]
                assert peer["Endpoint"] == f"127.0.0.1:{office.port}" and peer["RxBytes"] > 0
                lines = (await node.say("status")).splitlines()
                assert any(line.startswith("office  wireguard  10.0.0.2, fd00::2  port ") for line in lines), lines
                assert any(lab.config.private.public().base64 in line and "handshake" in line for line in lines)
                assert await node.end() == 0
            assert any("PostUp would run a command" in line for line in node.errors)

    run("asyncio", work, bound_s=60)


def test_a_plain_network_alone(tmp_path: Path) -> None:
    async def work() -> None:
        door = free_tcp_port()
        async with far("office", tmp_path) as (office, file):
            words = [
                "up",
                "--wireguard",
                str(file),
                "--socks5",
                f"127.0.0.1:{door}",
                "--serve",
                "tcp:5=10.0.0.1.office:80",
            ]
            state = str(tmp_path / "state")
            process = await start([*words, "--state-dir", state], clean_environment(tmp_path))
            node = Up(process, state, clean_environment(tmp_path))
            reading = asyncio.ensure_future(node.read_errors())
            try:
                await node.read_ready()
                assert node.ready == "ready office 10.0.0.2 fd00::2"
                assert await through(door, "10.0.0.1") == (0, "office")
                assert (await through(door, "10.9.9.9"))[0] == 3
                assert (await through(door, "db"))[0] == 4
                reader, writer = await office.open_connection("10.0.0.2", 5)
                assert await get(reader, writer) == "office"
                told = json.loads(await node.say("status", "--json"))
                assert told["Self"] is None and set(told["Networks"]) == {"office"}
                assert (await node.say("status")).startswith("office  wireguard  10.0.0.2, fd00::2")
                assert "pong from office (10.0.0.1)" in await node.say("ping", "10.0.0.1")
                code, _, err = await node.ask("logout")
                assert code == 2 and "logout: only a tailnet has it" in err
                assert await node.end() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                await asyncio.wait_for(process.wait(), BOUND_S)
                await reading

    run("asyncio", work, bound_s=60)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    async def work() -> None:
        wrong = tmp_path / "wrong.conf"
        wrong.touch(mode=0o600)
        wrong.write_text("[Interface]\nPrivateKey = abc\n")
        for words, code, said in (
            (["--wireguard", str(tmp_path / "none.conf")], 2, "none.conf: no such file or directory"),
            (["--wireguard", str(wrong)], 2, f"wg genkey makes one  ({wrong}:2)"),
            (["--wireguard", str(wrong), "--auth-key", "x"], 2, "has no control server; leave out --auth-key"),
        ):
            process = await start(["up", *words], clean_environment(tmp_path))
            _, err = await asyncio.wait_for(process.communicate(), BOUND_S)
            assert process.returncode == code and said in err.decode(), err

    run("asyncio", work)
