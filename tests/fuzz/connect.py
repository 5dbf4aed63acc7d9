"""Fuzz target: a proxy's answer to CONNECT, cut at every place the input says, and a byte at a time."""

from __future__ import annotations

from meshnode.base.errors import RemoteProtocolError
from meshnode.base.proxy import Proxy
from meshnode.wire.connect import Tunnel
from tests.fuzz.driver import run

PROXY = Proxy.parse("http://me:secret@proxy:3128", "HTTPS_PROXY")


def target(data: bytes) -> None:
    """Whole and byte by byte agree on the answer, on its words, and on where the target's bytes begin."""
    if not data:
        return
    whole = _outcome([data])
    single = _outcome([data[at : at + 1] for at in range(len(data))])
    assert whole == single, (whole, single)


def _outcome(parts: list[bytes]) -> tuple[str, bytes]:
    tunnel = Tunnel(PROXY, "relay.example", 443)
    tunnel.request()
    for at, part in enumerate(parts):
        try:
            answer = tunnel.receive(part)
        except RemoteProtocolError:
            return "refused", b""
        if answer is not None:
            problem = tunnel.explain(answer)
            assert "secret" not in problem and problem.isprintable() and len(problem) < 300
            return f"{answer.status} {problem}", b"" if problem else answer.rest + b"".join(parts[at + 1 :])
    return "waiting", b""


SEEDS = [
    b"HTTP/1.0 200 Connection established\r\nProxy-agent: t\r\n\r\n\x01rest",
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\nContent-Length: 0\n\n",
]

if __name__ == "__main__":
    run("connect", target, SEEDS)
