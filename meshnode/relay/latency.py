"""How far a region is by HTTPS: the time from a request to its answer on a connection that already stands.

For a network where no UDP passes. The connection is dialled, and its certificate checked, as for frames; only the
request itself is timed.
Source: docs/protocol/paths.md 4.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from meshnode.base.errors import RelayError
from meshnode.netmap.model import RelayRegion
from meshnode.relay.dial import connect_node
from meshnode.relay.options import DialOptions
from meshnode.relay.trust import check_certificate
from meshnode.wire.http1 import ClientHttp

PATH: Final = "/derp/latency-check"
REPLY_MAX: Final = 4096
READ_SIZE: Final = 4096


async def measure_https(region: RelayRegion, options: DialOptions, now: Callable[[], float]) -> float:
    """Seconds of one round trip to the region's first relay. OSError, TimeoutError, RelayError, ProtocolError.

    The caller bounds the wait.
    """
    node = next((n for n in region.nodes if not n.stun_only), None)
    if node is None:
        raise RelayError(f"relay region {region.code or region.id} has no node that relays")
    sock = await connect_node(node, options)
    if options.plain:
        reader, writer = await asyncio.open_connection(sock=sock)
    else:
        context = options.context_for(node)
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=node.host)
    try:
        if not options.plain:
            check_certificate(node, writer.get_extra_info("ssl_object"), allow_insecure=options.allow_insecure)
        http = ClientHttp(node.host, body_limit=REPLY_MAX)
        asked_at = now()
        writer.write(http.request("GET", PATH, [("User-Agent", "meshnode")]))
        first = await reader.read(READ_SIZE)
        took = now() - asked_at
        response = http.receive(first)
        while response is None:
            more = await reader.read(READ_SIZE)
            response = http.receive(more)
            if not more and response is None:
                raise RelayError("the relay closed the connection before it answered")
        if response.status > 299:
            raise RelayError(f"HTTP status {response.status} to a latency check")
        return took
    finally:
        writer.transport.abort()
