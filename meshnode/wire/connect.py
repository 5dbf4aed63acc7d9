"""HTTP CONNECT, the client's half: what is asked of a proxy, and its answer in words.

A Tunnel is one request; its answer ends at a byte, and what follows belongs to whoever is behind the proxy.
User name and password are shown to the proxy and to nobody else.
Source: RFC 9110 9.3.6 and 11.7, RFC 7617; docs/protocol/paths.md 2.1.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from meshnode.base.errors import RemoteProtocolError
from meshnode.base.proxy import Proxy, authority
from meshnode.wire.http1 import ClientHttp, Response

VERSION: Final = b"HTTP/1."
"""What an answer begins with."""


class Tunnel:
    """One CONNECT to one target."""

    def __init__(self, proxy: Proxy, host: str, port: int) -> None:
        self._proxy = proxy
        self._target = authority(host, port)
        self._http = ClientHttp(self._target, body_limit=0, head_only=True)
        self._first = b""

    def request(self) -> bytes:
        """What to send first."""
        headers = [("User-Agent", "meshnode")]
        if self._proxy.credentials is not None:
            pair = ":".join(self._proxy.credentials).encode()
            headers.append(("Proxy-Authorization", "Basic " + b64encode(pair).decode()))
        return self._http.request("CONNECT", self._target, headers)

    def receive(self, data: bytes) -> Response | None:
        """Feed bytes, b'' at the end of the stream; the answer once its head is whole. RemoteProtocolError: no HTTP.

        A status of 200 to 299 means the target is connected, and `rest` is the first it said; the page that comes
        with any other is not read.
        """
        self._first += data[: len(VERSION) - len(self._first)]
        if not VERSION.startswith(self._first):
            raise RemoteProtocolError("not HTTP")  # a banner may never end, and a wait would tell nobody
        return self._http.receive(data)

    def explain(self, answer: Response) -> str:
        """Why the tunnel does not stand, as a sentence; '' if it does."""
        if 200 <= answer.status <= 299:
            return ""
        who, to = f"the proxy {self._proxy}", self._target
        reason = "".join(c for c in answer.reason[:60] if c.isprintable())
        said = f"{answer.status} {reason}".strip()
        if self.wants_password(answer):
            return f"{who} {self._explain_password(answer)}"
        if answer.status in (403, 405):
            return f"{who} does not allow connections to {to} ({said}); many allow port 443 only"
        if answer.status in (500, 502, 503, 504):
            return f"{who} cannot reach {to} ({said})"
        return f"{who} would not connect to {to}: it answered {said}"

    def wants_password(self, answer: Response) -> bool:
        """Whether it refuses for want of a password, or of another one."""
        return answer.status in (401, 407)  # tinyproxy answers 401 to a wrong one

    def _explain_password(self, answer: Response) -> str:
        challenge = answer.headers.get("proxy-authenticate", "")
        if challenge and "basic" not in challenge.lower():
            scheme = "".join(c for c in challenge.split()[0][:20] if c.isalnum())
            return f"wants {scheme or 'another'} authentication; meshnode speaks Basic only ({answer.status})"
        source = self._proxy.source
        if self._proxy.credentials is not None:
            return f"does not take the user name and password of {source} ({answer.status})"
        return f"wants a user name and password ({answer.status}): set them in {source}, as http://USER:PASSWORD@{self._proxy}"
