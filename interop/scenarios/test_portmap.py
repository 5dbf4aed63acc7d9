"""Ports mapped by Debian's miniupnpd: each protocol alone and all together, from the first request to the last."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interop.bed import make_bed
from interop.lab import Lab, until
from interop.peers.meshnode import Meshnode
from interop.process import Process
from interop.router import Router

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def routed(peers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with Lab(tmp_path_factory.mktemp("portmap")) as lab:
        yield Router(lab, "home")


def start_mapper(router: Router, setting: str) -> Process:
    argv = [sys.executable, "-m", "interop.mapped_port", setting]
    return router.inside.start(f"mapper-{setting}", argv, PYTHONPATH=f"{ROOT}")


def said(process: Process, name: str) -> list[Any]:
    """Every value a mapper printed under this name."""
    lines = [json.loads(line) for line in process.out().splitlines() if line.endswith("}")]
    return [line[name] for line in lines if name in line]


def endpoint(process: Process, count: int = 1, timeout_s: float = 15.0) -> str:
    """The endpoint told as the count-th."""
    told = process.wait_until(lambda: said(process, "endpoint")[count - 1 :], timeout_s, f"{count} endpoints told")
    return str(told[0])


def knock(router: Router, where: str, text: str) -> None:
    """Send from outside."""
    host, _, port = where.rpartition(":")
    code = "import socket,sys; socket.socket(2, 2).sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))"
    router.host.lab.hub.run(sys.executable, "-c", code, host, port, text)


@pytest.mark.parametrize("setting", ["pmp", "pcp", "upnp", "on"])
def test_a_port_is_mapped_used_renewed_and_given_back(routed: Router, setting: str) -> None:
    """With leases of six seconds a renewal is due after five; UPnP here grants what it is asked for."""
    routed.start_upnpd(pmp=setting != "upnp", upnp=setting in ("upnp", "on"), lifetime=6)
    mapper = start_mapper(routed, setting)
    try:
        where = endpoint(mapper)
        assert where.startswith(f"{routed.public}:")
        knock(routed, where, "from outside")
        mapper.wait_until(lambda: "from outside" in said(mapper, "got"), 5.0, "a packet from outside arrives")
        if setting == "pmp":
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 7.0, 30.0, "longer than one lease")
            knock(routed, where, "still there")
            mapper.wait_until(lambda: "still there" in said(mapper, "got"), 5.0, "the lease was renewed")
            assert said(mapper, "endpoint") == [where]
        routed.wait_mapped(1)
        assert mapper.stop() == 0
        routed.wait_mapped(0)
    finally:
        mapper.kill()
        routed.stop_upnpd()


def test_a_restarted_router_maps_again(routed: Router) -> None:
    """It announces that it is back; whatever it forgot is asked for again."""
    routed.start_upnpd()
    mapper = start_mapper(routed, "pcp")
    try:
        where = endpoint(mapper)
        routed.stop_upnpd()
        assert routed.mappings() == []
        routed.start_upnpd()
        routed.wait_mapped(1, 20.0)
        assert said(mapper, "endpoint")[-1] == where
        knock(routed, where, "after the restart")
        mapper.wait_until(lambda: "after the restart" in said(mapper, "got"), 5.0, "a packet from outside arrives")
        assert mapper.stop() == 0
        routed.wait_mapped(0)
    finally:
        mapper.kill()
        routed.stop_upnpd()


def test_a_router_without_any_of_it_is_only_asked(routed: Router) -> None:
    mapper = start_mapper(routed, "on")
    nobody = {"upnp": False, "pmp": False, "pcp": False}
    mapper.wait_until(lambda: json.dumps(nobody) in mapper.out(), 10.0, "absence is noticed")
    assert said(mapper, "endpoint") == []
    assert mapper.stop() == 0


def test_two_nodes_behind_symmetric_nats_are_direct_when_one_router_maps(
    peers: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Lab(tmp_path_factory.mktemp("mapped-nodes")) as lab:
        bed = make_bed(lab)
        mapping, plain = Router(lab, "mapping"), Router(lab, "plain")
        mapping.start_upnpd()
        nodes = []
        for router, name in ((mapping, "mapping"), (plain, "plain")):
            config = lab.folder / f"{name}.toml"
            config.write_text('[disco]\nportmap = "on"\n')
            url, key = bed.headscale.url, bed.headscale.key()
            node = Meshnode(router.inside, name, url, key=key, extra=["-c", str(config)])
            nodes.append(node.start())
        nodes[0].wait_for_peer("plain")
        nodes[1].wait_for_peer("mapping")
        assert mapping.public in nodes[1].wait_until_direct("mapping")
        nodes[0].wait_until_direct("plain")
        assert len(mapping.mappings()) == 1
        nodes[0].stop()
        assert mapping.mappings() == []
