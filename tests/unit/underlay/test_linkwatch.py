"""The watch where the kernel sends no notices, and its ticks; with the kernel's it is tested in namespaces."""

from __future__ import annotations

import asyncio

import pytest

from meshnode.base.addr import parse_ip
from meshnode.run.clock import Clock
from meshnode.underlay import interfaces, linkwatch
from meshnode.underlay.linkwatch import LinkWatch


def refused() -> None:
    raise PermissionError(1, "Operation not permitted")


def test_where_netlink_is_refused_the_ways_out_are_known_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_list() -> None:
        raise PermissionError(1, "Operation not permitted")

    whole = interfaces.read_network()
    monkeypatch.setattr(interfaces, "_read_addresses", no_list)
    found = interfaces.read_network()
    assert not found.is_complete and found.outward == whole.outward and found.ips
    assert found.ips <= {ip for ip in whole.outward if ip} | {parse_ip("127.0.0.1")}


def test_where_notices_are_refused_it_looks_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkwatch, "_subscribe", refused)
    monkeypatch.setattr(linkwatch, "TICK_S", 0.02)
    monkeypatch.setattr(linkwatch, "POLL_S", 0.05)

    async def main() -> None:
        looked = asyncio.Event()
        ticks: list[float] = []
        watch = LinkWatch(Clock(), on_change=looked.set, on_tick=ticks.append)
        watch.start()
        assert not watch.is_watching
        async with asyncio.timeout(10):
            await looked.wait()
        watch.close()
        assert ticks == sorted(ticks) and len(ticks) >= 1

    asyncio.run(main())


def test_notes_of_others_are_joined_to_one_look() -> None:
    async def main() -> None:
        looked = asyncio.Event()
        watch = LinkWatch(Clock(), on_change=looked.set, on_tick=lambda _: None)
        for _ in range(1000):
            watch.note()
        async with asyncio.timeout(10):
            await looked.wait()
        watch.close()
        watch.close()
        assert watch.counters["link_looks"] == 1

    asyncio.run(main())
