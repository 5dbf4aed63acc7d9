"""One HTTP/1.1 exchange on the local socket: a bounded request, one answer, the end.

Local callers are commands, not browsers: a request with Origin or Referer gets 403. Formats are
wire/http1's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from meshnode.base import bounds
from meshnode.base.errors import RemoteProtocolError
from meshnode.wire.http1 import ServerHttp

REQUEST_TIMEOUT_S: Final = 5.0
"""A local caller that takes longer to say what it wants is stuck."""
CHUNK: Final = 65536
DIAL_PROTOCOL: Final = "meshnode-dial"


@dataclass(frozen=True, slots=True)
class Question:
    """A complete request."""

    method: str
    path: str
    query: Mapping[str, str]
    upgrade: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; `value` becomes its JSON body."""

    status: int
    value: Any = field(default_factory=dict)


class Malformed(Exception):
    """The request cannot be served; the answer says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.answer = Answer(status, {"error": reason})


class Exchange:
    """One request and its answer on a stream pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._http = ServerHttp(body_limit=bounds.LOCAL_BODY_MAX)

    async def read_question(self) -> Question | None:
        """The request; None if the caller went away. Malformed when it breaks a rule."""
        try:
            while True:
                data = await self.reader.read(CHUNK)
                if (request := self._http.receive(data)) is not None:
                    break
                if not data:
                    return None
        except RemoteProtocolError as error:
            raise Malformed(400, str(error)) from None
        if "origin" in request.headers or "referer" in request.headers:
            raise Malformed(403, "this door is not for browsers")
        try:
            query = dict(parse_qsl(request.query, max_num_fields=20))
        except ValueError:
            raise Malformed(400, "too many parameters") from None
        return Question(request.method, request.path, query, request.headers.get("upgrade", "").lower())

    async def send(self, answer: Answer) -> None:
        """Write the whole answer. The caller closes."""
        body = json.dumps(answer.value, ensure_ascii=False).encode() + b"\n"
        fields = [("Content-Type", "application/json"), ("Connection", "close")]
        self.writer.write(self._http.respond(answer.status, body, fields))
        await self.writer.drain()

    async def switch(self) -> bytes:
        """Answer 101; returns what the caller already sent after its request."""
        data, early = self._http.switch(DIAL_PROTOCOL)
        self.writer.write(data)
        await self.writer.drain()
        return early
