"""/bootstrap-dns: what is told, and what a failed look-up changes."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from meshnode.relay import bootstrap
from meshnode.relay.bootstrap import BootstrapDns


def test_addresses_are_looked_up_again_and_a_failure_keeps_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH_S", 0.01)
    monkeypatch.setattr(bootstrap, "RETRY_S", 0.01)
    answers: dict[str, list[str]] = {"hs.example": ["192.0.2.1", "192.0.2.1", "2001:db8::1"], "other.example": []}
    rounds = 0

    async def look_up(name: str, port: None, **about: Any) -> list[Any]:
        nonlocal rounds
        rounds += 1
        if not answers[name]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answers[name]]

    async def after(count: int) -> None:
        async with asyncio.timeout(10):
            goal = rounds + count
            while rounds < goal:
                await asyncio.sleep(0.005)

    async def scenario() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        dns = BootstrapDns(["hs.example", "other.example"])
        assert dns.page("") == b"{}"
        keeping = asyncio.create_task(dns.keep())
        await after(4)
        assert json.loads(dns.page("")) == {"hs.example": ["192.0.2.1", "2001:db8::1"]}
        answers["other.example"] = ["192.0.2.2"]
        await after(4)
        answers["hs.example"] = []
        await after(4)
        assert json.loads(dns.page("q=HS.example.")) == {"hs.example": ["192.0.2.1", "2001:db8::1"]}
        assert list(json.loads(dns.page("q=unknown.example"))) == ["hs.example", "other.example"]
        assert json.loads(dns.page("q=other.example&x")) == {"other.example": ["192.0.2.2"]}
        keeping.cancel()

    asyncio.run(scenario())
