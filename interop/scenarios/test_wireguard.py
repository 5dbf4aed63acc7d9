"""Our engine against wireguard-go and boringtun, nothing else between them: handshake roles, PSK, both families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from interop.bed import MIB, random_file
from interop.lab import Host, Lab, until
from interop.peers.engine import ECHO_PORT, EngineProcess, Settings, start_engine
from interop.peers.origin import start_origin
from interop.peers.wireguard import Wireguard, key_pair

OURS = ("10.9.0.2", "fd09::2")
THEIRS = ("10.9.0.1", "fd09::1")
PORT = 51820


@dataclass
class Pair:
    host: Host
    theirs: Wireguard
    ours: EngineProcess
    digest: str


@pytest.fixture(scope="module", params=["wireguard_go", "wireguard_go with psk", "boringtun with psk"])
def pair(request: pytest.FixtureRequest, peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Lab(tmp_path_factory.mktemp("wireguard")) as lab:
        a, b = lab.host("reference"), lab.host("engine")
        their_private, their_public = key_pair()
        our_private, our_public = key_pair()
        program, _, psk_wanted = request.param.partition(" with ")
        psk = bytes(range(32)) if psk_wanted else b""
        theirs = Wireguard(a, their_private, PORT, (f"{THEIRS[0]}/32", f"{THEIRS[1]}/128"), program).start()
        theirs.peer(our_public, f"{OURS[0]}/32,{OURS[1]}/128", endpoint=f"{b.v4}:{PORT}", psk=psk)
        settings = Settings(
            private=our_private.hex(),
            peer=their_public.hex(),
            psk=psk.hex(),
            addresses=OURS,
            peer_addresses=(f"{THEIRS[0]}/32", f"{THEIRS[1]}/128"),
            endpoint=(a.v4, PORT),
            port=PORT,
        )
        digest = random_file(a.folder / "big", 16 * MIB)
        start_origin(a, a.folder, 8000)
        yield Pair(a, theirs, start_engine(b, settings), digest)


@pytest.mark.parametrize("address", OURS)
def test_they_ping_us_and_start_the_session(pair: Pair, address: str) -> None:
    until(
        lambda: pair.host.run("ping", "-c", "1", "-W", "2", address, check=False).returncode == 0,
        10.0,
        f"{address} answers ping",
    )


@pytest.mark.parametrize("address", THEIRS)
def test_we_ping_them(pair: Pair, address: str) -> None:
    assert pair.ours.ask("ping", address).startswith("pong ")


@pytest.mark.parametrize("address", THEIRS)
def test_we_fetch_a_file_whole(pair: Pair, address: str) -> None:
    assert pair.ours.ask("fetch", address, "8000", "/big") == f"{16 * MIB} {pair.digest}"


@pytest.mark.parametrize("address", OURS)
def test_they_get_their_bytes_echoed(pair: Pair, address: str) -> None:
    talk = f"import socket; s = socket.create_connection(({address!r}, {ECHO_PORT}), 10)\n"
    talk += "s.sendall(b'0123456789' * 2000); s.shutdown(1)\n"
    talk += "print(sum(len(x) for x in iter(lambda: s.recv(65536), b'')))"
    assert pair.host.run("python3", "-c", talk).stdout.strip() == "20000"


def test_closed_port_is_refused_and_not_silent(pair: Pair) -> None:
    got = pair.host.run("curl", "-sS", "--max-time", "5", f"http://{OURS[0]}:81/", check=False)
    assert got.returncode == 7, got.stderr


def test_no_listener_there_is_refused_here(pair: Pair) -> None:
    assert "refused" in pair.ours.ask("fetch", THEIRS[0], "8001", "/")
