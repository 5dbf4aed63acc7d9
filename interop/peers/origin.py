"""A plain HTTP file server for a host of the lab: what stands behind a stock node.

Run as a program: `python -m interop.peers.origin DIRECTORY PORT…`. Listens on every address of both
families, a thread a connection, a backlog deep enough for 200 arrivals at once.
"""

from __future__ import annotations

import functools
import http.server
import socket
import sys
import threading
from pathlib import Path

from interop.lab import Host, Process

ROOT = Path(__file__).resolve().parents[2]


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 512
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not news."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the lab's logs are for the programs under test."""

    def copyfile(self, source: object, outputfile: object) -> None:
        self.wfile.flush()
        self.connection.sendfile(source)


def start_origin(host: Host, directory: Path, *ports: int) -> Process:
    """Serve `directory` on these ports of `host`; returns when all accept."""
    argv = [sys.executable, "-m", "interop.peers.origin", str(directory), *map(str, ports)]
    process = host.start(f"origin-{ports[0]}", argv, PYTHONPATH=str(ROOT))
    process.wait_until(lambda: "listening" in process.out(), 10.0, "the origin server listens")
    return process


def main(argv: list[str]) -> None:
    handler = functools.partial(_Handler, directory=argv[0])
    servers = [_Server(("::", int(port)), handler) for port in argv[1:]]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    print("listening", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
