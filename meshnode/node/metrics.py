"""Numbers of a node in Prometheus' text form, under tailscaled's names where it has them.

Built from a Status and the last netcheck, without I/O. At most PEERS_SHOWN peers have lines of their own; sums are
over all.
Source: docs/protocol/node-surface.md (user metrics).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from meshnode.core.path_values import State
from meshnode.core.report import NetReport
from meshnode.node.status import PeerTraffic, Status

PEERS_SHOWN: Final = 1000
_WAYS: Final = (
    ("inbound", "direct", "rx_direct"),
    ("inbound", "derp", "rx_relay"),
    ("outbound", "direct", "tx_direct"),
    ("outbound", "derp", "tx_relay"),
)


def render(status: Status, report: NetReport, transitions: Mapping[str, int]) -> str:
    """The page. transitions: how often paths came into each state."""
    lines = [*_sums(status, report), *_paths(status, transitions), *_netcheck(report), *_counters(status)]
    return "\n".join(lines) + "\n"


def _sums(status: Status, report: NetReport) -> Iterator[str]:
    for direction in ("inbound", "outbound"):
        yield f"# TYPE tailscaled_{direction}_bytes_total counter"
        for way, path, key in _WAYS:
            if way == direction:
                total = sum(t.by_path.get(key, 0) for t in status.traffic.values())
                yield f'tailscaled_{direction}_bytes_total{{path="{path}"}} {total}'
    yield "# TYPE tailscaled_home_derp_region_id gauge"
    yield f"tailscaled_home_derp_region_id {status.home.region}"
    yield "# TYPE tailscaled_health_messages gauge"
    yield f'tailscaled_health_messages{{type="warning"}} {len(status.health)}'
    yield "# TYPE meshnode_running gauge"
    yield f"meshnode_running {int(status.backend_state == 'Running')}"
    yield "# TYPE meshnode_home_relay_connected gauge"
    yield f"meshnode_home_relay_connected {int(status.home.is_connected)}"
    yield "# TYPE meshnode_peers gauge"
    yield f"meshnode_peers {len(status.traffic)}"


def _paths(status: Status, transitions: Mapping[str, int]) -> Iterator[str]:
    yield "# TYPE meshnode_paths gauge"
    states = [traffic.path_state for traffic in status.traffic.values()]
    for state in State:
        yield f'meshnode_paths{{state="{state}"}} {states.count(state)}'
    yield "# TYPE meshnode_path_transitions_total counter"
    for state in State:
        yield f'meshnode_path_transitions_total{{to="{state}"}} {transitions.get(state, 0)}'
    shown = _named(status)
    yield "# TYPE meshnode_peers_not_shown gauge"
    yield f"meshnode_peers_not_shown {len(status.traffic) - len(shown)}"
    yield "# TYPE meshnode_peer_bytes_total counter"
    for name, traffic in shown:
        for direction, path, key in _WAYS:
            labels = f'peer="{name}",direction="{direction}",path="{path}"'
            yield f"meshnode_peer_bytes_total{{{labels}}} {traffic.by_path.get(key, 0)}"
    yield "# TYPE meshnode_peer_direct gauge"
    for name, traffic in shown:
        yield f'meshnode_peer_direct{{peer="{name}"}} {int(traffic.path_state == State.DIRECT)}'
    yield "# TYPE meshnode_peer_latency_seconds gauge"
    for name, traffic in shown:
        if traffic.latency_s is not None:
            yield f'meshnode_peer_latency_seconds{{peer="{name}"}} {traffic.latency_s:.6f}'


def _named(status: Status) -> list[tuple[str, PeerTraffic]]:
    """Peers with lines of their own: those with traffic first."""
    if status.netmap is None:
        return []
    found = [(_escaped(p.name), status.traffic.get(p.id, PeerTraffic())) for p in status.netmap.peers.values()]
    found.sort(key=lambda pair: (-(pair[1].rx_bytes + pair[1].tx_bytes), pair[0]))
    return sorted(found[:PEERS_SHOWN], key=lambda pair: pair[0])


def _netcheck(report: NetReport) -> Iterator[str]:
    if not report.at:
        return
    yield "# TYPE meshnode_netcheck_udp gauge"
    yield f"meshnode_netcheck_udp {int(report.udp)}"
    yield "# TYPE meshnode_netcheck_region_latency_seconds gauge"
    for region, reading in sorted(report.regions.items()):
        if reading.best_s is not None:
            yield f'meshnode_netcheck_region_latency_seconds{{region="{region}"}} {reading.best_s:.6f}'


def _counters(status: Status) -> Iterator[str]:
    """Everything the engine and discovery count; which of them may fall is theirs to know."""
    yield "# TYPE meshnode_counter untyped"
    for name, value in sorted(status.counters.items()):
        yield f'meshnode_counter{{name="{_escaped(name)}"}} {value}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
