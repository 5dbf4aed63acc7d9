"""`meshnode derp` and the Station behind it: TLS, WebSocket, neighbours, draining, what is printed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from meshnode.base.errors import ConfigError, StateError
from meshnode.base.keys import NodePrivate
from meshnode.cli.derp import relay_door
from meshnode.config.model import Config, Derp
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.relay import identity, metrics
from meshnode.relay.check import check
from meshnode.relay.plan import Plan
from meshnode.relay.pool import RelayState
from meshnode.relay.station import Station
from meshnode.run.clock import Clock
from meshnode.wire import derp
from tests.e2e.test_relay import DISCO, LIMIT_S, REGION, Bed, exchange, run, until

CLOCK = Clock()
MESH_KEY = "0f" * 32


def plan_in(folder: Path, **changes: Any) -> Plan:
    usual = Plan(
        listen=("127.0.0.1:0",), stun="127.0.0.1:0", hosts=("127.0.0.1",), folder=folder / "derp", self_signed=True,
        open=True,
    )  # fmt: skip
    return replace(usual, **changes)


def relays_of(station: Station, **changes: Any) -> RelayMap:
    node = RelayNode(
        "900a", REGION, "127.0.0.1", ipv4="127.0.0.1", port=station.server.port, stun_port=-1, cert_name=station.pin
    )
    return RelayMap({REGION: RelayRegion(REGION, "own", "own", (replace(node, **changes),))})


def test_self_signed_works_by_bare_ip_and_is_kept(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        pin, key = station.pin, station.server.public
        a, b = [await bed.client(relays_of(station), carried=True) for _ in range(2)]
        await exchange(a, b, DISCO)
        await station.aclose()
        again = await Station.start(plan_in(tmp_path))
        assert (again.pin, again.server.public) == (pin, key), "key and certificate stay"
        await again.aclose()
        other = await Station.start(plan_in(tmp_path, hosts=("127.0.0.1", "relay.lan")))
        assert other.pin != pin, "a name more needs another certificate"
        await other.aclose()
        for name in os.listdir(tmp_path / "derp"):
            assert (tmp_path / "derp" / name).stat().st_mode & 0o077 == 0

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"open": False}, "who may use the relay?"),
        ({"allow_keys": "x"}, "cannot read x"),
        ({"self_signed": False}, "give exactly one of"),
        ({"plain": True}, "these were given: self-signed, plain"),
        ({"hosts": ()}, "give --host"),
        ({"self_signed": False, "cert": "nowhere.pem"}, "cannot read nowhere.pem"),
        ({"listen": ("relay.lan:443",)}, "is no address"),
        ({"mesh": ("other",)}, "share a key"),
        ({"mesh_key": "123"}, "64 lower-case hex digits"),
        ({"verify_url": "headscale", "open": False}, "is no URL"),
        ({"verify_url": "http://127.0.0.1/verify"}, "not both"),
        ({"verify_url": "http://headscale:port/verify", "open": False}, "is no URL"),
        ({"verify_url": "http://[::1/verify", "open": False}, "is no URL"),
        ({"verify_url": "https://me:secret@headscale/verify", "open": False}, "holds a user name or a password"),
        ({"hosts": ("relay.example:443",)}, "host: 'relay.example:443' is neither a host name nor an IP address"),
        ({"mesh": ("2001:db8::1:x",), "mesh_key": MESH_KEY}, "mesh: '2001:db8::1:x' is not HOST[:PORT]"),
        ({"mesh": ("other",), "mesh_key": MESH_KEY, "ca_file": "nowhere.pem"}, "CA file nowhere.pem cannot be used"),
        ({"key": "key.pem"}, "key: belongs to --cert FILE, which is not given"),
        ({"acme_email": "me@example.com"}, "acme_email: belongs to --acme"),
        ({"acme_by": "http-01"}, "acme_by: belongs to --acme"),
        ({"ca_file": "nowhere.pem"}, "CA file nowhere.pem cannot be used"),
        ({"bootstrap_dns": ("https://hs",)}, "bootstrap_dns: 'https://hs' is neither"),
    ],
)
def test_what_cannot_be_is_said_before_anything_serves(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    async def scenario(_: Bed) -> None:
        with pytest.raises(ConfigError) as caught:
            await Station.start(plan_in(tmp_path, **changes))
        assert words in str(caught.value)

    run(scenario)


def test_a_damaged_key_file_is_no_new_identity(tmp_path: Path) -> None:
    (tmp_path / "derp").mkdir()
    (tmp_path / "derp" / identity.KEY_FILE).write_text("{}")
    with pytest.raises(StateError, match="move it away"):
        identity.load_key(tmp_path / "derp", CLOCK)


def test_the_meta_certificate_tells_the_key_in_the_handshake(tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        process = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-showcerts", "-connect", f"127.0.0.1:{station.server.port}",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        out, _unused = await process.communicate()
        assert f"derpkey{station.server.public.raw.hex()}" in out.decode().replace(" ", "")
        await station.aclose()

    run(scenario)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_websocket_carries_the_same_frames(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def scenario(bed: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        url = f"wss://127.0.0.1:{station.server.port}/derp"
        private = NodePrivate.generate(CLOCK.entropy)
        other = await bed.client(relays_of(station))
        options = {"ssl": context, "protocols": ["derp"], "autoping": False}
        async with aiohttp.ClientSession() as session, session.ws_connect(url, **options) as ws:
            assert ws.protocol == "derp"
            frames = derp.Frames(derp.TO_CLIENT)
            got: list[tuple[int, bytes]] = []

            async def next_frame() -> tuple[int, bytes]:
                while not got:
                    got.extend(frames.receive(await ws.receive_bytes(timeout=LIMIT_S)))
                return got.pop(0)

            kind, payload = await next_frame()
            assert kind == derp.SERVER_KEY
            login = derp.ClientLogin(private)
            login.consume_server_key(payload)
            info = login.create_client_info(CLOCK.entropy(24))
            await ws.send_bytes(info[:20])  # the boundaries of messages mean nothing
            await ws.send_bytes(info[20:] + derp.emit_send(other.key.raw, b"\x04by websocket"))
            assert (await next_frame())[0] == derp.SERVER_INFO
            await until(lambda: other.got)
            assert other.got == [(REGION, private.public(), b"\x04by websocket")]
            await ws.ping(b"there?")  # a message of its own, with no frame beside it
            assert await ws.receive(timeout=LIMIT_S) == (aiohttp.WSMsgType.PONG, b"there?", "")
            assert other.pool.send(REGION, private.public(), b"\x04" + bytes(60_000))
            assert await next_frame() == (derp.RECV_PACKET, other.key.raw + b"\x04" + bytes(60_000))
        await until(lambda: station.server.client_count == 1)
        assert station.server.stats()["websockets"] == 1
        await station.aclose()

    run(scenario)


def test_websocket_without_the_subprotocol_is_none(tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        station = await Station.start(plan_in(tmp_path, plain=True, self_signed=False))
        reader, writer = await asyncio.open_connection("127.0.0.1", station.server.port)
        key = base64.b64encode(bytes(16)).decode()
        writer.write(
            f"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 426 ")
        writer.close()
        await station.aclose()

    run(scenario)


# --- neighbours ---


def test_a_region_of_two_relays(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        first = await Station.start(plan_in(tmp_path / "1", plain=True, self_signed=False, mesh_key=MESH_KEY))
        second = await Station.start(
            plan_in(
                tmp_path / "2", plain=True, self_signed=False, mesh_key=MESH_KEY,
                mesh=(f"127.0.0.1:{first.server.port}",),
            )
        )  # fmt: skip
        port = second.server.port
        await first.aclose()
        first = await Station.start(
            plan_in(
                tmp_path / "1", listen=(f"127.0.0.1:{first.server.port}",), plain=True, self_signed=False,
                mesh_key=MESH_KEY, mesh=(f"127.0.0.1:{port}", f"127.0.0.1:{first.server.port}"),
            )
        )  # fmt: skip
        a = await bed.client(relays_of(first), plain=True)
        b = await bed.client(relays_of(second), plain=True)
        await until(lambda: first.server.stats()["keys_remote"] >= 1 and second.server.stats()["keys_remote"] >= 1)
        await exchange(a, b)
        assert first.server.stats()["forwarded_in"] and first.server.stats()["forwarded_out"]
        await b.pool.aclose()
        await until(lambda: (REGION, b.key, derp.GONE_DISCONNECTED) in a.gone)
        wrong = await bed.client(relays_of(first), plain=True)
        assert wrong.state() is RelayState.CONNECTED
        await second.aclose()
        await first.aclose()

    run(scenario)


# --- the end, and what is printed ---


def test_clients_are_told_to_come_back(tmp_path: Path) -> None:
    async def scenario(bed: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        clients = [await bed.client(relays_of(station), carried=bool(n % 2)) for n in range(6)]
        await station.drain(0.2)
        await until(lambda: not station.server.client_count)
        await until(lambda: all(c.state() is not RelayState.CONNECTED for c in clients))
        await station.aclose()

    run(scenario)


def test_the_report_from_outside(tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        station = await Station.start(plan_in(tmp_path))
        assert station.stun is not None
        found = await check("127.0.0.1", station.server.port, stun_port=station.stun.port)
        assert [f.step for f in found] == ["DNS", "TCP", "TLS", "certificate", "upgrade", "latency", "clock", "STUN"]
        assert all(f.ok for f in found), found
        assert station.pin in found[3].mend
        await station.aclose()
        found = await check("127.0.0.1", station.server.port, stun_port=station.stun.port)
        assert [f.ok for f in found] == [True, False, False]
        assert "firewall" in found[1].mend

    run(scenario)


def test_metrics_have_dashboards_names() -> None:
    page = metrics.render({"accepts": 3, "drop_queue_head": 2}, {"refused": 1}, {"success": 5})
    for line in (
        "derp_accepts 3",
        'derp_packets_dropped{reason="queue_head",kind="other"} 2',
        "meshnode_derp_refused 1",
        'stun_requests{disposition="success"} 5',
    ):
        assert line in page.splitlines()


async def fetch(url: str) -> tuple[int, str, str]:
    """(status, Location, body), redirects not followed."""
    async with aiohttp.ClientSession() as session:
        async with session.get(url, ssl=False, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", ""), await answer.text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_each_listener_serves_its_own_pages(tmp_path: Path) -> None:
    async def scenario(_: Bed) -> None:
        http, page = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        station = await Station.start(plan_in(tmp_path, http=http, metrics=page))
        https = f"https://127.0.0.1:{station.server.port}"
        assert (await fetch(f"http://{http}/generate_204"))[0] == 204
        assert await fetch(f"http://{http}/a?b=1") == (302, f"{https}/a?b=1", "")
        assert (await fetch(f"http://{http}//other.example/%0d"))[:2] == (302, f"{https}//other.example/%0D")
        assert "derp_accepts" in (await fetch(f"http://{page}/metrics"))[2]
        assert (await fetch(f"{https}/metrics"))[0] == 404, "figures are for those who may reach their port"
        assert (await fetch(f"{https}/generate_204"))[0] == 204
        for place in (http, page):
            host, _, port = place.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).split()[1] in (b"302", b"426"), "no relay without TLS"
            writer.close()
        await station.aclose()

    run(scenario)


LAUNCH = """
exec 9<&{relay} 8<&{http}; exec 3<&9 4<&8; exec 8<&- 9<&-
LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=relay:http exec {command}
"""


def handed_over(sockets: list[socket.socket], folder: Path, **how: Any) -> subprocess.Popen[str]:
    """`meshnode derp` with sockets as systemd hands them over."""
    command = f"{sys.executable} -m meshnode derp --stun off --self-signed --host 127.0.0.1 --dir {folder} --open"
    relay, http = (each.fileno() for each in sockets)
    script = LAUNCH.format(relay=relay, http=http, command=command)
    return subprocess.Popen(["bash", "-c", script], pass_fds=(relay, http), stdout=subprocess.PIPE, text=True, **how)


def test_sockets_that_systemd_hands_over(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as relay, socket.create_server(("127.0.0.1", 0)) as http:
        port, plain_port = relay.getsockname()[1], http.getsockname()[1]
        process = handed_over([relay, http], tmp_path / "d")
        assert process.stdout is not None
        with process:
            assert process.stdout.readline().startswith(f"ready 127.0.0.1:{port} ")
            findings = asyncio.run(check("127.0.0.1", port))
            assert [f.ok for f in findings][:5] == [True] * 5, findings
            location = f"https://127.0.0.1:{port}/x"
            assert asyncio.run(fetch(f"http://127.0.0.1:{plain_port}/x"))[:2] == (302, location)
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait(3 * LIMIT_S) == 0


def test_a_datagram_socket_is_not_listened_on(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as relay, socket.create_server(("127.0.0.1", 0)) as http:
        relay.bind(("127.0.0.1", 0))
        with handed_over([relay, http], tmp_path / "d", stderr=subprocess.PIPE) as process:
            _, said = process.communicate(timeout=3 * LIMIT_S)
            assert process.returncode == 50 and "is no listening TCP socket; use ListenStream" in said


def test_the_command(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "meshnode", "derp", "--listen", "127.0.0.1:0", "--stun", "127.0.0.1:0", "--self-signed",
        "--host", "127.0.0.1", "--dir", str(tmp_path / "d"), "--open",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline().split()
    assert first[0] == "ready" and first[1].startswith("127.0.0.1:") and first[2].startswith("nodekey:")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(3 * LIMIT_S) == 0
    region = json.loads(next(line for line in rest.splitlines() if line.startswith("{")))["900"]
    assert region["Nodes"][0]["CertName"].startswith("sha256-raw:")
    refused = subprocess.run([*command[:-1]], capture_output=True, text=True, timeout=3 * LIMIT_S, check=False)
    assert refused.returncode == 2 and "who may use the relay?" in refused.stderr


def test_beside_a_node_its_tailnets_members_may_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up --derp`: who is in the netmap is relayed, who leaves it is cut off."""
    monkeypatch.setattr("meshnode.relay.server.RECHECK_S", 0.1)

    async def scenario(bed: Bed) -> None:
        member, stranger = (NodePrivate.generate(CLOCK.entropy) for _ in range(2))
        peer = SimpleNamespace(key=member.public())
        own = SimpleNamespace(key=NodePrivate.generate(CLOCK.entropy).public())
        node = SimpleNamespace(netmap=SimpleNamespace(self_node=own, peers={1: peer}))
        options = Derp(
            derp=True, derp_listen=("127.0.0.1:0",), derp_stun="off", derp_host=("127.0.0.1",), derp_dir=str(tmp_path),
            derp_plain=True,
        )  # fmt: skip
        stations: list[Station] = []
        start = Station.start

        async def note(plan: Plan, **about: Any) -> Station:
            stations.append(await start(plan, **about))
            return stations[-1]

        monkeypatch.setattr(Station, "start", note)
        async with relay_door(Config(derp=options))(node):
            (station,) = stations
            client = await bed.client(relays_of(station, cert_name=""), private=member, plain=True)
            refused = await bed.client(relays_of(station, cert_name=""), private=stranger, plain=True, connected=False)
            await until(lambda: refused.pool.status()[0].error)
            assert client.state() is RelayState.CONNECTED and station.server.client_count == 1
            node.netmap = SimpleNamespace(self_node=own, peers={})
            await until(lambda: not station.server.find(member.public()))
            assert station.server.counters["revoked"] >= 1

    run(scenario)
