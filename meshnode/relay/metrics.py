"""Numbers of a relay in Prometheus' text form, under derper's names where it has them.

Source: docs/protocol/paths.md 1.13.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from meshnode import __version__

_COUNTERS: Final = {
    "derp_accepts": "accepts",
    "derp_bytes_received": "bytes_received",
    "derp_bytes_sent": "bytes_sent",
    "derp_packets_received": "packets_received",
    "derp_packets_sent": "packets_sent",
    "derp_packets_forwarded_in": "forwarded_in",
    "derp_packets_forwarded_out": "forwarded_out",
    "derp_home_moves_in": "home_moves_in",
    "derp_home_moves_out": "home_moves_out",
    "derp_got_ping": "pings_received",
    "derp_sent_pong": "pongs_sent",
    "derp_peer_gone_disconnected_frames": "gone_disconnected_frames",
    "derp_peer_gone_not_here_frames": "gone_not_here_frames",
    "derp_sclient_write_timeouts": "stalled",
    "derp_unknown_frames": "unknown_frames",
    "derp_websocket_accepts": "websockets",
    "derp_total_dup_client_conns": "dup_conns_total",
    "tls_listener_rejected_connections": "accept_refused",
    "meshnode_derp_accept_errors": "accept_errors",
    "meshnode_derp_logins": "logins",
    "meshnode_derp_per_ip_refused": "per_ip_refused",
    "meshnode_derp_accept_pauses": "accept_pauses",
    "meshnode_derp_newcomers_waited": "lobby_waits",
    "meshnode_derp_slow_turns": "slow_turns",
    "meshnode_derp_crowded_out": "crowded_out",
    "meshnode_derp_login_late": "login_late",
    "meshnode_derp_tls_failed": "tls_failed",
    "meshnode_derp_protocol_errors": "protocol_errors",
    "meshnode_derp_throttled": "throttled",
    "meshnode_derp_silent": "silent",
    "meshnode_derp_duplicate_key_fights": "fights",
    "meshnode_derp_wire_bytes_received": "rx_bytes",
    "meshnode_derp_wire_bytes_sent": "tx_bytes",
}
_GAUGES: Final = {
    "derp_current_connections": "clients",
    "derp_current_home_connections": "homes",
    "derp_current_notideal_connections": "not_ideal",
    "derp_clients_local": "keys_local",
    "derp_clients_remote": "keys_remote",
    "derp_watchers": "watchers",
    "derp_current_dup_client_keys": "dup_keys",
    "derp_current_dup_client_conns": "dup_conns",
    "meshnode_derp_connections": "conns",
    "meshnode_derp_connections_not_logged_in": "pending",
    "meshnode_derp_connections_half_open": "half_open",
    "meshnode_derp_longest_turn_us": "turn_max_us",
    "meshnode_derp_queue_chunks": "lane_chunks",
}
_DROPS: Final = {
    ("unknown_dest", "other"): "drop_unknown_dest",
    ("unknown_dest_on_fwd", "other"): "drop_unknown_dest_on_fwd",
    ("queue_head", "other"): "drop_queue_head",
    ("queue_head", "disco"): "drop_disco_queue_head",
    ("gone_disconnected", "other"): "drop_gone_disconnected",
    ("age", "other"): "drop_age",
}


def render(
    stats: Mapping[str, int],
    counters: Mapping[str, int],
    stun: Mapping[str, int],
    *,
    unanswered: int = 0,
    expires: float | None = None,
    started: float = 0.0,
) -> str:
    """The page. `stats`: of the C core; `counters`: of the server; `stun`: of the STUN server.

    unanswered: questions about clients that nobody answered. expires: end of the certificate, seconds since 1970.
    started: when this relay did, the same.
    """
    lines = [*_lines(stats, counters, stun), *_process(started)]
    lines += _one("meshnode_derp_admission_unanswered", "counter", unanswered)
    if expires is not None:
        lines += _one("meshnode_derp_certificate_expiry_timestamp_seconds", "gauge", f"{expires:.0f}")
    return "\n".join(lines) + "\n"


def _one(name: str, kind: str, value: object) -> list[str]:
    return [f"# TYPE {name} {kind}", f"{name} {value}"]


def _process(started: float) -> Iterator[str]:
    """What every exporter tells of its process, under the usual names and derper's."""
    descriptors = len(os.listdir("/proc/self/fd"))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield from _one("process_start_time_seconds", "gauge", f"{started:.3f}")
    yield from _one("process_start_unix_time", "gauge", f"{started:.0f}")
    yield from _one("uptime_sec", "gauge", f"{max(0.0, time.time() - started):.0f}")
    yield from _one("process_cpu_seconds_total", "counter", f"{time.process_time():.2f}")
    yield from _one("process_resident_memory_bytes", "gauge", pages * resource.getpagesize())
    yield from _one("process_open_fds", "gauge", descriptors)
    yield from _one("derp_current_file_descriptors", "gauge", descriptors)
    yield from _one("process_max_fds", "gauge", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield "# TYPE version gauge"
    yield f'version{{version="{__version__}",binary="meshnode"}} 1'


def _lines(stats: Mapping[str, int], counters: Mapping[str, int], stun: Mapping[str, int]) -> Iterator[str]:
    for name, key in _COUNTERS.items():
        yield f"# TYPE {name} counter"
        yield f"{name} {stats.get(key, 0)}"
    for name, key in _GAUGES.items():
        yield f"# TYPE {name} gauge"
        yield f"{name} {stats.get(key, 0)}"
    yield "# TYPE derp_clients_total gauge"
    yield f"derp_clients_total {stats.get('keys_local', 0) + stats.get('keys_remote', 0)}"
    yield "# TYPE derp_packets_dropped counter"
    for (reason, kind), key in _DROPS.items():
        yield f'derp_packets_dropped{{reason="{reason}",kind="{kind}"}} {stats.get(key, 0)}'
    yield "# TYPE derp_packets_received_kind counter"
    disco = stats.get("disco_received", 0)
    yield f'derp_packets_received_kind{{kind="disco"}} {disco}'
    yield f'derp_packets_received_kind{{kind="other"}} {stats.get("packets_received", 0) - disco}'
    yield "# TYPE derper_tls_request_version counter"
    for version, key in (("1.2", "tls12"), ("1.3", "tls13")):
        yield f'derper_tls_request_version{{version="{version}"}} {stats.get(key, 0)}'
    yield "# TYPE stun_requests counter"
    for disposition in ("success", "not_stun", "write_error"):
        yield f'stun_requests{{disposition="{disposition}"}} {stun.get(disposition, 0)}'
    yield "# TYPE stun_addrfamily counter"
    for family in ("ipv4", "ipv6"):
        yield f'stun_addrfamily{{family="{family}"}} {stun.get(family, 0)}'
    for key in ("refused", "revoked", "fast_starts"):
        yield from _one(f"meshnode_derp_{key}", "counter", counters.get(key, 0))
    yield from _one("bootstrap_dns_requests", "counter", counters.get("bootstrap_dns_requests", 0))
