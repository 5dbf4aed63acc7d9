"""RelayClient: the connection to one region, kept alive while somebody needs it.

States: closed → connecting → connected → (lost) connecting …; `down` once it failed to come back for a
second. The home region is dialled again at once with jittered delays; any other only while packets wait.
Source: docs/protocol/paths.md 2.2, 2.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from meshnode.base.addr import RegionId
from meshnode.base.errors import RelayError
from meshnode.base.keys import NodePrivate, NodePublic
from meshnode.base.units import Seconds
from meshnode.core.lanes import Lanes
from meshnode.core.liveness import retry_delay
from meshnode.netmap.model import RelayNode, RelayRegion
from meshnode.relay.dial import dial_region
from meshnode.relay.link import Link
from meshnode.relay.options import DialOptions
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.wire import derp

DOWN_AFTER_LOSS_S: Final = 1.0
DOWN_AFTER_START_S: Final = 3.0
STEADY_S: Final = 5.0
"""A connection that lived this long starts counting its failures anew."""
_log = get_logger("relay")


class RelayState(Enum):
    """What a region's connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DOWN = "down"
    """Lost, or never reached, for more than a moment; still being tried while anybody needs it."""
    CLOSED = "closed"
    """Nobody needs it; the next packet opens it again, so this is not "down"."""


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region's connection as status shows it."""

    region: RegionId
    code: str
    name: str
    state: RelayState
    since: Seconds
    node: str
    """Name of the relay node connected to; '' while not connected."""
    is_websocket: bool
    """Because something on the way strips the relay's own upgrade."""
    is_fast: bool
    """The login left with the first request: the TLS handshake had told the relay's key."""
    is_home: bool
    rtt_s: float | None
    health: str
    """What the relay says is wrong with us; '' when nothing."""
    error: str
    """Why the last attempt failed; '' after success."""
    rx_bytes: int
    tx_bytes: int
    dropped: int
    """Data packets given up because the connection was too slow."""


class RelayClient:
    """One region. Its owner calls from the loop's thread and may call again from the callbacks."""

    def __init__(
        self,
        region: RelayRegion,
        private: NodePrivate,
        options: DialOptions,
        *,
        clock: Clock,
        scope: Scope,
        on_packet: Callable[[RegionId, bytes, bytes], None],
        on_gone: Callable[[RegionId, NodePublic, int], None],
        on_state: Callable[[RegionId, RelayState], None],
    ) -> None:
        self.region = region
        self.state = RelayState.CLOSED
        self.since = clock.now()
        self.written_at = clock.now()
        self.is_home = False
        self.health = ""
        self.error = ""
        self._private = private
        self._options = options
        self._clock = clock
        self._scope = scope
        self._on_packet = on_packet
        self._on_gone = on_gone
        self._on_state = on_state
        self._lanes = Lanes()
        self._link: Link | None = None
        self._node: RelayNode | None = None
        self._task: asyncio.Task[Any] | None = None
        self._down_timer: asyncio.TimerHandle | None = None
        self._hurry = asyncio.Event()
        self._failures = 0
        """Attempts in a row that led to nothing lasting; the delay before the next grows with it."""
        self._rx_bytes = 0
        self._tx_bytes = 0
        self._closing = False

    @property
    def is_connected(self) -> bool:
        """Whether a packet would leave at once."""
        return self.state is RelayState.CONNECTED

    @property
    def heard_at(self) -> float | None:
        """Loop time of the last frame; None while not connected."""
        return self._link.heard_at if self._link is not None else None

    # --- what the pool wants ---

    def send(self, target: bytes, data: bytes, *, urgent: bool) -> None:
        """Queue one packet for the raw node key `target`, dialling if need be."""
        frame = derp.emit_send(target, data)
        self.written_at = now = self._clock.now()
        if urgent:
            self._lanes.put_urgent(frame)
        else:
            self._lanes.put_data(frame, now)
        if self._link is not None:
            self._link.schedule_flush()
        else:
            self.open()

    def set_home(self, is_home: bool) -> None:
        """Be the home region or not; the relay is told, a home is dialled."""
        if is_home != self.is_home:
            self.is_home = is_home
            if self._link is not None:
                self._link.put_urgent(derp.emit_preferred(is_home))
        if is_home:
            self.open()

    def open(self) -> None:
        """Dial unless that is going on already."""
        if self._closing or self._link is not None:
            return
        if self._task is None or self._task.done():
            self._task = self._scope.spawn(self._run(), f"region {self.region.id}")

    def ask(self) -> None:
        """Ask the relay for a sign of life."""
        if self._link is not None:
            self._link.ask()

    def on_network(self, gone: Collection[str]) -> None:
        """The network changed, or the machine slept. gone: addresses that are not ours any more.

        A connection from one of them is over; any other is asked whether it lives; a delay is not waited out.
        """
        self._hurry.set()
        if self._link is not None:
            if self._link.local_ip in gone:
                self._link.abort("its local address is gone")
            else:
                self._link.check()

    def close(self) -> None:
        """Nobody needs it. What waits is dropped; `open` or a packet starts it again."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._link is not None:
            self._link.abort()
            self._forget_link()
        self._lanes = Lanes()
        self._become(RelayState.CLOSED)

    def retire(self) -> None:
        """Close for good."""
        self._closing = True
        self.close()

    def status(self) -> RegionStatus:
        """A view of this moment."""
        link = self._link
        return RegionStatus(
            region=self.region.id,
            code=self.region.code,
            name=self.region.name,
            state=self.state,
            since=Seconds(self.since),
            node=self._node.name if self._node and link else "",
            is_websocket=link is not None and link.is_websocket,
            is_fast=link is not None and link.is_fast,
            is_home=self.is_home,
            rtt_s=link.rtt_s if link else None,
            health=self.health,
            error=self.error,
            rx_bytes=self._rx_bytes + (link.rx_bytes if link else 0),
            tx_bytes=self._tx_bytes + (link.tx_bytes if link else 0),
            dropped=self._lanes.dropped,
        )

    # --- the task ---

    async def _run(self) -> None:
        """Dial while somebody needs us: a home always, any other region while packets wait."""
        self._watch_for_down(DOWN_AFTER_START_S)
        is_first = True
        while is_first or self.is_home or len(self._lanes):
            is_first = False
            if self._failures:
                await self._pause(retry_delay(self._failures, self._clock.uniform))
            if self.state is not RelayState.DOWN:
                self._become(RelayState.CONNECTING)
            try:
                link, node = await dial_region(self.region, self._options, self._make_link)
            except RelayError as error:
                self._failures += 1
                self._report(str(error))
                continue
            lived_s = await self._live(link, node)
            self._failures = 1 if lived_s >= STEADY_S else self._failures + 1
        self._become(RelayState.CLOSED)

    def _report(self, error: str) -> None:
        if error != self.error or self._failures % 10 == 0:
            _log.warning("relay cannot be reached", region=self.region.id, error=error, failures=self._failures)
        self.error = error

    async def _live(self, link: Link, node: RelayNode) -> float:
        """From login to the link's end; returns how many seconds that was."""
        started = self._clock.now()
        self._link, self._node, self.error, self.health = link, node, "", ""
        if self.is_home:
            link.put_urgent(derp.emit_preferred(True))
        _log.debug("relay connected", region=self.region.id, node=node.name, fast_start=link.is_fast)
        self._become(RelayState.CONNECTED)
        link.schedule_flush()
        try:
            reason = await link.closed
            hint = link.restart_hint
        finally:
            if self._link is link:
                self._forget_link()
        lived_s = self._clock.now() - started
        self.error = reason
        _log.info("relay connection ended", region=self.region.id, reason=reason)
        self._become(RelayState.CONNECTING)
        self._watch_for_down(DOWN_AFTER_LOSS_S)
        if hint is not None:
            await self._pause(min(hint[0], 30.0) * self._clock.uniform(1.0, 2.0))
        return lived_s

    def _make_link(self) -> Link:
        return Link(
            self._private,
            self._lanes,
            clock=self._clock,
            region=self.region.id,
            on_packet=self._take_packet,
            on_gone=lambda peer, reason: self._on_gone(self.region.id, peer, reason),
            on_health=self._take_health,
            on_sent=self._note_sent,
        )

    def _note_sent(self) -> None:
        """The engine wrote to it without asking us."""
        self.written_at = self._clock.now()

    def _take_packet(self, sender: bytes, data: bytes) -> None:
        self._on_packet(self.region.id, sender, data)

    def _take_health(self, text: str) -> None:
        self.health = text
        if text:
            _log.warning("relay says", region=self.region.id, text=text)

    async def _pause(self, delay_s: float) -> None:
        self._hurry.clear()
        try:
            async with asyncio.timeout(delay_s):
                await self._hurry.wait()
        except TimeoutError:
            pass

    def _forget_link(self) -> None:
        if self._link is not None:
            self._rx_bytes += self._link.rx_bytes
            self._tx_bytes += self._link.tx_bytes
            self._link = None

    # --- state ---

    def _become(self, state: RelayState) -> None:
        if state in (RelayState.CONNECTED, RelayState.CLOSED, RelayState.DOWN):
            self._stop_watching()
        if state is not self.state:
            self.state = state
            self.since = self._clock.now()
            self._on_state(self.region.id, state)

    def _watch_for_down(self, after_s: float) -> None:
        self._stop_watching()
        self._down_timer = asyncio.get_running_loop().call_later(after_s, self._become, RelayState.DOWN)

    def _stop_watching(self) -> None:
        if self._down_timer is not None:
            self._down_timer.cancel()
            self._down_timer = None
