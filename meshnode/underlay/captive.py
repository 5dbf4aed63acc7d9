"""Asks a few servers in plain HTTP whether a captive portal answers in their place; follows nothing, trusts nothing.

Source: docs/protocol/paths.md 4.4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from meshnode.base.errors import RemoteProtocolError
from meshnode.core.captive import CHALLENGE_HEADER, PATH, TARGETS_MAX, TOTAL_S, Target, judge
from meshnode.run.scope import Scope
from meshnode.wire.http1 import ClientHttp, Response

READ_SIZE = 4096


async def ask_all(targets: Sequence[Target], timeout_s: float = TOTAL_S) -> list[tuple[Target, bool | None]]:
    """A verdict for each, all at once; None for what does not answer in time."""
    async with Scope("captive") as scope:
        tasks = [(target, scope.spawn(_ask(target, timeout_s), target.host)) for target in targets[:TARGETS_MAX]]
        return [(target, await task) for target, task in tasks]


async def _ask(target: Target, timeout_s: float) -> bool | None:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(target.address, target.port)
            try:
                answer = await _exchange(target, reader, writer)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, RemoteProtocolError):
        return None
    return judge(target, answer.status, answer.headers)


async def _exchange(target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
    """The head of the answer; a portal's page is not read."""
    http = ClientHttp(target.authority, body_limit=0, head_only=True)
    writer.write(http.request("GET", PATH, [("User-Agent", "meshnode"), (CHALLENGE_HEADER, target.challenge)]))
    answer = None
    while answer is None:
        answer = http.receive(await reader.read(READ_SIZE))
    return answer
