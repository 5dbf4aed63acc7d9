"""`meshnode netcheck` without a node: a map by file and by https, one relay by name, and a report as a node's."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.bounds import RELAY_MAP_MAX
from meshnode.base.errors import CertificateError, ConfigError, ProxyError
from meshnode.core.proxies import OFF, Proxies
from meshnode.core.report import Nat
from meshnode.netmap.relayfile import parse_relay_map
from meshnode.node.relaymap import load_relay_map, relay_map_of
from meshnode.node.survey import Survey
from meshnode.relay.identity import headscale_yaml
from tests.e2e.county import County, make_county
from tests.e2e.test_commands import BOUND_S, clean_environment, start, up
from tests.e2e.town import LOOPS, run, until

loops = pytest.mark.parametrize("loop", LOOPS)
DIRECT = Proxies(OFF)
ALONE_HOST = "127.53.71.19"
"""Of loopback: port 3478 of the usual address may be somebody's."""


def map_of(county: County) -> dict[str, Any]:
    return {"Regions": {str(d.number): d.to_json() for d in county.districts}}


async def netcheck(folder: Path, *words: str) -> tuple[int, str, str]:
    """(exit code, output, errors)."""
    process = await start(["netcheck", *words], clean_environment(folder))
    out, err = await asyncio.wait_for(process.communicate(), BOUND_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@dataclass
class Web:
    """A server of one page."""

    url: str = ""
    answer: bytes = b""
    asked: list[bytes] = field(default_factory=list)
    hangs: bool = False
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        with suppress(asyncio.IncompleteReadError, OSError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self.hangs:
                await reader.read()
            writer.write(self.answer)
        writer.close()

    def say(self, body: bytes, status: str = "200 OK", more: str = "") -> None:
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


@asynccontextmanager
async def make_web(certificates: tuple[Path, Path, Path] | None = None) -> AsyncIterator[Web]:
    web, context = Web(), None
    if certificates is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates[1], certificates[2])
    server = await asyncio.start_server(web.serve, "127.0.0.1", ssl=context)
    web.url = f"http{'s' if context else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/derpmap/default"
    async with server:
        yield web
        await asyncio.gather(*web.serving)
        await until(
            lambda: not any("accept" in repr(t.get_coro()) for t in asyncio.all_tasks()), "TLS it refused is over"
        )


def test_a_file_gives_the_report_that_a_node_gives(tmp_path: Path) -> None:
    async def work() -> None:
        async with make_county(0, 200) as county:
            key = county.control.add_key()
            settings = {"MESHNODE_PLAIN_RELAYS": "true", "MESHNODE_USE_LOOPBACK": "true"}
            file = tmp_path / "map.json"
            file.write_text(json.dumps(map_of(county)))
            async with up(county, tmp_path, "--auth-key", key, **settings) as node:
                await node.read_ready()
                of_node = json.loads(await node.say("netcheck", "--json"))
                table_of_node = await node.say("netcheck")
                assert await node.end() == 0
            code, said, errors = await netcheck(tmp_path, "--derp-map", str(file), "--json")
            assert (code, errors) == (0, "")
            found = json.loads(said)
            assert list(found) == list(of_node)
            for same in ("UDP", "IPv4", "IPv6", "NAT", "NATReason", "MappingVariesByDestIP", "PreferredDERP"):
                assert found[same] == of_node[same], same
            assert found["RegionLatency"]["902"] >= 198_000_000 > found["RegionLatency"]["901"]
            assert [r["RegionCode"] for r in found["Regions"]] == ["r901", "r902"]
            assert found["Home"]["RegionID"] == 901 and found["Home"]["Connected"] is False
            code, table, errors = await netcheck(tmp_path, "--derp-map", str(file))
            assert (code, errors) == (0, "")
            kinds = [line.partition(":")[0] for line in table.splitlines()]
            assert kinds == [line.partition(":")[0] for line in table_of_node.splitlines()]
            assert "\t* Home: r901, not connected  (nearest: r901 answers in " in table

    run("asyncio", work, bound_s=60)


@loops
def test_headscales_yaml_and_regions_without_udp(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with make_county(0) as county:
            file = tmp_path / "derp.yaml"
            file.write_text(headscale_yaml(county.districts[0].to_json()))
            view = await Survey(await load_relay_map(str(file), ca_file="", proxies=DIRECT), proxies=DIRECT).look()
            assert view.report.udp and view.home == 901 and view.nat is Nat.NONE
            assert county.districts[0].stun.counters["heard"] >= 1
            county.districts[0].stun.delay_s = None
            view = await Survey(parse_relay_map(file.read_bytes(), "map"), proxies=DIRECT).look()
            assert not view.report.udp and view.report.stun_sent and view.nat is Nat.UNKNOWN
            assert view.to_json()["Now"] and view.report.duration_s < 6

    run(loop, work)


def test_https_is_measured_where_udp_is_silent(certificates: tuple[Path, Path, Path]) -> None:
    from meshnode.relay.server import RelayServer

    ca, certificate, key = certificates

    async def work() -> None:
        relay = RelayServer(tls=certificate.read_bytes() + key.read_bytes())
        await relay.start()
        try:
            node = {"HostName": "127.0.0.1", "DERPPort": relay.port, "STUNPort": -1}
            relays = parse_relay_map(json.dumps({"Regions": {"5": {"Nodes": [node]}}}).encode(), "map")
            view = await Survey(relays, ca_file=str(ca), proxies=DIRECT).look()
            (region,) = view.to_json()["Regions"]
            assert region["HTTPSMs"] > 0 and view.home == 5 and not view.report.stun_sent
            assert (await Survey(relays, proxies=DIRECT).look()).home == 0, "without our CA it is no relay to trust"
        finally:
            await relay.aclose()

    run("asyncio", work)


def test_one_relay_by_its_name(tmp_path: Path) -> None:
    from meshnode.relay.stun import StunServer

    async def work() -> None:
        server = await StunServer.start(ALONE_HOST, 3478)
        try:
            code, said, errors = await netcheck(tmp_path, "--relay", ALONE_HOST, "--json")
            assert (code, errors) == (0, "")
            found = json.loads(said)
            assert found["UDP"] and found["PreferredDERP"] == 1 and found["Regions"][0]["RegionCode"] == ALONE_HOST
            assert found["MappingVariesByDestIP"] is None and server.counters
        finally:
            server.close()

    run("asyncio", work, bound_s=60)


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("localhost", "localhost", 443),
        ("localhost:8443", "localhost", 8443),
        ("192.0.2.1", "192.0.2.1", 443),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("2001:db8::1", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[2001:db8::1]:99", "2001:db8::1", 99),
    ],
)
def test_how_a_relay_is_named(target: str, host: str, port: int) -> None:
    async def work() -> None:
        (region,) = (await relay_map_of(target, proxies=DIRECT)).regions.values()
        assert (region.nodes[0].host, region.nodes[0].port) == (host, port)

    run("asyncio", work)


@pytest.mark.parametrize("target", ["", "https://relay.lan", "relay.lan:", "relay.lan:0", "relay lan", "a@b", ":443"])
def test_what_names_no_relay(target: str) -> None:
    async def work() -> None:
        with pytest.raises(ConfigError, match="--relay"):
            await relay_map_of(target, proxies=DIRECT)

    run("asyncio", work)


def test_a_relay_whose_name_does_not_resolve_is_said_at_once_unless_a_proxy_would() -> None:
    async def work() -> None:
        with pytest.raises(ConfigError, match="nowhere.invalid does not resolve"):
            await relay_map_of("nowhere.invalid", proxies=DIRECT)
        assert await relay_map_of("nowhere.invalid", proxies=Proxies("http://127.0.0.1:1"))

    run("asyncio", work)


def test_a_map_is_fetched_over_https_that_is_checked(certificates: tuple[Path, Path, Path]) -> None:
    async def work() -> None:
        async with make_county(0) as county, make_web(certificates) as web:
            web.say(json.dumps(map_of(county)).encode())
            relays = await load_relay_map(web.url + "?a=b", ca_file=str(certificates[0]), proxies=DIRECT)
            assert list(relays.regions) == [901]
            assert web.asked[0].startswith(b"GET /derpmap/default?a=b HTTP/1.1\r\n")
            with pytest.raises(CertificateError, match="is not trusted: .*--ca-file"):
                await load_relay_map(web.url, ca_file="", proxies=DIRECT)
            with pytest.raises(ConfigError, match="--ca-file /none cannot be used"):
                await load_relay_map(web.url, ca_file="/none", proxies=DIRECT)

    run("asyncio", work)


def test_what_a_server_may_say_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with make_web() as web:

            async def refused(words: str) -> None:
                with pytest.raises(ConfigError, match=words) as raised:
                    await load_relay_map(web.url, ca_file="", proxies=DIRECT)
                assert str(raised.value).startswith(f"--derp-map {web.url}")

            web.say(b"no", "404 Not Found")
            await refused("the server answers 404 Not Found")
            web.say(b"", "302 Found", "Location: http://portal.example/\r\n")
            await refused("sends us on to 'http://portal.example/'")
            web.say(b"<html>log in</html>")
            await refused("a str where named fields belong")
            web.say(b"{" + b" " * RELAY_MAP_MAX)
            await refused(f"more than {RELAY_MAP_MAX} bytes")
            web.answer = b"SSH-2.0-x\r\n"
            await refused("not HTTP|closed before an answer came")
            web.answer = b""
            await refused("closed before an answer came|not HTTP")
            web.hangs = True
            monkeypatch.setattr("meshnode.node.relaymap.FETCH_S", 0.2)
            await refused("no answer within")
            with pytest.raises(ProxyError, match="cannot reach the proxy"):
                await load_relay_map("https://192.0.2.1/map", ca_file="", proxies=Proxies("http://127.0.0.1:1"))

    run("asyncio", work)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://192.0.2.1/map", "only https is fetched"),
        ("ftp://127.0.0.1/map", "only https is fetched"),
        ("https:///map", "names no host"),
        ("https://user:secret@192.0.2.1/map", "takes no user name"),
        ("https://192.0.2.1:99999/map", "is no URL"),
        ("/nowhere/map.json", "cannot be read: no such file or directory"),
        ("/", "cannot be read: is a directory"),
    ],
)
def test_sources_that_are_none(source: str, words: str) -> None:
    async def work() -> None:
        with pytest.raises(ConfigError, match=words) as raised:
            await load_relay_map(source, ca_file="", proxies=DIRECT)
        assert "secret" not in str(raised.value)

    run("asyncio", work)
