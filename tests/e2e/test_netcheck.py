"""Where a node finds itself: regions measured, the home among them, and what control is told, over real sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from meshnode.base.addr import Endpoint, RegionId, parse_ip
from meshnode.control.tailnet import Change
from meshnode.core.net_schedule import Cause
from meshnode.core.report import Nat
from meshnode.netmap.model import RelayNode, RelayRegion
from meshnode.node.node import Node
from meshnode.relay.latency import measure_https
from meshnode.relay.options import DialOptions
from meshnode.run.clock import Clock
from meshnode.underlay.echo import NotAllowed, measure_echo
from meshnode.underlay.targets import Targets, has_route
from tests.e2e.county import County, make_county
from tests.e2e.test_commands import up
from tests.e2e.town import LOOPS, run, until

loops = pytest.mark.parametrize("loop", LOOPS)


def home(node: Node) -> int:
    return int(node.status().home.region)


async def until_home(county: County, node: Node, name: str, number: int, bound_s: float = 10.0) -> None:
    """Wait until the node lives there, and control knows it."""

    def is_known() -> bool:
        at_home = node.status().home.is_connected and home(node) == number
        return at_home and county.member(name).home == number

    await until(is_known, f"the home is {number}", bound_s)


@loops
def test_ready_does_not_wait_for_measures_and_the_nearest_becomes_home(loop: str) -> None:
    async def work() -> None:
        async with make_county(400, 5) as county:
            node = await county.join("one")
            await until_home(county, node, "one", 902)
            report = node.network().report
            assert report.udp and report.ipv4 and not report.ipv6 and report.home == 902
            latencies = {int(r): reading.v4_s or 9.0 for r, reading in report.regions.items()}
            assert 0.398 <= latencies[901] < 3 and 0.003 <= latencies[902] < latencies[901]
            assert "r902 answers in" in node.network().home_reason and "r901 in" in node.network().home_reason
            # The old home stays for peers that have not heard of the move.
            pool = node._running().pool
            pool._sweep()
            assert [(s.region, s.state.value) for s in pool.status()] == [(902, "connected"), (901, "connected")]

    run(loop, work)


def test_a_close_home_is_kept_and_reports_cost_control_nothing() -> None:
    async def work() -> None:
        async with make_county(100, 98) as county:
            node, _ = await county.pair()
            assert home(node) == 901
            control = node._running().control
            await node.netcheck()
            await until(lambda: control.says.acknowledged == control.says.generation, "all is told")
            told = control.counters["lite_updates"]
            for number in range(6):
                county.districts[0].stun.delay_s = 0.100 + 0.002 * (number % 3)
                report = await node.netcheck()
                assert report.is_full and report.home == 901 and sorted(report.regions) == [901, 902]
            assert control.says.acknowledged == control.says.generation, "nothing to tell"
            assert control.counters["lite_updates"] == told
            info = county.member("one").hostinfo["NetInfo"]
            assert info["PreferredDERP"] == 901 and info["WorkingUDP"] is True
            assert info["MappingVariesByDestIP"] is False and set(info["DERPLatency"]) == {"901-v4", "902-v4"}

    run("asyncio", work)


def test_the_home_is_what_we_measured_whatever_control_echoes() -> None:
    async def work() -> None:
        async with make_county(400, 0) as county:
            node = await county.join("one")
            await until_home(county, node, "one", 902)
            county.member("one").home = 901
            county.control.tailnet._tell(Change(county.member("one").id))
            await until(lambda: node.netmap and node.netmap.self_node.home == 901, "control's echo came")
            await asyncio.gather(node.netcheck(), node.netcheck())
            assert home(node) == 902 and node.status().home.is_connected

    run("asyncio", work)


def test_a_home_whose_tcp_died_is_left_although_its_stun_answers() -> None:
    async def work() -> None:
        async with make_county(0, 400) as county:
            node, other = await county.pair()
            assert home(node) == 901
            started = asyncio.get_running_loop().time()
            await county.districts[0].relay.aclose()
            await until_home(county, node, "one", 902, 20.0)
            took = asyncio.get_running_loop().time() - started
            assert took < 15, took  # 30 is promised
            before = county.districts[0].stun.counters["heard"]
            report = await node.netcheck()
            assert county.districts[0].stun.counters["heard"] > before and 901 in report.regions
            assert home(node) == 902, "STUN alone brings nobody back"
            await until_home(county, other, "other", 902, 20.0)
            await node.ping("other")

    run("asyncio", work, bound_s=60)


def test_a_home_by_choice() -> None:
    async def work() -> None:
        async with make_county(0, 90) as county:
            node = await county.join("one", home_region=902)
            await until_home(county, node, "one", 902)
            report = await node.netcheck()
            assert report.home == home(node) == 902 and report.home_reason == "the configuration says so"

    run("asyncio", work)


def test_new_sockets_are_seen_from_outside_anew() -> None:
    async def work() -> None:
        async with make_county(0, 0) as county:
            node = await county.join("one")
            house = node._running()
            await until(lambda: house.reach.report.at, "the first report")
            house.reach.netcheck._schedule._ended_at -= 5
            house.engine.rebind()
            await until(lambda: house.reach.netcheck.counts["netchecks"] == 2, "another look")
            await until(
                lambda: house.reach.report.global_v4 == Endpoint(parse_ip("127.0.0.1"), house.engine.port4), "ours"
            )
            known = {e.port for e in node.status().endpoints}
            assert known == {house.engine.port4}

    run("asyncio", work)


def test_without_udp_regions_are_measured_by_https() -> None:
    async def work() -> None:
        async with make_county(None, None) as county:
            node = await county.join("one")
            report = await node.netcheck()
            assert not report.udp and report.stun_sent and report.mapping_varies is None
            assert sorted(report.regions) == [901, 902] and report.duration_s < 5.5
            assert all(reading.https_s for reading in report.regions.values())
            view = node.network()
            assert (view.nat, view.nat_reason) == (Nat.UNKNOWN, "no STUN server answers by UDP")
            assert home(node) == 901 and county.member("one").hostinfo["NetInfo"]["WorkingUDP"] is False
            # The network heals; that the home's connection comes back is a cause to look.
            for district in county.districts:
                district.stun.delay_s = 0.0
            link = node._running().pool._clients[RegionId(901)]._link
            assert link is not None
            link.abort("cut by the test")
            await until(lambda: node.network().report.udp, "UDP is back")

    run("asyncio", work)


def test_no_check_is_made_without_cause_and_a_stale_list_is_one() -> None:
    async def work() -> None:
        async with make_county(0, 0) as county:
            node, _ = await county.pair()
            reach = node._running().reach
            await until(lambda: reach.report.at, "the first report")
            counts = reach.netcheck.counts
            made = counts["netchecks"]
            discovery = node._running().discovery
            await node.ping("other")
            assert counts["netchecks"] == made, "the list is fresh"
            reach.netcheck._schedule._ended_at -= 27
            discovery.restun()
            await until(lambda: counts["netchecks"] == made + 1, "a check is made")
            assert counts["netchecks_full"] < counts["netchecks"]
            reach.netcheck.request(Cause.RELAY)
            reach.netcheck.request(Cause.PORTMAP)
            await until(lambda: counts["netchecks"] == made + 2, "and another")

    run("asyncio", work)


def test_the_command_says_it_in_words_and_in_json(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_county(0, 400) as county:
            key = county.control.add_key()
            settings = {"MESHNODE_PLAIN_RELAYS": "true", "MESHNODE_USE_LOOPBACK": "true"}
            async with up(county, tmp_path, "--auth-key", key, **settings) as node:
                await node.read_ready()
                found = json.loads(await node.say("netcheck", "--json"))
                assert found["UDP"] is True and found["IPv4"] is True and found["MappingVariesByDestIP"] is False
                assert found["PreferredDERP"] == 901 and found["Home"]["Connected"] is True
                assert list(found["RegionLatency"]) == ["901", "902"] and found["RegionLatency"]["902"] >= 398_000_000
                assert [r["RegionCode"] for r in found["Regions"]] == ["r901", "r902"]
                ours = Endpoint.parse(found["GlobalV4"])
                assert found["NAT"] == "none" and found["GlobalV4Counters"] == {str(ours): 2}
                text = await node.say("netcheck")
                for line in ("\t* UDP: true", f"\t* IPv4: yes, {ours}", "\t* Nearest DERP: R901", "\t* PortMapping:"):
                    assert line in text, text
                assert "\t* NAT: none  (no NAT: servers see the address this machine has)" in text
                assert "\t* Home: r901  (nearest: r901 answers in " in text
                rows = [line.split() for line in text.splitlines() if line.startswith("\t\t- ")]
                assert [row[1] for row in rows] == ["r901:", "r902:"] and rows[0][-1] == "home"
                assert await node.end() == 0

    run("asyncio", work, bound_s=60)


# --- the small parts ---


@pytest.mark.parametrize(
    ("fields", "family", "found"),
    [
        ({"ipv4": "192.0.2.1"}, 4, "192.0.2.1:3478"),
        ({"ipv4": "192.0.2.1"}, 6, "[::1]:3478"),
        ({"ipv6": "2001:db8::1", "stun_port": 9}, 6, "[2001:db8::1]:9"),
        ({"ipv4": "none"}, 4, ""),
        ({"stun_port": -1}, 4, ""),
        ({"ipv4": "192.0.2.1", "stun_test_ip": "192.0.2.9"}, 4, "192.0.2.9:3478"),
        ({"stun_test_ip": "192.0.2.9"}, 6, ""),
        ({}, 4, "127.0.0.1:3478"),
    ],
)
def test_where_a_stun_server_is(fields: dict[str, str | int], family: int, found: str) -> None:
    async def work() -> None:
        targets = Targets(asyncio.get_running_loop().time)
        node = RelayNode("1a", RegionId(1), "::1" if family == 6 else "localhost", **fields)  # type: ignore[arg-type]
        for _ in range(2):
            to = await targets.find(node, family)
            assert (str(to) if to is not None else "") == found
        nowhere = RelayNode("1a", RegionId(1), "nowhere.invalid")
        assert await targets.find(nowhere, family) is None

    run("asyncio", work)


def test_a_route_is_looked_for_without_a_packet() -> None:
    assert has_route(Endpoint.parse("127.0.0.1:9"))
    assert not has_route(Endpoint.parse("[2001:db8::9]:9")) or has_route(Endpoint.parse("[2001:db8::1]:9"))


@loops
def test_an_echo_where_the_system_allows_it(loop: str) -> None:
    async def work() -> None:
        try:
            assert 0 < await measure_echo(parse_ip("127.0.0.1"), b"sixteen bytes...", Clock().now) < 1
        except NotAllowed:
            low, high = map(int, Path("/proc/sys/net/ipv4/ping_group_range").read_text().split())
            assert low > high, "the system allows somebody"

    run(loop, work)


@loops
def test_a_latency_check_over_tls(loop: str, certificates: tuple[Path, Path, Path]) -> None:
    from meshnode.base.errors import RelayError
    from meshnode.relay.server import RelayServer

    ca, certificate, key = certificates

    async def work() -> None:
        relay = RelayServer(tls=certificate.read_bytes() + key.read_bytes())
        await relay.start()
        try:
            node = RelayNode("1a", RegionId(1), "127.0.0.1", port=relay.port)
            region = RelayRegion(RegionId(1), "one", "", (node,))
            now = Clock().now
            assert 0 < await measure_https(region, DialOptions(str(ca)), now) < 5
            with pytest.raises(OSError, match="certificate"):
                await measure_https(region, DialOptions(), now)
            stun_only = RelayRegion(RegionId(1), "one", "", (RelayNode("1a", RegionId(1), "x", stun_only=True),))
            with pytest.raises(RelayError, match="no node that relays"):
                await measure_https(stun_only, DialOptions(), now)
        finally:
            await relay.aclose()

    run(loop, work)
