"""The blocking other side of the local socket, for commands.

One request per connection. Errors come back as the exceptions the node raised, so that a command
ends with the same message and exit code as a program that embeds the node.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from meshnode.base import errors
from meshnode.base.errors import MeshError, NoRunningNode

CONNECT_TIMEOUT_S: Final = 3.0
HEAD_MAX: Final = 16 * 1024


class Door:
    """A running node's socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, path: str, *, timeout_s: float = 10.0, **query: str | int | float) -> Any:
        """The JSON value of a GET."""
        return self._ask("GET", path, query, timeout_s)

    def post(self, path: str, *, timeout_s: float = 10.0, **query: str | int | float) -> Any:
        """The JSON value of a POST."""
        return self._ask("POST", path, query, timeout_s)

    def dial(self, host: str, port: int, *, timeout_s: float) -> tuple[socket.socket, bytes]:
        """A raw stream to `host`:`port` of the tailnet, and its first bytes if they came early."""
        sock = self._open(timeout_s + CONNECT_TIMEOUT_S)
        try:
            fields = {"Connection": "upgrade", "Upgrade": "meshnode-dial"}
            query = {"host": host, "port": port, "timeout": timeout_s}
            sock.sendall(_emit_request("POST", "/dial", query, fields))
            status, rest = self._read_head(sock)
            if status != 101:
                raise _as_error(_read_body(sock, rest))
            sock.settimeout(None)
            return sock, rest
        except BaseException:
            sock.close()
            raise

    def _ask(self, method: str, path: str, query: Mapping[str, Any], timeout_s: float) -> Any:
        with self._open(timeout_s) as sock:
            try:
                sock.sendall(_emit_request(method, path, query, {"Connection": "close"}))
                status, rest = self._read_head(sock)
                value = _read_body(sock, rest)
            except TimeoutError:
                raise errors.TimedOut(f"the node at {self.path} did not answer within {timeout_s:g} s") from None
        if status != 200:
            raise _as_error(value)
        return value

    def _open(self, timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            sock.connect(str(self.path))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            where = self.path.parent
            raise NoRunningNode(f"no node runs with its state in {where}; start one: meshnode up") from None
        except OSError as error:
            sock.close()
            raise NoRunningNode(f"cannot reach the node at {self.path}: {error.strerror or error}") from None
        sock.settimeout(timeout_s)
        return sock

    def _read_head(self, sock: socket.socket) -> tuple[int, bytes]:
        raw = b""
        while b"\r\n\r\n" not in raw:
            part = sock.recv(4096)
            if not part or len(raw) > HEAD_MAX:
                raise NoRunningNode(f"the node at {self.path} went away before it answered")
            raw += part
        head, _, rest = raw.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1][:3].isdigit():
            raise NoRunningNode(f"what listens at {self.path} is no meshnode")
        return int(words[1][:3]), rest


def _emit_request(method: str, path: str, query: Mapping[str, Any], fields: Mapping[str, str]) -> bytes:
    target = f"{path}?{urlencode(query)}" if query else path
    lines = [f"{method} {target} HTTP/1.1", "Host: meshnode", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _read_body(sock: socket.socket, first: bytes) -> Any:
    parts = [first]
    while part := sock.recv(65536):
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except ValueError:
        raise NoRunningNode("the node went away in the middle of its answer") from None


def _as_error(value: Any) -> MeshError:
    """The exception the node named; a plain MeshError if this version does not know it."""
    record = value if isinstance(value, dict) else {}
    message = str(record.get("error") or "the node refused without a reason")
    kind = getattr(errors, str(record.get("kind")), None)
    if isinstance(kind, type) and issubclass(kind, MeshError):
        return kind(message)
    return MeshError(message)
