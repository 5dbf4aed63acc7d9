"""The map stream of one session, and the lite updates beside it.

A MapPoll owns the Fold of its stream: state is per stream, a reconnect starts empty and replaces
the published netmap only when its first map is complete. Updates are debounced, newest wins. Every
25 minutes one is sent without cause: on Headscale only that notices our own deletion.
Source: docs/protocol/control.md 4.2 to 4.9, 12.3.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from meshnode.base.errors import ControlError, MeshError, RemoteProtocolError, VersionRejected
from meshnode.base.units import Seconds
from meshnode.control.pings import PingAnswerer
from meshnode.control.session import Reply, Session, Stream, collect
from meshnode.netmap import tailcfg
from meshnode.netmap.delta import Fold, next_expiry
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.wire.mapstream import MapFrames, inflate

if TYPE_CHECKING:
    from meshnode.control.client import ControlClient

MAP_PATH: Final = "/machine/map"
WATCHDOG_S: Final = 120.0
"""Without a complete message for this long the stream is dead, whatever TCP says."""
DEBOUNCE_S: Final = 0.25
FIRST_UPDATE_S: Final = 3.0
"""The first lite update waits for the first map at most this long."""
HEARTBEAT_S: Final = 25 * 60.0
PARSE_ASIDE: Final = 256 * 1024
"""Messages larger than this are read on a thread, so that PING is answered meanwhile: ten thousand
peers take more than a second."""
SLEEP_MAX_S: Final = 300.0
SKEW_IGNORED_S: Final = 60.0
SKEW_FLOOR: Final = 1673308800.0
"""2023-01-10: a server that thinks it is earlier has no clock."""
EXPIRY_GRACE_S: Final = 10.0
EMPTY_POLLS_LIMIT: Final = 5

P = ParamSpec("P")
T = TypeVar("T")
_log = get_logger("control")


class StreamEnded(ControlError):
    """The map stream ended after it had worked: normal, reconnect."""


class NodeGone(ControlError):
    """The server does not know this node any more: register again."""

    def __init__(self, message: str, *, mixed_up: bool) -> None:
        super().__init__(message)
        self.mixed_up = mixed_up
        """It knows the node key as another machine's."""


class MapPoll:
    """One stream; `run` always ends by an error."""

    def __init__(self, client: ControlClient, session: Session, scope: Scope) -> None:
        self._client = client
        self._session = session
        self._scope = scope
        self._fold = Fold()
        self._frames = MapFrames()
        self._keep_alive = b""
        self._pings = PingAnswerer(client.server, client.route)
        self._maps = 0
        self._told_home = client.says.home
        self._trouble: MeshError | None = None
        self._expiry_changed = asyncio.Event()
        self._got_map = asyncio.Event()
        self._popped = ""

    async def run(self) -> None:
        """Poll until the stream ends. StreamEnded, NodeGone, or what else went wrong."""
        client = self._client
        body = client.says.request(
            client.keys.node.public(), client.config.version, stream=True, compress=client.config.compress
        )
        headers = [(tailcfg.LB_HEADER, str(client.keys.node.public()))]
        stream = self._session.open("POST", MAP_PATH, headers, body)
        self._scope.spawn(self._keep_updated(), "updates")
        self._scope.spawn(self._watch_expiry(), "expiry")
        try:
            await self._read(stream)
        except TimeoutError:
            raise self._trouble or ControlError(f"the control server was silent for {WATCHDOG_S:.0f} s") from None
        except ControlError as error:
            if self._trouble is not None:
                raise self._trouble from None
            if self._maps and type(error) is ControlError:
                raise StreamEnded(str(error)) from None
            raise
        finally:
            stream.cancel()

    # --- reading ----------------------------------------------------------------------------------

    async def _read(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WATCHDOG_S) as watchdog:
            head = await stream.answer()
            if head.status != 200:
                raise refusal(await collect(stream))
            while part := await stream.read():
                for payload in self._frames.receive(part):
                    watchdog.reschedule(None)
                    await self._on_payload(payload)
                    watchdog.reschedule(loop.time() + WATCHDOG_S)
        if self._frames.has_partial:
            raise RemoteProtocolError("the control server ended the map stream inside a message")
        raise (
            StreamEnded("the control server ended the map stream")
            if self._maps
            else ControlError("the control server ended the map stream before it sent a map")
        )

    async def _on_payload(self, payload: bytes) -> None:
        if payload == self._keep_alive:
            self._client.counters["keepalives"] += 1
            return
        aside = asyncio.to_thread if len(payload) > PARSE_ASIDE else _here
        message = await aside(_parse, payload)
        self._side_effects(message)
        if message.keep_alive:
            self._client.counters["keepalives"] += 1
            if message.ping_request is None:
                self._keep_alive = payload
            return
        await self._obey(message.debug)
        first = not self._maps
        netmap = await aside(self._fold.apply, message, self._client.wall)
        self._maps += 1
        self._client.counters["maps"] += 1
        if first:
            self._got_map.set()
            self._client.on_progress()
        self._client.on_map(netmap)
        self._expiry_changed.set()

    def _side_effects(self, message: tailcfg.MapResponse) -> None:
        """What holds even on a keep-alive."""
        if message.ping_request is not None:
            self._scope.spawn(self._pings.answer(message.ping_request, self._session), "ping")
        if message.control_time:
            self._note_time(message.control_time)
        url = message.pop_browser_url or ""
        if url and url != self._popped and url.lower().startswith(("https://", "http://")):
            self._popped = url
            _log.warning("the control server asks a human to visit a page", url=url)

    def _note_time(self, text: str) -> None:
        theirs = tailcfg.parse_time(text)
        if theirs is None or theirs < SKEW_FLOOR:
            return
        skew = theirs - self._client.clock.wall()
        if abs(skew) <= SKEW_IGNORED_S:
            skew = 0.0
        elif not self._client.skew:
            _log.warning("this machine's clock differs from the control server's", seconds=round(skew))
        self._client.skew = Seconds(skew)

    async def _obey(self, debug: tailcfg.WireDebug | None) -> None:
        if debug is None:
            return
        if debug.exit is not None:
            _log.warning("the control server asks this process to exit; ignored", code=debug.exit)
        if debug.sleep_seconds and debug.sleep_seconds > 0:
            await asyncio.sleep(min(debug.sleep_seconds, SLEEP_MAX_S))

    # --- beside it --------------------------------------------------------------------------------

    async def _keep_updated(self) -> None:
        """Send a lite update after the first map, after each change, and every HEARTBEAT_S.

        Not before the first map: the stream's request said the same, and Headscale would make the map
        wait for the update's own batch (0.35 s with its defaults).
        """
        says = self._client.says
        failures = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_UPDATE_S):
                await self._got_map.wait()
        while self._session.error is None:
            says.changed.clear()
            try:
                await self._send_update()
                failures = 0
            except ControlError as error:
                if isinstance(error, NodeGone | VersionRejected):
                    return self._end(error)
                failures += 1
                _log.debug("lite update failed", error=str(error))
                await asyncio.sleep(min(failures**2 * 0.1, 30.0))
                continue
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await says.changed.wait()
                # Until peers know our home they cannot reach us by relay: that news goes at once.
                if says.home == self._told_home:
                    await asyncio.sleep(DEBOUNCE_S)
            except TimeoutError:
                continue

    async def _send_update(self) -> None:
        client = self._client
        generation = client.says.generation
        self._told_home = client.says.home
        body = client.says.request(client.keys.node.public(), client.config.version, stream=False)
        reply = await self._session.request("POST", MAP_PATH, body=body)
        if reply.status != 200:
            raise refusal(reply)
        client.says.acknowledged = generation
        client.counters["lite_updates"] += 1

    async def _watch_expiry(self) -> None:
        """Publish again when a key passes its date, ours or a peer's."""
        while True:
            self._expiry_changed.clear()
            netmap, wall = self._client.netmap, self._client.wall
            when = next_expiry(netmap, wall) if netmap is not None and self._maps else None
            try:
                async with asyncio.timeout(None if when is None else when - wall + EXPIRY_GRACE_S):
                    await self._expiry_changed.wait()
            except TimeoutError:
                try:
                    self._client.on_map(self._fold.expire(self._client.wall))
                except MeshError as error:
                    return self._end(error)

    def _end(self, error: MeshError) -> None:
        """End the session from a task beside the stream; `run` raises this error."""
        self._trouble = self._trouble or error
        self._session.close(ControlError(str(error)))


async def _here(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same face as asyncio.to_thread, without the thread."""
    return call(*args, **kwargs)


def _parse(payload: bytes) -> tailcfg.MapResponse:
    return tailcfg.parse_map(inflate(payload))


def refusal(reply: Reply) -> ControlError:
    """What a map request's status other than 200 means."""
    text = " ".join(reply.body[:200].decode("utf-8", "replace").split())
    lower = text.lower()
    if reply.status in (400, 404) and ("not found" in lower or "machine key" in lower):
        mixed_up = "machine key" in lower
        return NodeGone(f'the control server does not know this node any more ("{text}")', mixed_up=mixed_up)
    if reply.status == 404:
        return NodeGone("the control server does not know this node any more", mixed_up=False)
    if reply.status == 400 and "version" in lower:
        return VersionRejected(f'the control server refuses our capability version; upgrade meshnode ("{text}")')
    return ControlError(f'the control server answered {reply.status} to a map request: "{text}"')
