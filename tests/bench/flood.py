"""A SYN flood through a real tunnel, and what it costs those who mean it.

    python -m tests.bench.flood [--rate 100000] [--seconds 5] > out.json

Needs root and the built peers. A listener of ours in a plain WireGuard network; one wireguard-go peer floods its port
with SYNs from a raw socket (the answers are never answered), another connects, asks and hangs up all the while, first
alone, then beside the flood. JSON: the rate that left, what of it our netstack saw, cookies, and the honest peer's
connects with their times.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from interop.lab import Lab
from interop.peers.member import Joining, Member
from interop.peers.wireguard import Wireguard, key_pair

ROOT = Path(__file__).resolve().parents[2]
OURS, ATTACKER, HONEST = "10.0.0.2", "10.0.0.1", "10.0.0.3"
PORT = 51820
ASKER = """
import json, socket, sys, time
end, times, failures = time.monotonic() + float(sys.argv[1]), [], 0
while time.monotonic() < end:
    began = time.monotonic()
    try:
        with socket.create_connection(("10.0.0.2", 7), 5) as s:
            s.settimeout(5)
            s.sendall(b"x")
            assert s.recv(1) == b"x"
        times.append(time.monotonic() - began)
    except OSError:
        failures += 1
    time.sleep(0.01)
print(json.dumps([times, failures]))
"""


def peers_of(lab: Lab, ours_private: bytes, ours_public: bytes) -> tuple[str, dict[str, Wireguard]]:
    """The two wireguard-go peers, and our configuration file's text."""
    text = f"[Interface]\nPrivateKey = {base64.b64encode(ours_private).decode()}\nAddress = {OURS}/24\n"
    text += f"ListenPort = {PORT}\n"
    made = {}
    for name, address in (("attacker", ATTACKER), ("honest", HONEST)):
        host = lab.host(name)
        private, public = key_pair()
        peer = Wireguard(host, private, PORT, (f"{address}/24",), "wireguard_go", 1280).start()
        peer.peer(ours_public, f"{OURS}/32", endpoint=f"{lab.hosts['ours'].v4}:{PORT}", keepalive_s=5)
        text += f"[Peer]\nPublicKey = {base64.b64encode(public).decode()}\nAllowedIPs = {address}/32\n"
        text += f"Endpoint = {host.v4}:{PORT}\n"
        made[name] = peer
    return text, made


def ask(host: Any, seconds: float) -> dict[str, Any]:
    """The honest peer's connects for so long."""
    times, failures = json.loads(host.run("python3", "-c", ASKER, str(seconds), timeout_s=seconds + 30).stdout)
    milliseconds = sorted(1000 * t for t in times)
    return {
        "connects": len(times),
        "failures": failures,
        "p50_ms": round(statistics.median(milliseconds), 2),
        "p99_ms": round(milliseconds[int(len(milliseconds) * 0.99)], 2),
        "worst_ms": round(milliseconds[-1], 2),
    }


def measure(rate: float, seconds: float) -> dict[str, Any]:
    """One run."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "native/tests"), "flood"], check=True)
    flooder = str(ROOT / "native/tests/build/plain/syn_flood")
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        ours = lab.host("ours")
        private, public = key_pair()
        text, peers = peers_of(lab, private, public)
        path = Path(folder) / "wg.conf"
        path.touch(mode=0o600)
        path.write_text(text)
        member = Member(ours, Joining("ours", networks=(("net", str(path)),)))
        attacker, honest = peers["attacker"].host, peers["honest"].host
        attacker.nft("table ip mnquiet { chain out { type filter hook output priority 0 ; tcp flags rst drop\n}\n}")
        names = ("ip_tcp_in", "ip_tcp_accepted", "ip_tcp_half_open_full", "ip_tcp_cookies_sent", "ip_tcp_cookies_taken")

        def counters() -> dict[str, int]:
            return dict(zip(names, map(int, member.tell("stat", *names, network="net").split()), strict=True))

        honest.run("ping", "-c", "3", OURS)
        alone = ask(honest, seconds)
        before = counters()
        flood = attacker.start("flood", [flooder, ATTACKER, OURS, "7", str(rate), str(seconds + 1)])
        beside = ask(honest, seconds)
        flood.wait(seconds + 20)
        after = counters()
        return {
            "asked_per_s": rate,
            "sent_per_s": round(int(flood.out()) / (seconds + 1)),
            "seen": {name: after[name] - before[name] for name in names},
            "alone": alone,
            "beside_the_flood": beside,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    print(json.dumps(measure(options.rate, options.seconds), indent=1))
