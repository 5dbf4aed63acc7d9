"""Netcheck: looks at the network when there is cause to, through the tunnel's own UDP socket.

The shell around `core.net_schedule`, `core.netplan` and `core.netcheck`: sends binding requests, resolves names,
measures by HTTPS and echo, and hands each report on. One check at a time.
Source: docs/protocol/paths.md 4.1, 4.5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from meshnode.base.addr import IP, Endpoint, RegionId
from meshnode.base.errors import MeshError
from meshnode.core import net_schedule, netcheck, netplan
from meshnode.core.net_schedule import Cause
from meshnode.core.report import NetReport
from meshnode.netmap.model import RelayMap, RelayRegion
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.underlay.echo import NotAllowed, measure_echo
from meshnode.underlay.targets import Targets, has_route
from meshnode.wire import stun

ECHO_BYTES: Final = 16
_log = get_logger("netcheck")


class Netcheck:
    """Of one node. `run` is its task; all methods are of the loop's thread."""

    def __init__(
        self,
        *,
        clock: Clock,
        relays: Callable[[], RelayMap],
        home: Callable[[], RegionId],
        ports: Callable[[], tuple[int, int]],
        send: Callable[[IP, int, bytes], Any],
        measure_https: Callable[[RelayRegion], Awaitable[float]],
        look_for_portal: Callable[[], Awaitable[bool | None]],
        has_traffic: Callable[[], bool],
        on_begin: Callable[[], None],
        on_report: Callable[[NetReport, float, Cause], None],
    ) -> None:
        """ports: of the tunnel's IPv4 and IPv6 sockets, 0 where there is none. send: a datagram from them.

        has_traffic: whether packets of peers moved since it was last asked. on_report: (report, when it began, why).
        """
        self._clock = clock
        self._relays = relays
        self._home = home
        self._ports = ports
        self._send = send
        self._measure_https = measure_https
        self._look_for_portal = look_for_portal
        self._has_traffic = has_traffic
        self._on_begin = on_begin
        self._on_report = on_report
        self._schedule = net_schedule.Schedule(clock.uniform)
        self._targets = Targets(clock.now)
        self._check: netcheck.Check | None = None
        self._news = asyncio.Event()
        self._wake = asyncio.Event()
        self._asked: list[asyncio.Future[NetReport]] = []
        self._last = NetReport()
        self.server: Endpoint | None = None
        """The STUN server that answered last over IPv4."""
        self.counts = {"netchecks": 0, "netchecks_full": 0, "stun_sent": 0, "stun_stray": 0, "stun_bad": 0}

    # --- what others say ---

    def request(self, cause: Cause) -> None:
        """Something happened that is worth a look; soon, and together with others."""
        if cause is Cause.LINK:
            self._targets.forget()
        self._schedule.request(cause, self._clock.now())
        self._wake.set()

    async def check(self) -> NetReport:
        """A full report, made for the caller. Bounded by the check itself, twice if one runs already."""
        answer: asyncio.Future[NetReport] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self.request(Cause.ASKED)
        return await answer

    def on_stun(self, ip: IP, port: int, data: bytes) -> None:
        """The tunnel's socket got what looks like STUN."""
        try:
            txid, mapped = stun.parse_response(data)
        except MeshError:
            self.counts["stun_bad"] += 1
            return
        if self._check is not None and self._check.take_answer(txid, mapped, self._clock.now()):
            self._news.set()
            if ip.version == 4:
                self.server = Endpoint(ip, port)
        else:
            self.counts["stun_stray"] += 1

    # --- the task ---

    async def run(self) -> None:
        """Check whenever one is due, for ever."""
        while True:
            self._wake.clear()
            now, due_at, tick_at = self._clock.now(), self._schedule.due_at, self._schedule.tick_at
            if due_at is not None and now >= due_at and self._relays().regions:
                await self._check_once()
            elif tick_at is not None and now >= tick_at:
                if self._has_traffic():
                    self._schedule.note_traffic(now)
                self._schedule.on_tick(now)
            else:
                has_map = bool(self._relays().regions)
                instants = [at for at in (due_at if has_map else None, tick_at) if at is not None]
                await _wait(self._wake, min(instants) - now if instants else None)

    async def _check_once(self) -> None:
        asked, self._asked = self._asked, []
        now = self._clock.now()
        cause, is_full = self._schedule.begin(now)
        plan = self._plan(is_full)
        self.counts["netchecks"] += 1
        self.counts["netchecks_full"] += is_full
        self._on_begin()
        check = self._check = netcheck.Check(plan, now, lambda: self._clock.entropy(stun.TXID_LEN))
        try:
            await self._carry_out(check)
        finally:
            self._check = None
            for answer in asked:
                if not answer.done() and not check.is_done:
                    answer.cancel()
        ended_at = self._clock.now()
        report = self._last = check.report(ended_at, os_has_ipv6=bool(self._ports()[1]))
        self._schedule.end(report, ended_at)
        about = {"udp": report.udp, "regions": len(report.regions), "seconds": round(report.duration_s, 3)}
        _log.debug("network looked at", why=cause.value, full=is_full, **about)
        self._on_report(report, check.began_at, cause)
        for answer in asked:
            if not answer.done():
                answer.set_result(report)

    def _plan(self, is_full: bool) -> netplan.Plan:
        port4, port6 = self._ports()
        families = {"has_v4": bool(port4), "has_v6": bool(port6)}
        if is_full:
            return netplan.full_plan(self._relays(), **families)
        return netplan.incremental_plan(self._relays(), self._last, self._home(), **families)

    async def _carry_out(self, check: netcheck.Check) -> None:
        async with Scope("netcheck") as scope:
            while True:
                self._news.clear()
                for ask in check.asks(self._clock.now()):
                    scope.spawn(self._perform(check, ask), type(ask).__name__)
                if check.is_done:
                    break
                await _wait(self._news, check.next_deadline() - self._clock.now())
        if scope.failed.done() and not scope.failed.cancelled():
            raise scope.failed.result()

    async def _perform(self, check: netcheck.Check, ask: netcheck.Ask) -> None:
        if isinstance(ask, netcheck.AskStun):
            await self._ask_stun(check, ask)
        elif isinstance(ask, netcheck.AskHttps):
            check.take_https(ask.region.id, await self._https(ask.region))
        elif isinstance(ask, netcheck.AskPortal):
            check.take_portal(await self._look_for_portal())
        else:
            await self._ask_icmp(check, ask.region)
        self._news.set()

    async def _ask_stun(self, check: netcheck.Check, ask: netcheck.AskStun) -> None:
        to = await self._targets.find(ask.probe.node, ask.probe.family)
        if to is None or not has_route(to):
            check.note_unsendable(ask.txid)
            return
        self.counts["stun_sent"] += 1
        check.note_sent(ask.txid, to, self._clock.now())
        self._send(to.ip, to.port, stun.emit_request(ask.txid))

    async def _https(self, region: RelayRegion) -> float | None:
        try:
            async with asyncio.timeout(netcheck.TOTAL_S):
                return await self._measure_https(region)
        except (OSError, TimeoutError, MeshError) as error:
            _log.debug("no latency by HTTPS", region=region.id, error=str(error))
            return None

    async def _ask_icmp(self, check: netcheck.Check, region: RelayRegion) -> None:
        latency, is_allowed = None, True
        for node in region.nodes:
            to = await self._targets.find(node, 4)
            if to is not None:
                try:
                    async with asyncio.timeout(netcheck.ICMP_S):
                        latency = await measure_echo(to.ip, self._clock.entropy(ECHO_BYTES), self._clock.now)
                except NotAllowed:
                    is_allowed = False
                except (OSError, TimeoutError):
                    pass
                break
        check.take_icmp(region.id, latency, is_allowed=is_allowed)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(None if timeout_s is None else max(0.0, timeout_s)):
            await event.wait()
    except TimeoutError:
        pass
