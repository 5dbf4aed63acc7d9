"""`meshnode status --watch`: the peers and their paths as a live table, until interrupted.

On a terminal one table that stays in its place; elsewhere, or with --json, one line of text or JSON for each change of
a peer's path, so that a pipe gets news and no repetition.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from meshnode.base.errors import ConfigError
from meshnode.local.client import Door

EVERY_MIN_S: Final = 0.1
EVERY_MAX_S: Final = 3600.0
UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def run_watch(door: Door, *, every_s: float, as_json: bool, sleep: Callable[[float], None] = time.sleep) -> int:
    """Ask again and again. ConfigError for an interval that is none; ends with the node, or by Ctrl-C with 0."""
    if not EVERY_MIN_S <= every_s <= EVERY_MAX_S:
        raise ConfigError(f"--watch {every_s:g}: use {EVERY_MIN_S:g} to {EVERY_MAX_S:g} seconds")
    try:
        if sys.stdout.isatty() and not as_json:
            _draw(door, every_s, sleep)
        else:
            _tell(door, every_s, as_json, sleep)
    except KeyboardInterrupt:
        pass
    return 0


def _draw(door: Door, every_s: float, sleep: Callable[[float], None]) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, screen=False) as live:
        before: dict[str, tuple[int, int]] = {}
        while True:
            status = door.get("/status")
            live.update(table(status, before, every_s), refresh=True)
            before = {key: (p["RxBytes"], p["TxBytes"]) for key, p in (status.get("Peer") or {}).items()}
            sleep(every_s)


def table(status: dict[str, Any], before: dict[str, tuple[int, int]], every_s: float) -> Any:
    """One moment as a rich table. before: (received, sent) bytes of each peer a moment ago."""
    from rich.table import Table

    own = status.get("Self") or {}
    home = f'home relay "{own.get("Relay", "")}"' if own.get("Relay") else "no home relay"
    found = Table(title=f"{own.get('DNSName', '').rstrip('.')}  {status['BackendState']}  {home}", title_justify="left")
    for name in ("peer", "path", "by", "latency", "in/s", "out/s"):
        found.add_column(name, no_wrap=True)
    found.add_column("why")
    for key, peer in sorted((status.get("Peer") or {}).items(), key=lambda pair: str(pair[1]["DNSName"])):
        had = before.get(key, (peer["RxBytes"], peer["TxBytes"]))
        rates = [
            _amount((new - old) / every_s) for new, old in zip((peer["RxBytes"], peer["TxBytes"]), had, strict=True)
        ]
        latency = peer.get("LatencyMs")
        took = f"{latency:.1f} ms" if latency is not None else ""
        found.add_row(_name(peer), _state(peer), _way(peer), took, *rates, peer.get("Why", ""))
    return found


def _tell(door: Door, every_s: float, as_json: bool, sleep: Callable[[float], None]) -> None:
    told: dict[str, tuple[str, str]] = {}
    while True:
        status = door.get("/status")
        peers = status.get("Peer") or {}
        for key, peer in sorted(peers.items(), key=lambda pair: str(pair[1]["DNSName"])):
            now = (_state(peer), _way(peer))
            if told.get(key) == now:
                continue
            told[key] = now
            print(
                _json_line(peer) if as_json else f"{_name(peer)}  {now[0]}  {now[1]}  {peer.get('Why', '')}", flush=True
            )
        told = {key: value for key, value in told.items() if key in peers}
        sleep(every_s)


def _json_line(peer: dict[str, Any]) -> str:
    names = ("DNSName", "PathState", "Since", "Reason", "Why", "CurAddr", "PeerRelay", "Relay", "LatencyMs")
    return json.dumps({name: peer.get(name) for name in names}, ensure_ascii=False)


def _name(peer: dict[str, Any]) -> str:
    return str(peer["DNSName"].split(".")[0] or peer["HostName"])


def _state(peer: dict[str, Any]) -> str:
    return "offline" if peer.get("Online") is False and not peer.get("Active") else str(peer.get("PathState", ""))


def _way(peer: dict[str, Any]) -> str:
    if peer.get("CurAddr"):
        return str(peer["CurAddr"])
    if peer.get("PeerRelay"):
        return f"peer-relay {peer['PeerRelay']}"
    return f'relay "{peer["Relay"]}"' if peer.get("Relay") else "-"


def _amount(bytes_per_s: float) -> str:
    value, unit = max(0.0, bytes_per_s), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {UNITS[unit]}"
