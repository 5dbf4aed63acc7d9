"""The commands that ask a running node: one function each, blocking, over its socket.

Text is for people and close to what `tailscale` prints; `--json` is for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any, Final

from meshnode.base.errors import ConfigError, MeshError, NameNotFound, PeerOffline, TimedOut
from meshnode.local.client import Door
from meshnode.local.paths import find_socket
from meshnode.state.file import default_state_dir

PING_INTERVAL_S: Final = 1.0
UNTIL_DIRECT_MAX: Final = 10
RANGES_SHOWN: Final = 3
TIMEOUT_SLACK_S: Final = 2.0
"""The node's own timeout comes first, so that its better message arrives."""


def door_of(parsed: argparse.Namespace) -> Door:
    """The socket of the node that is meant. NoRunningNode when it is asked and there is none."""
    directory = parsed.state_dir or os.environ.get("MESHNODE_STATE_DIR") or os.environ.get("TS_STATE_DIR") or ""
    if not directory and parsed.network:
        directory = str(default_state_dir(os.environ, parsed.network))
    return Door(find_socket(directory, os.environ))


def print_json(value: Any) -> None:
    """For programs: indented, with letters as they are."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def run_version(parsed: argparse.Namespace) -> int:
    """`meshnode version`."""
    from meshnode import __version__

    if parsed.json:
        print_json({"short": __version__, "long": __version__, "majorMinorPatch": __version__})
    else:
        print(__version__)
    return 0


def run_status(parsed: argparse.Namespace) -> int:
    """`meshnode status`."""
    if parsed.watch is not None:
        from meshnode.cli.watch import run_watch

        return run_watch(door_of(parsed), every_s=parsed.watch, as_json=parsed.json)
    status = door_of(parsed).get("/status")
    if parsed.json:
        print_json(status)
        return 0
    peers = sorted((status.get("Peer") or {}).values(), key=lambda peer: str(peer["DNSName"]))
    rows = [_status_row(status, status["Self"], "-")] if status.get("Self") else []
    rows += [_status_row(status, peer, _peer_state(peer)) for peer in peers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1] if rows else []
    for row in rows:
        print("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]))
    for name, network in sorted((status.get("Networks") or {}).items()):
        _print_network(name, network)
    if status["BackendState"] != "Running":
        print(f"{status['BackendState']}: {status.get('Reason', '')}".rstrip(": "))
    if status.get("Interface"):
        print(f"# interface {status['Interface']}")
    for peer in peers:
        if peer.get("Active") and not peer.get("CurAddr") and peer.get("Why"):
            print(f"# {peer['DNSName'].split('.')[0]}: {peer['Why']}")
    for complaint in status.get("Health") or ():
        print(f"# {complaint}")
    return 0


def _print_network(name: str, network: dict[str, Any]) -> None:
    """A plain WireGuard network, a line and one for each peer."""
    addresses = ", ".join(network["Addresses"])
    print(f"{name}  wireguard  {addresses}  port {network['ListenPort']}  key {network['PublicKey']}")
    for peer in network["Peers"]:
        where = peer["Endpoint"] or peer["EndpointName"] or "no endpoint"
        done = peer["LastHandshake"]
        session = "never" if done.startswith("0001-") else _ago(done)
        ranges = ", ".join(peer["AllowedIPs"][:RANGES_SHOWN]) or "no range"
        more = len(peer["AllowedIPs"]) - RANGES_SHOWN
        ranges += f" and {more} more" if more > 0 else ""
        sums = f"tx {peer['TxBytes']} rx {peer['RxBytes']}"
        print(f"  {peer['PublicKey']}  {ranges}  {where}  handshake {session}  {sums}")


def _ago(moment: str) -> str:
    """How long ago, in the largest whole unit."""
    from datetime import UTC, datetime

    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _status_row(status: dict[str, Any], node: dict[str, Any], state: str) -> list[str]:
    name = node["DNSName"].split(".")[0] or node["HostName"]
    user = (status.get("User") or {}).get(str(node.get("UserID")), {})
    owner = "tagged-devices" if node.get("Tags") else user.get("LoginName", "")
    address = next(iter(node.get("TailscaleIPs") or ()), "-")
    return [address, name, owner or "-", node.get("OS") or "-", state]


def _peer_state(peer: dict[str, Any]) -> str:
    if peer.get("CurAddr"):
        way = f"direct {peer['CurAddr']}"
    elif peer.get("PeerRelay"):
        way = f"peer-relay {peer['PeerRelay']}"
    elif peer.get("Relay"):
        way = f'relay "{peer["Relay"]}"'
    else:
        way = "no path"
    if peer.get("Active"):
        return f"active; {way}, tx {peer['TxBytes']} rx {peer['RxBytes']}"
    return "idle" if peer.get("Online") is not False else "offline"


def run_ping(parsed: argparse.Namespace) -> int:
    """`meshnode ping PEER`: exit 0 if a pong came (with --until-direct: a direct one)."""
    door = door_of(parsed)
    count = parsed.count if parsed.count is not None else (UNTIL_DIRECT_MAX if parsed.until_direct else 1)
    if count < 1:
        raise ConfigError(f"--count {count}: send at least one ping")
    wants_direct = parsed.until_direct or parsed.require_direct
    if parsed.icmp and wants_direct:
        flag = "--until-direct" if parsed.until_direct else "--require-direct"
        raise ConfigError(f"--icmp goes through the tunnel by whatever path there is; leave out {flag}")
    kind = {"kind": "icmp"} if parsed.icmp else {}
    kind |= {"size": parsed.size} if parsed.size is not None else {}
    pongs = directs = 0
    for number in range(count):
        if number:
            time.sleep(PING_INTERVAL_S)
        try:
            pong = door.post(
                "/ping", ip=parsed.peer, timeout=parsed.timeout, timeout_s=parsed.timeout + TIMEOUT_SLACK_S, **kind
            )
        except TimedOut as error:
            print(error, file=sys.stderr)
            continue
        pongs += 1
        directs += bool(pong["Endpoint"] or pong["IsLocalIP"])
        _print_pong(pong, parsed.json)
        if parsed.until_direct and directs:
            return 0
    if not pongs:
        raise TimedOut(f"no reply from {parsed.peer}")
    if wants_direct and not directs:
        raise PeerOffline(f"direct connection to {parsed.peer} not established{_why_not(door, pong)}")
    return 0


def _why_not(door: Door, pong: dict[str, Any]) -> str:
    """What status says of the peer that answered by relay."""
    peers = (door.get("/status").get("Peer") or {}).values()
    why = next((p["Why"] for p in peers if pong["NodeIP"] in (p["TailscaleIPs"] or ())), "")
    return f": {why}" if why else ""


def _print_pong(pong: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(pong), flush=True)
        return
    name, took = f"{pong['NodeName']} ({pong['NodeIP']})", _rounded(pong["LatencySeconds"])
    print(f"pong from {name} via {_via(pong)} in {took}", flush=True)


def _via(pong: dict[str, Any]) -> str:
    if pong.get("IsLocalIP"):
        return "loopback"
    if pong.get("Kind") == "icmp":
        return "ICMP"
    if pong.get("PeerRelay"):
        return f"peer-relay({pong['PeerRelay']})"
    return str(pong["Endpoint"] or f"DERP({pong['DERPRegionCode']})")


def _rounded(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:.0f}ms" if ms >= 10 else f"{ms:.2f}ms"


def run_ip(parsed: argparse.Namespace) -> int:
    """`meshnode ip [PEER]`."""
    door = door_of(parsed)
    if parsed.peer:
        addresses = door.get("/dns", name=parsed.peer)["Addresses"]
    else:
        addresses = door.get("/status").get("TailscaleIPs") or []
    chosen = [ip for ip in addresses if not (parsed.only6 if ":" not in ip else parsed.only4)]
    if not chosen:
        raise NameNotFound("no address of that family" if addresses else "this node has no address yet")
    print("\n".join(chosen))
    return 0


def run_whois(parsed: argparse.Namespace) -> int:
    """`meshnode whois ADDRESS`."""
    who = door_of(parsed).get("/whois", addr=parsed.address)
    if parsed.json:
        print_json(who)
        return 0
    node, user = who["Node"], who["UserProfile"]
    print("Machine:")
    print(f"  Name:          {node['Name'].rstrip('.')}")
    print(f"  ID:            {node['StableID']}")
    print(f"  Addresses:     [{' '.join(node['Addresses'])}]")
    if node["Tags"]:
        print(f"  Tags:          {', '.join(node['Tags'])}")
    else:
        print("User:")
        print(f"  Name:     {user['LoginName']}")
        print(f"  ID:       {user['ID']}")
    if who["CapMap"]:
        print("Capabilities:")
        for name, values in who["CapMap"].items():
            print(f"  - {name}{':' if values else ''}")
            for value in values or ():
                print(f"      {json.dumps(value)}")
    return 0


def run_metrics(parsed: argparse.Namespace) -> int:
    """`meshnode metrics`: the page that Prometheus reads."""
    print(door_of(parsed).get("/metrics")["Text"], end="")
    return 0


def run_dns(parsed: argparse.Namespace) -> int:
    """`meshnode dns NAME`: one address per line."""
    answer = door_of(parsed).get("/dns", name=parsed.name)
    if parsed.json:
        print_json(answer)
    else:
        print("\n".join(answer["Addresses"]))
    return 0


def run_logout(parsed: argparse.Namespace) -> int:
    """`meshnode logout`: the node leaves the tailnet and its process ends."""
    door_of(parsed).post("/logout")
    return 0


def run_nc(parsed: argparse.Namespace) -> int:
    """`meshnode nc HOST PORT`: each direction ends with its own end of file."""
    if not 0 < parsed.port < 65536:
        raise ConfigError(f"{parsed.port} is no port; use 1 to 65535")
    sock, early = door_of(parsed).dial(parsed.host, parsed.port, timeout_s=parsed.timeout)
    from meshnode.cli.pump import pump

    try:
        with sock:
            pump(sock, early, sys.stdin.fileno(), sys.stdout.fileno())
    except ConnectionResetError:
        raise MeshError(f"{parsed.host}:{parsed.port} reset the connection") from None
    return 0
