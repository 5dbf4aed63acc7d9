"""The control client against the embedded control server, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import (
    CertificateError,
    ControlError,
    KeyExpired,
    KeyRejected,
    LoginRequired,
    MeshError,
    NotAControlServer,
    VersionRejected,
)
from meshnode.base.keys import DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate
from meshnode.control.client import ControlClient, ControlConfig, Keys, LoginResult, Phase
from meshnode.control.dial import KeyMismatch
from meshnode.control.hostinfo import gather
from meshnode.control.policy import Policy
from meshnode.control.server import ControlServer
from meshnode.netmap import rules
from meshnode.netmap.model import Changes, Netmap
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.run.clock import Clock
from meshnode.run.scope import Scope

BOUND_S = 10.0
RELAYS = {
    "Regions": {"900": {"RegionID": 900, "RegionCode": "t", "Nodes": [{"Name": "900a", "HostName": "127.0.0.1"}]}}
}
"""A relay map with one region."""


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """One scenario in a loop of its own, bounded; under asyncio and under uvloop."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    for make_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(bounded())


def fresh_keys(clock: Clock) -> Keys:
    return Keys(
        MachinePrivate.generate(clock.entropy),
        NodePrivate.generate(clock.entropy),
        DiscoPrivate.generate(clock.entropy).public(),
    )


@dataclass
class Seen:
    """A client under test and everything it reported."""

    client: ControlClient
    netmaps: list[tuple[Netmap, Changes]] = field(default_factory=list)
    logins: list[LoginResult] = field(default_factory=list)
    keys: list[Keys] = field(default_factory=list)
    pins: list[MachinePublic] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def netmap(self) -> Netmap:
        return self.netmaps[-1][0]

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait until something it reported makes `wanted` true; fails if it ends before."""
        assert self.task is not None
        async with asyncio.timeout(BOUND_S):
            while not wanted():
                self.news.clear()
                waiter = asyncio.ensure_future(self.news.wait())
                # Counters change without news: look again now and then.
                await asyncio.wait({waiter, self.task}, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if self.task.done() and not wanted():
                    self.task.result()
                    raise AssertionError("the client ended")

    async def ended(self) -> MeshError | None:
        """The error it ended with."""
        assert self.task is not None
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({self.task})
        error = self.task.exception()
        assert error is None or isinstance(error, MeshError)
        return error

    def peer_names(self) -> set[str]:
        return {peer.label for peer in self.netmap.peers.values()} if self.netmaps else set()


@asynccontextmanager
async def joined(
    config: ControlConfig, name: str = "node", keys: Keys | None = None, **update: Any
) -> AsyncIterator[Seen]:
    clock = Clock()

    def note(target: str) -> Callable[[Any], None]:
        def take(value: Any) -> None:
            getattr(seen, target).append(value)
            seen.news.set()

        return take

    def on_netmap(netmap: Netmap, changes: Changes) -> None:
        seen.netmaps.append((netmap, changes))
        seen.news.set()

    client = ControlClient(
        config,
        keys or fresh_keys(clock),
        gather(name, version="0"),
        clock=clock,
        on_netmap=on_netmap,
        on_state=lambda _: seen.news.set(),
        on_login=note("logins"),
        on_keys=note("keys"),
        on_pin=note("pins"),
    )
    seen = Seen(client)
    if update:
        client.update(**update)
    async with Scope("test") as scope:
        seen.task = scope.spawn(client.run(), name)
        yield seen


@asynccontextmanager
async def control(**options: Any) -> AsyncIterator[ControlServer]:
    async with ControlServer(clock=Clock(), relays=RELAYS, **options) as server:
        yield server


async def refused(config: ControlConfig) -> MeshError:
    async with joined(config) as seen:
        error = await seen.ended()
    assert error is not None and not seen.netmaps
    return error


def test_join_and_see_each_other() -> None:
    async def scenario() -> None:
        async with control() as server:
            config = ControlConfig(server.url, auth_key=server.add_key())
            where = [(Endpoint.parse("10.0.0.1:1234"), EndpointKind.LOCAL)]
            async with joined(config, "one", endpoints=where, home_region=RegionId(900)) as one:
                await one.until(lambda: bool(one.netmaps))
                assert one.netmap.self_node.name == "one.mesh.test"
                assert [str(ip) for ip in one.netmap.self_node.ips] == ["100.64.0.1", "fd7a:115c:a1e0::1"]
                assert one.netmaps[0][1].full
                assert one.client.state.phase is Phase.RUNNING
                assert one.logins[0].used_auth_key and one.pins == [server.key.public()]
                assert RegionId(900) in one.netmap.relays.regions
                async with joined(config, "two") as two:
                    await one.until(lambda: one.peer_names() == {"two"})
                    await two.until(lambda: two.peer_names() == {"one"})
                    peer = next(iter(two.netmap.peers.values()))
                    assert peer.endpoints == (Endpoint.parse("10.0.0.1:1234"),) and peer.home == 900
                    assert peer.disco == one.client.keys.disco and peer.online
                    two.client.update(endpoints=[(Endpoint.parse("10.0.0.2:99"), EndpointKind.LOCAL)])
                    await one.until(
                        lambda: [p.endpoints for p in one.netmap.peers.values()] == [(Endpoint.parse("10.0.0.2:99"),)]
                    )
                await one.until(lambda: all(p.online is False for p in one.netmap.peers.values()))

    run(scenario)


def test_restart_keeps_the_identity_without_a_key() -> None:
    async def scenario() -> None:
        async with control() as server:
            keys = fresh_keys(Clock())
            once = server.add_key(reusable=False)
            async with joined(ControlConfig(server.url, auth_key=once), "stays", keys) as first:
                await first.until(lambda: bool(first.netmaps))
            again = ControlConfig(server.url, known=True, pinned_key=first.pins[0])
            async with joined(again, "stays", keys) as second:
                await second.until(lambda: bool(second.netmaps))
                assert second.netmap.self_node.ips == first.netmap.self_node.ips
                assert second.client.counters["registrations"] == 0 and not second.pins
            assert isinstance(await refused(ControlConfig(server.url, auth_key=once)), KeyRejected)

    run(scenario)


def test_forgotten_node_comes_back_with_its_key() -> None:
    async def scenario() -> None:
        async with control() as server:
            config = ControlConfig(server.url, auth_key=server.add_key())
            async with joined(config, "lost") as seen:
                await seen.until(lambda: bool(seen.netmaps))
                old = seen.netmap.self_node.id
                server.tailnet.remove(old)
                await seen.until(lambda: seen.netmap.self_node.id != old)
                assert seen.client.counters["registrations"] == 2

    run(scenario)


def test_forgotten_node_without_a_key_needs_a_human() -> None:
    async def scenario() -> None:
        async with control() as server:
            error = await refused(ControlConfig(server.url, known=True))
            assert isinstance(error, LoginRequired) and error.url.startswith(f"{server.url}/register/")

    run(scenario)


def test_expired_node_renews_itself_once_with_a_fresh_key() -> None:
    async def scenario() -> None:
        async with control() as server:
            keys = fresh_keys(Clock())
            config = ControlConfig(server.url, auth_key=server.add_key())
            async with joined(config, "old", keys) as seen:
                await seen.until(lambda: bool(seen.netmaps))
                address = seen.netmap.self_node.ips
                server.tailnet.expire(seen.netmap.self_node.id, server.clock.wall())
                await seen.until(lambda: bool(seen.keys) and seen.client.state.phase is Phase.RUNNING)
                assert seen.keys[0].old_node == keys.node and seen.keys[0].node != keys.node
                assert seen.keys[0].machine == keys.machine
                await seen.until(lambda: seen.netmap.self_node.key == seen.keys[0].node.public())
                assert seen.netmap.self_node.ips == address and len(seen.keys) == 1

    run(scenario)


def test_expired_node_without_a_key_says_so() -> None:
    async def scenario() -> None:
        async with control() as server:
            keys = fresh_keys(Clock())
            async with joined(ControlConfig(server.url, auth_key=server.add_key()), "old", keys) as seen:
                await seen.until(lambda: bool(seen.netmaps))
            server.tailnet.expire(seen.netmap.self_node.id, server.clock.wall())
            async with joined(ControlConfig(server.url, known=True), "old", keys) as again:
                assert isinstance(await again.ended(), KeyExpired)

    run(scenario)


@pytest.mark.parametrize("is_running", [True, False])
def test_ephemeral_node_is_gone_after_logout(is_running: bool) -> None:
    async def scenario() -> None:
        async with control() as server:
            config = ControlConfig(server.url, auth_key=server.add_key(ephemeral=True), ephemeral=True)
            async with joined(config, "brief") as seen:
                await seen.until(lambda: bool(seen.netmaps))
                if is_running:
                    await seen.client.logout()
                    assert await seen.ended() is None
            if not is_running:
                assert server.tailnet.find("brief") is not None
                await seen.client.logout()
            assert server.tailnet.find("brief") is None
            assert seen.client.state.phase is Phase.LOGGED_OUT

    run(scenario)


def test_ephemeral_node_that_stays_away_is_collected() -> None:
    async def scenario() -> None:
        async with control(ephemeral_timeout_s=0.05) as server:
            config = ControlConfig(server.url, auth_key=server.add_key(ephemeral=True))
            async with joined(ControlConfig(server.url, auth_key=server.add_key()), "witness") as witness:
                async with joined(config, "brief") as seen:
                    await witness.until(lambda: witness.peer_names() == {"brief"})
                await witness.until(lambda: not witness.peer_names())
            assert seen.netmaps and server.tailnet.find("brief") is None

    run(scenario)


def test_refusals_of_keys() -> None:
    async def scenario() -> None:
        async with control() as server:
            assert isinstance(await refused(ControlConfig(server.url, auth_key="hskey-auth-no")), KeyRejected)
            expired = server.add_key(expires_s=-1)
            assert isinstance(await refused(ControlConfig(server.url, auth_key=expired)), KeyExpired)
            revoked = server.add_key()
            server.tailnet.keys[revoked].revoked = True
            error = await refused(ControlConfig(server.url, auth_key=revoked))
            assert isinstance(error, KeyRejected) and revoked not in str(error)
            assert isinstance(await refused(ControlConfig(server.url)), LoginRequired)

    run(scenario)


def test_a_human_lets_a_node_in() -> None:
    async def scenario() -> None:
        async with control() as server:
            async with joined(ControlConfig(server.url, interactive=True), "guest") as seen:
                await seen.until(lambda: seen.client.state.phase is Phase.NEEDS_LOGIN)
                url = seen.client.state.url
                seen.client.reconnect("the network changed")  # a cut while waiting must not need a new visit
                await seen.until(lambda: seen.client.counters["dials"] == 2)
                await seen.until(lambda: seen.client.state.phase is Phase.NEEDS_LOGIN)
                server.approve(seen.client.state.url or url)
                await seen.until(lambda: bool(seen.netmaps))
                assert not seen.logins[0].used_auth_key

    run(scenario)


def test_not_a_control_server() -> None:
    async def scenario() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(replies[0])
            writer.close()

        replies = [b""]
        web = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}"

        async def told(reply: bytes) -> MeshError:
            replies[0] = reply
            return await refused(ControlConfig(url, auth_key="x"))

        def page(status: str, body: bytes = b"", head: str = "") -> bytes:
            return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body

        assert isinstance(await told(page("404 Not Found")), NotAControlServer)
        assert isinstance(await told(page("200 OK", b"<html>hello")), NotAControlServer)
        assert isinstance(await told(page("200 OK", b"a" * 64)), NotAControlServer)
        assert isinstance(await told(page("200 OK")), VersionRejected)
        assert isinstance(await told(page("400 Bad Request", b"invalid capability version")), VersionRejected)
        assert isinstance(await told(b"SSH-2.0-OpenSSH_9\r\n"), NotAControlServer)
        moved = await told(page("302 Found", head="Location: https://elsewhere/\r\n"))
        assert isinstance(moved, NotAControlServer) and "https://elsewhere/" in str(moved)
        web.close()

    run(scenario)


def test_unreachable_server_is_waited_for() -> None:
    async def scenario() -> None:
        async with control() as server:
            url = server.url
        async with joined(ControlConfig(url, auth_key="x")) as seen:
            await seen.until(lambda: seen.client.counters["dials"] >= 3)
            error = seen.client.state.error
            assert isinstance(error, ControlError) and "connection refused" in str(error)

    run(scenario)


def test_server_restart_is_survived_with_the_same_netmap() -> None:
    async def scenario() -> None:
        clock = Clock()
        key = MachinePrivate.generate(clock.entropy)
        async with ControlServer(clock=clock, relays=RELAYS, key=key) as first:
            auth = first.add_key()
            port = int(first.url.rpartition(":")[2])
            async with joined(ControlConfig(first.url, auth_key=auth), "steady") as seen:
                await seen.until(lambda: bool(seen.netmaps))
                await first.__aexit__(None, None, None)
                await seen.until(lambda: seen.client.state.phase is Phase.DEGRADED)
                assert seen.client.netmap is not None
                async with ControlServer(clock=clock, relays=RELAYS, key=key, port=port) as second:
                    second.tailnet.keys.update(first.tailnet.keys)
                    await seen.until(lambda: seen.client.state.phase is Phase.RUNNING)
                    assert not seen.netmaps[-1][1].full

    run(scenario)


def test_server_with_another_key_is_refused_over_http() -> None:
    async def scenario() -> None:
        async with control() as server:
            other = MachinePrivate.generate(Clock().entropy).public()
            pinned = ControlConfig(server.url, auth_key=server.add_key(), pinned_key=other)
            error = await refused(pinned)
            assert isinstance(error, KeyMismatch)
            assert str(other) in str(error) and str(server.key.public()) in str(error)
            assert isinstance(await refused(replace(pinned, pinned_key=None, control_key=other)), KeyMismatch)

    run(scenario)


def test_tls_with_a_private_authority(certificates: tuple[Path, Path, Path]) -> None:
    async def scenario() -> None:
        ca, certificate, key = certificates
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        async with control(tls=tls) as server:
            auth = server.add_key()
            assert isinstance(await refused(ControlConfig(server.url, auth_key=auth)), CertificateError)
            config = ControlConfig(server.url, auth_key=auth, ca_file=str(ca))
            async with joined(config, "secure") as seen:
                await seen.until(lambda: bool(seen.netmaps))
            # Over verified TLS a server may show a new key; the pin of the state follows it.
            stale = replace(config, pinned_key=MachinePrivate.generate(Clock().entropy).public())
            async with joined(stale, "again") as seen:
                await seen.until(lambda: bool(seen.netmaps))
                assert seen.pins == [server.key.public()]
            plain = ControlConfig(server.url.replace("https", "http"), auth_key=auth)
            async with joined(plain) as seen:
                await seen.until(lambda: seen.client.state.error is not None)
                assert isinstance(seen.client.state.error, ControlError) and not seen.netmaps

    run(scenario)


def test_policy_reaches_running_nodes() -> None:
    async def scenario() -> None:
        async with control() as server:
            config = ControlConfig(server.url, auth_key=server.add_key())
            async with joined(config, "web") as web, joined(config, "client") as client:
                await web.until(lambda: web.peer_names() == {"client"})
                await client.until(lambda: bool(client.netmaps))
                server.tailnet.set_policy(Policy.parse([{"src": ["client"], "dst": ["web:80"]}]))
                await web.until(lambda: web.netmaps[-1][1].rules_changed)
                await client.until(lambda: client.netmaps[-1][1].rules_changed)
                rule = web.netmap.rules[0]
                assert {str(p) for p in rule.sources} == {f"{p}" for p in client.netmap.self_node.addresses}
                assert {(ports.first, ports.last) for _, ports in rule.targets} == {(80, 80)}
                assert client.netmap.rules == () and rules.compile_rules(client.netmap) == rules.deny_all()

    run(scenario)


def test_zstd_stream() -> None:
    async def scenario() -> None:
        async with control() as server:
            config = ControlConfig(server.url, auth_key=server.add_key(), compress=True)
            async with joined(config, "small") as seen, joined(config, "other"):
                await seen.until(lambda: seen.peer_names() == {"other"})

    run(scenario)


def test_liveness_ping_is_answered() -> None:
    async def scenario() -> None:
        async with control() as server:
            async with joined(ControlConfig(server.url, auth_key=server.add_key()), "alive") as seen:
                await seen.until(lambda: bool(seen.netmaps))
                member = server.tailnet.find("alive")
                assert member is not None and await server.ping(member)
                assert await server.ping(member)

    run(scenario)


def test_keep_alives_are_counted_and_keep_the_stream() -> None:
    async def scenario() -> None:
        async with control(keep_alive_s=-8.99) as server:  # with its jitter: a few milliseconds
            async with joined(ControlConfig(server.url, auth_key=server.add_key()), "calm") as seen:
                await seen.until(lambda: bool(seen.netmaps))
                async with asyncio.timeout(BOUND_S):
                    while seen.client.counters["keepalives"] < 3:
                        await asyncio.sleep(0)
                assert seen.client.counters["dials"] == 1

    run(scenario)
