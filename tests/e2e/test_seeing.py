"""What a person sees of paths: status, the live table, pings that insist, metrics."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from meshnode.cli.watch import table
from meshnode.local.client import Door
from tests.e2e.test_commands import Up, start, up
from tests.e2e.town import make_town, run, until


def test_status_tells_how_and_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with make_town() as town:
            one, other = await town.pair()
            await one.ping(other.addresses[0])
            await until(lambda: path_of(one)["PathState"] == "direct", "direct")
            await until(lambda: path_of(one)["Bytes"]["tx_direct"] > 0, "bytes went directly")
            peer = path_of(one)
            assert peer["Why"].startswith(f"on the same network: {peer['CurAddr']} answers in ")
            first = peer["Candidates"][0]
            assert first["Addr"] == peer["CurAddr"] and first["LatencyMs"] > 0 and not first["SetAside"]
            assert first["LastPong"][:4] == peer["Since"][:4] and peer["Pings"]["Answered"] > 0
            assert [t["State"] for t in peer["Transitions"]][-2:] == ["probing", "direct"]
            assert set(peer["Bytes"]) == {"rx_direct", "rx_relay", "tx_direct", "tx_relay"}
            one.set_paths("relay")
            await until(lambda: path_of(one)["PathState"] == "relay", "relayed", 25.0)
            assert path_of(one)["Why"] == 'by relay "own", because this node is set to use relays only'

    run("asyncio", scenario, bound_s=60)


def path_of(node: Any) -> dict[str, Any]:
    """The only peer's entry of its status."""
    (peer,) = node.status().to_json()["Peer"].values()
    return dict(peer)


def test_commands(tmp_path: Path) -> None:
    """Pings that insist on a direct path and on a size, the table for a pipe, numbers by three ways."""

    async def scenario() -> None:
        async with make_town() as town:
            other = await town.join("other")
            port = free_port()
            async with up(
                town, tmp_path, "--metrics", f"127.0.0.1:{port}", MESHNODE_AUTH_KEY=town.control.add_key()
            ) as cli:
                await cli.read_ready()
                await until(lambda: other.status().to_json()["Peer"], "it is seen")
                out = await cli.say("ping", "--until-direct", "other")
                assert "via 127.0.0.1:" in out.splitlines()[-1] or "via [::1]:" in out.splitlines()[-1]
                pong = json.loads(await cli.say("ping", "--require-direct", "--size", "1300", "--json", "other"))
                assert pong["Endpoint"] and not pong["DERPRegionID"]
                code, _, err = await cli.ask("ping", "--size", "5000", "other")
                assert code != 0 and "use 0 to 1400" in err
                await asyncio.to_thread(Door(Path(cli.state) / "meshnode.sock").post, "/paths", mode="relay")
                code, out, err = await cli.ask("ping", "--require-direct", "--count", "1", "other")
                while code == 0:  # the direct path is in doubt for some seconds
                    code, out, err = await cli.ask("ping", "--require-direct", "--count", "1", "other")
                assert code == 42 and "via DERP(own)" in out
                assert "direct connection to other not established: " in err
                page = await cli.say("metrics")
                assert 'meshnode_path_transitions_total{to="direct"} 1' in page
                assert 'meshnode_peer_bytes_total{peer="' in page and "tailscaled_home_derp_region_id" in page
                await watch(cli)
                code, page = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
                assert code == 200 and "meshnode_running 1" in page
                assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/healthz") == (200, "ok\n")
                assert (await asyncio.to_thread(get, f"http://127.0.0.1:{port}/else"))[0] == 404

    run("asyncio", scenario, bound_s=90)


def test_a_table_for_a_terminal() -> None:
    """Rates are of the time between two looks; a peer that is new has none."""
    peer = {"DNSName": "b.tail.net.", "HostName": "b", "RxBytes": 3072, "TxBytes": 512, "PathState": "direct",
            "Online": True, "CurAddr": "192.0.2.1:5", "LatencyMs": 1.25, "Why": "directly"}  # fmt: skip
    status = {"BackendState": "Running", "Self": {"DNSName": "a.tail.net.", "Relay": "own"}, "Peer": {"k": peer}}
    looks = [table(status, before, 2.0) for before in ({"k": (0, 0)}, {})]
    rows = [[cell for column in look.columns for cell in column.cells] for look in looks]
    assert rows[0] == ["b", "direct", "192.0.2.1:5", "1.2 ms", "1.5 KiB", "256 B", "directly"]
    assert rows[1][4:6] == ["0 B", "0 B"]


async def watch(cli: Up) -> None:
    """A line for each peer at once, and nothing twice; Ctrl-C is a good end."""
    words = ("status", "--state-dir", cli.state, "--watch", "0.1", "--json")
    process = await start(words, cli.environment)
    assert process.stdout is not None
    line = json.loads(await asyncio.wait_for(process.stdout.readline(), 20.0))
    assert line["DNSName"].startswith("other.") and "by relay" in line["Why"], line
    process.send_signal(signal.SIGINT)
    rest, _ = await asyncio.wait_for(process.communicate(), 20.0)
    assert process.returncode == 0
    assert all(json.loads(more)["PathState"] for more in rest.splitlines())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
