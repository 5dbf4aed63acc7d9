"""What a node's `status --json` shows, read from its socket: ours and tailscaled's have the same shape."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

import meshnode
from interop.peers.meshnode import Meshnode
from interop.peers.tailscaled import Tailscaled
from meshnode.local.paths import socket_path

SEARCH = f"{Path(meshnode.__file__).parents[1]}:{Path(__file__).resolve().parents[2]}"
"""PYTHONPATH of programs that the lab starts: the package under test first."""
TIMEOUT_S = 10.0


class _Local(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("local-tailscaled.sock", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def read(program: Meshnode | Tailscaled) -> dict[str, Any]:
    """Its status object."""
    if isinstance(program, Tailscaled):
        return _get(program.socket, "/localapi/v0/status")
    return _get(str(socket_path(program.state_dir, os.environ)), "/status")


def _get(path: str, what: str) -> dict[str, Any]:
    connection = _Local(path)
    try:
        connection.request("GET", what)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"{path}{what} answered {answer.status}: {text[:200]!r}")
    return dict(json.loads(text))


def peer(found: dict[str, Any], name: str) -> dict[str, Any] | None:
    """This peer's entry, or None while it is unknown."""
    peers = (found.get("Peer") or {}).values()
    return next((p for p in peers if p["DNSName"].split(".")[0] == name), None)
