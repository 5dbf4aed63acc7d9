"""Every limit on remote input, each with its reason. Bytes unless the name says otherwise."""

from typing import Final

NOISE_FRAME_MAX: Final = 4096
"""Control transport record, header included; receivers must reject longer (control.md 2.6)."""

EARLY_PAYLOAD_MAX: Final = 64 * 1024
"""EarlyNoise JSON; real ones are 90 bytes (control.md 2.7)."""

HTTP_HEAD_MAX: Final = 16 * 1024
"""One request or response head anywhere we read one."""

CONTROL_REPLY_MAX: Final = 1 << 20
"""A register reply, or any other non-streaming control answer (control.md 3.2)."""

KEY_REPLY_MAX: Final = 64 * 1024
"""The answer of /key (control.md 2.2)."""

MAP_FRAME_MAX: Final = 16 << 20
"""One map response on the wire (control.md 4.3)."""

MAP_INFLATED_MAX: Final = 64 << 20
"""One map response after zstd: a bomb stops here (control.md 4.3)."""

PEERS_MAX: Final = 20_000
"""Peers of one netmap; twice the largest tailnet anyone reported."""

DERP_PACKET_MAX: Final = 65_536
"""Packet inside a relay frame, key not counted (paths.md 1.1)."""

DERP_FRAME_MAX: Final = 1 << 20
"""Largest relay frame a client accepts; unknown types are skipped up to here (paths.md 1.1)."""

DERP_CLIENT_INFO_MAX: Final = 256 * 1024
"""Largest ClientInfo a relay accepts (paths.md 1.1)."""

RELAY_QUEUE_BYTES: Final = 256 * 1024
"""Data waiting for one relay connection or client; beyond, the oldest goes (paths.md 2.2)."""

RELAY_REGIONS_MAX: Final = 32
"""Concurrent relay connections of a node (paths.md 2.3)."""

RELAY_MAP_MAX: Final = 1 << 20
"""A relay map that a person names, a file or at a URL; the public one is 60 KB."""

RELAY_MAP_YAML_MAX: Final = 128 * 1024
"""The same as YAML, whose reader takes a second for it; a person's own has a few regions."""

RELAY_MAP_REGIONS_MAX: Final = 256
RELAY_MAP_NODES_MAX: Final = 16
"""Of such a map, and of a region in it."""

CANDIDATES_MAX: Final = 64
"""Endpoints remembered for a peer (paths.md 6.7)."""

CALL_ENTRIES_MAX: Final = 32
"""Endpoints taken from one CallMeMaybe (paths.md 6.7)."""

OWN_ENDPOINTS_MAX: Final = 24
"""Endpoints we tell others about (paths.md 4.6)."""

EVENTS_QUEUE_MAX: Final = 1024
"""Events waiting for one reader of node.events(); beyond, the oldest goes and is counted."""

EXEC_BODY_MAX: Final = 1 << 20
"""Request body of the capability server."""

EXEC_OUTPUT_MAX: Final = 1 << 20
"""Captured output of one capability run; the rest is cut and said to be."""

LOCAL_BODY_MAX: Final = 64 * 1024
"""Request body on the node's local socket."""

DATAGRAM_QUEUE_MAX: Final = 4096
"""UDP datagrams waiting for one reader; a number, since empty ones cost as much as small ones."""

DATAGRAM_QUEUE_BYTES: Final = 1 << 20
"""Their payload together; beyond either, the oldest goes and is counted."""

WGCONF_MAX: Final = 8 << 20
"""A WireGuard configuration file; the kernel's largest test has 130 560 allowed IPs, 3 MB."""

WGCONF_PEERS_MAX: Final = 20_000
"""Peers of one; as PEERS_MAX."""

WGCONF_WARNINGS_MAX: Final = 100
"""Warnings told of one file; the rest is only counted."""

UPNP_BODY_MAX: Final = 64 * 1024
"""A description or an answer of a UPnP gateway; real ones have some kilobytes (paths.md 5.3)."""
