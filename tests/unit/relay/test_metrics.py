"""The page of figures: Prometheus' text form, and the names that derper's dashboards use."""

from __future__ import annotations

import re

from meshnode.relay import metrics

DERPERS = """
bootstrap_dns_requests derp_accepts derp_bytes_received derp_bytes_sent derp_clients_local derp_clients_remote
derp_clients_total derp_current_connections derp_current_dup_client_conns derp_current_dup_client_keys
derp_current_file_descriptors derp_current_home_connections derp_current_notideal_connections derp_got_ping
derp_home_moves_in derp_home_moves_out derp_packets_dropped derp_packets_forwarded_in derp_packets_forwarded_out
derp_packets_received derp_packets_received_kind derp_packets_sent derp_peer_gone_disconnected_frames
derp_peer_gone_not_here_frames derp_sclient_write_timeouts derp_sent_pong derp_total_dup_client_conns
derp_unknown_frames derp_watchers derp_websocket_accepts process_cpu_seconds_total process_max_fds process_open_fds
process_resident_memory_bytes process_start_time_seconds process_start_unix_time stun_addrfamily stun_requests
uptime_sec version
"""
SAMPLE = re.compile(r'([a-z_0-9]+)(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? (\d+(\.\d+)?)')


def test_every_line_is_a_sample_of_a_type_given_once() -> None:
    types: dict[str, str] = {}
    seen: set[str] = set()
    for line in metrics.render({"accepts": 3}, {"refused": 1}, {}, started=5.5, expires=7.0).splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types and kind in ("counter", "gauge")
            types[name] = kind
            continue
        found = SAMPLE.fullmatch(line)
        assert found and found[1] == list(types)[-1], line
        assert line.rpartition(" ")[0] not in seen
        seen.add(line.rpartition(" ")[0])
    assert set(DERPERS.split()) <= types.keys()
    assert "meshnode_derp_certificate_expiry_timestamp_seconds" in types


def test_the_process_tells_of_itself() -> None:
    page = metrics.render({}, {}, {}, started=5.5)
    value = {line.split()[0]: float(line.split()[1]) for line in page.splitlines() if not line.startswith("#")}
    assert value["process_start_unix_time"] == 6 and value["uptime_sec"] > 1e9
    assert value["process_resident_memory_bytes"] > 1e6 and value["process_open_fds"] >= 3
    assert "meshnode_derp_certificate_expiry_timestamp_seconds" not in value
