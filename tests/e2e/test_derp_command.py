"""`meshnode derp` as a process: signals while it starts, keys in the process list, what it prints and warns of."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from meshnode.base.errors import ConfigError
from meshnode.cli.derp import relay_door
from meshnode.config.model import Config, Derp
from meshnode.relay import identity
from tests.e2e.test_relay import LIMIT_S

MESH_KEY = "5c" * 32
MAIN = "import sys, meshnode.relay.station as s; s.RELOAD_S = {}; from meshnode.cli.main import main; sys.exit(main())"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}


@contextmanager
def relay(folder: Path, *words: str, every_s: float = 15.0) -> Iterator[subprocess.Popen[str]]:
    """`meshnode derp` on some port, ended at the end. every_s: how often it looks at its certificate."""
    command = [sys.executable, "-c", MAIN.format(every_s), "derp", "--listen", "127.0.0.1:0", "--stun", "off"]
    command += ["--dir", str(folder / "d"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) after SIGTERM."""
    assert process.stdout is not None and process.stderr is not None
    process.send_signal(signal.SIGTERM)
    code = process.wait(LIMIT_S)
    return code, process.stdout.read(), process.stderr.read()


def test_a_signal_while_it_waits_for_its_certificate(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/directory"
        with relay(tmp_path, "--open", "--host", "relay.lan", "--acme", url) as process:
            silent.settimeout(LIMIT_S * 3)
            asked, _ = silent.accept()
            with asked:
                process.send_signal(signal.SIGHUP)
                code, out, err = ended(process)
    assert (code, out) == (0, "") and "Traceback" not in err


def test_a_mesh_key_on_the_command_line_leaves_the_process_list(tmp_path: Path) -> None:
    with relay(tmp_path, "--open", "--plain", "--mesh-key", MESH_KEY) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready 127.0.0.1:")
        argv = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert "--mesh-key" in argv and MESH_KEY not in argv
        code, _, err = ended(process)
        assert code == 0 and MESH_KEY not in err


def test_what_is_printed_can_be_pasted_and_what_is_risky_is_said(tmp_path: Path) -> None:
    with relay(tmp_path, "--open", "--self-signed", "--host", "0:0:0:0:0:0:0:1") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        _, rest, err = ended(process)
    assert first.startswith("ready [::1]:")
    assert "anybody who finds this relay may use it" in err
    region, yaml = rest.partition("{")[2], rest.partition("\nregions:\n")[2]
    node = json.loads("{" + region.partition("\n")[0])["900"]["Nodes"][0]
    assert (node["IPv4"], node["IPv6"], node["HostName"]) == ("none", "::1", "::1")
    lines = [line for line in yaml.splitlines() if line]
    assert lines[0] == "  900:" and all(line.startswith("  ") for line in lines), "nothing but the map to the end"
    assert f'        certname: "{node["CertName"]}"' in lines


def test_a_verifier_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    with relay(tmp_path, "--plain", "--verify-url", "http://127.0.0.1:1/verify") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("ready ")
        assert "127.0.0.1:1" in until_said(process, "nobody can be asked"), "who was asked"


class NotFound(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_verifier_at_another_path_is_told_with_the_right_one(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}/"
        with relay(tmp_path, "--plain", "--verify-url", f"http://{place}?token=hidden") as process:
            until_said(
                process, f"127.0.0.1:{server.server_port}/ answered with HTTP status 404; Headscale's path is /verify"
            )
        server.shutdown()


def shown(port: int) -> bytes:
    """The certificate that a client meets, as PEM."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=LIMIT_S).encode()


def until_shown(port: int, certificate: bytes) -> None:
    deadline = time.monotonic() + LIMIT_S * 3
    while shown(port).split() != certificate.split():
        assert time.monotonic() < deadline, "the new certificate is not shown"
        time.sleep(0.05)


def until_said(process: subprocess.Popen[str], words: str) -> str:
    """The line of its log with these words; whoever does not say them within three LIMIT_S is ended."""
    assert process.stderr is not None
    end = threading.Timer(3 * LIMIT_S, process.kill)
    end.start()
    try:
        while words not in (line := process.stderr.readline()):
            assert line, f"it ended, or was ended, without a word of {words!r}"
    finally:
        end.cancel()
    return line


@pytest.mark.parametrize("by_hangup", [True, False])
def test_a_renewed_certificate_is_shown_and_a_bad_one_changes_nothing(tmp_path: Path, by_hangup: bool) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def write(made: bytes) -> bytes:
        certificate, mark, secret = made.partition(b"-----BEGIN PRIVATE")
        key.write_bytes(mark + secret)
        chain.write_bytes(certificate)
        return certificate

    first = write(identity.make_self_signed(["127.0.0.1"]))
    words = ["--open", "--host", "127.0.0.1", "--cert", str(chain), "--key", str(key)]
    with relay(tmp_path, *words, every_s=600.0 if by_hangup else 0.1) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[1].rpartition(":")[2])
        assert shown(port).split() == first.split()
        second = write(identity.make_self_signed(["127.0.0.1"]))
        if by_hangup:
            process.send_signal(signal.SIGHUP)
        until_shown(port, second)
        chain.write_bytes(identity.make_self_signed(["127.0.0.1"]).partition(b"-----BEGIN PRIVATE")[0])
        if by_hangup:
            process.send_signal(signal.SIGHUP)
        until_said(process, "the last certificate stays in use")
        assert shown(port).split() == second.split(), "its key does not fit"
        assert ended(process)[0] == 0


def test_neighbours_that_cannot_meet_say_what_to_look_at(tmp_path: Path) -> None:
    with relay(tmp_path / "1", "--open", "--self-signed", "--host", "127.0.0.1", "--mesh-key", MESH_KEY) as first:
        assert first.stdout is not None
        pem = tmp_path / "first.pem"
        place = first.stdout.readline().split()[1]
        pem.write_bytes(shown(int(place.rpartition(":")[2])))
        common = ["--open", "--self-signed", "--host", "127.0.0.1", "--mesh", place, "--mesh-key"]
        with relay(tmp_path / "2", *common, MESH_KEY) as second:
            until_said(
                second, f'neighbour lost host={place} why="TLS failed" mend="does the system, or --ca-file, vouch'
            )
        with relay(tmp_path / "3", *common, "00" * 32, "--ca-file", str(pem)) as third:
            until_said(third, 'mend="has it the same mesh key?"')
            until_said(first, "refused: a relay with another mesh key")


def beside(folder: Path, **changes: object) -> Config:
    """`up --derp`."""
    usual = {
        "derp": True, "derp_listen": ("127.0.0.1:0",), "derp_stun": "off", "derp_dir": str(folder / "d"),
        "derp_plain": True,
    }  # fmt: skip
    return Config(derp=Derp(**usual | changes))  # type: ignore[arg-type]


def test_beside_a_node_a_hangup_reads_again_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reloads: list[int] = []
    monkeypatch.setattr("meshnode.relay.station.Station.reload", lambda station: reloads.append(1))

    async def scenario() -> None:
        async with relay_door(beside(tmp_path))(SimpleNamespace(netmap=None)):
            assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGHUP)
            async with asyncio.timeout(LIMIT_S):
                while not reloads:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_beside_a_node_errors_say_where_its_settings_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=r"TLS: give exactly one .*\[derp\] of the file"):
            async with relay_door(beside(tmp_path, derp_plain=False))(SimpleNamespace(netmap=None)):
                pass

    asyncio.run(scenario())


def test_names_for_clients_whose_dns_fails(tmp_path: Path) -> None:
    with relay(tmp_path, "--open", "--plain", "--bootstrap-dns", "localhost") as process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[1].rpartition(":")[2]

        async def ask() -> dict[str, list[str]]:
            async with aiohttp.ClientSession() as session, asyncio.timeout(LIMIT_S):
                while True:
                    async with session.get(f"http://127.0.0.1:{port}/bootstrap-dns?q=localhost") as answer:
                        assert answer.status == 200 and "Date" in answer.headers
                        if found := await answer.json():
                            return found  # type: ignore[no-any-return]
                    await asyncio.sleep(0.05)

        assert set(asyncio.run(ask())["localhost"]) <= {"127.0.0.1", "::1"}
