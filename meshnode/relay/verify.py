"""VerifyUrl: ask an HTTP server who may use our relay, as derper does; Headscale answers at /verify.

POST {"NodePublic": "nodekey:…", "Source": "<ip>"}; 200 with {"Allow": true} is a yes, {"Allow": false} a no,
everything else is no answer. One connection is kept and used by turns; each question is bounded by its caller.
Source: docs/protocol/paths.md 1.9.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from typing import Final
from urllib.parse import SplitResult, urlsplit

from meshnode.base.errors import ConfigError, ProtocolError, RelayError
from meshnode.base.keys import NodePublic
from meshnode.relay.turns import Turns
from meshnode.wire.http1 import ClientHttp, Response

BODY_MAX: Final = 4096
ASKING_MAX: Final = 64
"""Questions at once: beyond, they wait for a connection, the addresses they are about by turns."""


class VerifyUrl:
    """An Admit over HTTP."""

    def __init__(self, url: str, *, ca_file: str = "") -> None:
        """ConfigError if the URL is none, or the CA file cannot be used."""
        parts = _split(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._header = parts.netloc
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
            if ca_file:
                try:
                    self._tls.load_verify_locations(cafile=ca_file)
                except (OSError, ssl.SSLError) as error:
                    raise ConfigError(f"ca_file: {ca_file} cannot be used: {error}") from None
        self._idle: list[_Connection] = []
        self._room = Turns(ASKING_MAX)

    async def __call__(self, key: NodePublic, source: str) -> bool:
        """One question. RelayError or OSError if there is no answer to it."""
        body = json.dumps({"NodePublic": str(key), "Source": source}).encode()
        async with self._room.place(source):
            response = await self._post(body)
        if response.status != 200:
            path = self._target.partition("?")[0]  # what follows may be a secret
            mend = "; Headscale's path is /verify" if response.status in (404, 405) else ""
            raise RelayError(f"{self._header}{path} answered with HTTP status {response.status}{mend}")
        try:
            answer = json.loads(response.body)
        except ValueError:
            raise RelayError("the verifier's answer is not JSON") from None
        allowed = answer.get("Allow") if isinstance(answer, dict) else None
        if not isinstance(allowed, bool):
            raise RelayError("the verifier's answer does not say Allow")
        return allowed

    async def aclose(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().close()

    async def _post(self, body: bytes) -> Response:
        """A kept connection may have been closed by the other side meanwhile: then once more on a new one."""
        while self._idle:
            kept = self._idle.pop()
            with suppress(OSError, ProtocolError):
                return await self._exchange(kept, body)
        return await self._exchange(await self._connect(), body)

    async def _connect(self) -> _Connection:
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
            raise RelayError(f"{self._host}:{self._port}: {reason}") from None
        return _Connection(reader, writer, ClientHttp(self._header, body_limit=BODY_MAX))

    async def _exchange(self, connection: _Connection, body: bytes) -> Response:
        try:
            response = await connection.post(self._target, body)
        except BaseException:
            connection.close()
            raise
        if response.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return response


def _split(url: str) -> SplitResult:
    """ConfigError, which repeats no password."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        parts, fine = SplitResult("", "", "", "", ""), False
    if "@" in (parts.netloc or url):
        raise ConfigError("verify_url: holds a user name or a password, and none is sent; leave it out")
    if not fine:
        raise ConfigError(f"verify_url: {url!r} is no URL; try https://headscale.example/verify")
    return parts


class _Connection:
    """One HTTP connection to the verifier."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, http: ClientHttp) -> None:
        self._reader = reader
        self._writer = writer
        self._http = http

    async def post(self, target: str, body: bytes) -> Response:
        headers = [("Content-Type", "application/json"), ("User-Agent", "meshnode")]
        self._writer.write(self._http.request("POST", target, headers, body))
        while True:
            data = await self._reader.read(65536)
            response = self._http.receive(data)
            if response is not None:
                return response
            if not data:
                raise RelayError("the verifier closed the connection")

    def close(self) -> None:
        self._writer.transport.abort()
