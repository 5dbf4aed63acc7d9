"""House: the rooms of one running node, from start to end.

Order of start: state, engine, control, then relays and paths, which are loaded while control's answer
is on its way (start-up time is a promise); of the end: the reverse. Who calls whom is in `wiring`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from meshnode import __version__
from meshnode.base.errors import EngineError, ListenError, MeshError, NameNotFound, StateError
from meshnode.base.keys import DiscoPrivate, DiscoPublic
from meshnode.control.client import ControlClient, ControlConfig, Keys, Phase
from meshnode.control.hostinfo import gather
from meshnode.engine.engine import Engine
from meshnode.netmap.model import Netmap
from meshnode.node.events import Broadcast
from meshnode.node.home import HomeKeeper
from meshnode.node.keeper import Keeper
from meshnode.node.links import LinkKeeper
from meshnode.node.offloads import offloads
from meshnode.node.portal import Portal
from meshnode.node.reach import Reach
from meshnode.node.status import Pong
from meshnode.node.wiring import Wiring
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.run.snapshot import Snapshot
from meshnode.state.store import State
from meshnode.tunnel.dialer import Dialer

if TYPE_CHECKING:
    from meshnode.node.node import Node
    from meshnode.tunnel.interface import Interface
    from meshnode.underlay.portmap import PortMapper

RELAY_GRACE_S: Final = 0.2
"""How long `ready` waits for the home relay once the netmap is in use: it connects beside us."""
FLOOR_EVERY_S: Final = 600.0
"""A crash forgets at most this much of WireGuard's time; only a clock set back further would matter."""

_log = get_logger("node")


class House:
    """The rooms of one running node."""

    engine: Engine
    control: ControlClient
    home: HomeKeeper
    dialer: Dialer
    portmap: PortMapper

    def __init__(
        self, node: Node, scope: Scope, broadcast: Broadcast, *, on_failure: Callable[[MeshError], None]
    ) -> None:
        self.node = node
        self.clock = node.clock
        self.netmap: Snapshot[Netmap | None] = Snapshot(None)
        self.interface: Interface | None = None
        self.wiring = Wiring(self, broadcast)
        self.reach = Reach(self)
        self.portal = Portal(self, scope)
        self.links = LinkKeeper(self)
        self._scope = scope
        self._on_failure = on_failure
        self._keeper: Keeper | None = None
        self._control_task: asyncio.Task[Any] | None = None
        self._rooms = contextlib.AsyncExitStack()

    # --- start ---

    async def start(self) -> None:
        """Bring every room up. StateError, ListenError; what control says comes later."""
        keeper = self._keeper = Keeper(self.node.state_dir, self.node.control_url, self.clock)
        self._rooms.callback(keeper.close)
        for problem in self.node.proxies.problems:
            _log.warning("a proxy of the environment is not used", problem=problem)
        await self._start_engine(keeper.state)
        disco = DiscoPrivate.generate(self.clock.entropy)
        self._start_control(keeper.state, disco.public())
        self._control_task = self._scope.spawn(self._run_control(), "control")
        await asyncio.sleep(0)
        self._start_relays()
        await asyncio.sleep(0)
        self._start_paths(disco)
        self.reach.start()
        self._rooms.callback(self.reach.close)
        self._start_portmap()
        self.wiring.introduce()
        self._rooms.callback(self.links.close)
        self.links.start()
        self._scope.spawn(self.reach.netcheck.run(), "netcheck")
        self._scope.spawn(keeper.keep_saving(), "state")
        self._scope.spawn(self._keep_floor(), "floor")
        self._scope.spawn(self._watch_bugs(), "bugs")

    async def _start_engine(self, state: State) -> None:
        node = self.node
        try:
            self.engine = await self._engine_at(state, node.port or state.udp_port)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            tip = "choose another with --port, or 0 for any" if taken else "a limit of the system may be in the way"
            reason = (error.strerror or str(error)).lower()
            raise ListenError(f"UDP port {node.port} cannot be used for the tunnel: {reason}; {tip}") from None
        self.memory.change(udp_port=self.engine.port4 or self.engine.port6)
        self._rooms.push_async_callback(self.engine.aclose)
        self.dialer = Dialer(self.engine.connect, node.resolve)
        if node.tun:
            from meshnode.tunnel.interface import Interface

            self.interface = Interface.open(self.engine, node.tun, node.mtu)
            self.engine.on_tun_lost = self._on_tun_lost

    async def _engine_at(self, state: State, port: int) -> Engine:
        """On that port; on any, if it is only the one we had last time and somebody else has it now."""
        node = self.node
        gso, gro = offloads(node.udp_gso, node.udp_gro)

        def start(port: int) -> Awaitable[Engine]:
            return Engine.start(
                state.node,
                port=port,
                mtu=node.mtu,
                timestamp_floor=state.timestamp_floor,
                gso=gso,
                gro=gro,
                tcp_memory=node.tcp_memory,
                tcp_ecn=node.tcp_ecn,
            )

        try:
            return await start(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or node.port or not port:
                raise
        return await start(0)

    def _on_tun_lost(self, number: int) -> None:
        self._on_failure(
            MeshError(f"interface {self.node.tun} was removed while in use: {os.strerror(number).lower()}")
        )

    def _start_relays(self) -> None:
        from meshnode.relay.pool import RelayPool

        node, state = self.node, self.memory.state
        self.pool = RelayPool(
            state.node,
            clock=self.clock,
            ca_file=node.ca_file,
            proxies=node.proxies,
            allow_insecure=node.insecure_relays,
            plain=node.plain_relays,
            carrier=self.engine.adopt_relay,
        )
        self._rooms.push_async_callback(self.pool.aclose)
        report = self.wiring.on_home
        self.home = HomeKeeper(
            choose=self.pool.set_home,
            report=report,
            connect=self.pool.connect,
            is_told=lambda: self.control.state.phase is Phase.RUNNING,
            clock=self.clock,
            preferred=state.home_region,
            wanted=node.home_region,
        )
        self._rooms.callback(self.home.close)

    def _start_paths(self, disco: DiscoPrivate) -> None:
        from meshnode.core.path_values import Tuning
        from meshnode.underlay.disco import Discovery

        public, wanted = self.memory.state.node.public(), self.node.disco
        tuning = Tuning(
            heartbeat_s=wanted.heartbeat_interval,
            reprobe_s=wanted.reprobe_interval,
            probe_timeout_s=wanted.probe_timeout,
            degraded_after_failures=wanted.degraded_after_failures,
            degraded_timeout_s=wanted.degraded_timeout,
        )
        self.discovery = Discovery(disco, public, clock=self.clock, loopback_ok=self.node.use_loopback, tuning=tuning)
        self._rooms.callback(self.discovery.close)

    def _start_portmap(self) -> None:
        from meshnode.underlay.portmap import PortMapper, protocols_of

        self.portmap = PortMapper(
            protocols_of(self.node.disco.portmap, is_local=self.node.use_loopback),
            clock=self.clock,
            port=lambda: self.engine.port4,
            on_endpoint=self.reach.on_port_mapping,
            on_presence=lambda seen: self.reach.note(upnp=seen.upnp, pmp=seen.pmp, pcp=seen.pcp),
        )
        self._scope.spawn(self.portmap.run(), "portmap")

    def _start_control(self, state: State, disco: DiscoPublic) -> None:
        node, wiring = self.node, self.wiring
        config = ControlConfig(
            url=node.control_url,
            auth_key=node.auth_key.reveal(),
            known=bool(state.node_id),
            ephemeral=node.ephemeral,
            ca_file=node.ca_file,
            proxies=node.proxies,
            pinned_key=state.control_key,
        )
        self.control = ControlClient(
            config,
            Keys(state.machine, state.node, disco, state.old_node),
            gather(node.hostname or machine_name(), version=__version__, log_id=state.log_id),
            clock=self.clock,
            on_netmap=wiring.on_netmap,
            on_state=wiring.on_control_state,
            on_login=wiring.on_login,
            on_keys=wiring.on_keys,
            on_pin=wiring.on_pin,
        )

    # --- end ---

    async def drain(self) -> None:
        """Let the last bytes of closed connections leave while relays and paths still stand."""
        if hasattr(self, "engine"):
            with contextlib.suppress(RuntimeError):  # an engine that has already stopped holds no bytes
                await self.engine.drain()

    async def say_goodbye(self, timeout_s: float) -> None:
        """Log an ephemeral node out, so that it is gone at once; its state is erased.

        Also while joining: the server may have registered us before its answer came.
        """
        if self._control_task is None or self._control_task.done():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.control.logout(timeout_s)
        except (MeshError, OSError, TimeoutError) as error:
            _log.warning("could not log out; control forgets this ephemeral node by itself", error=str(error))
            return
        _log.info("logged out")
        with contextlib.suppress(StateError):
            self.memory.erase()

    async def logout(self, timeout_s: float) -> None:
        """Expire this node at the server, then forget its keys. ControlError: the server did not confirm."""
        await self.control.logout(timeout_s)
        if self.node.ephemeral:
            self.memory.erase()
        else:
            self.memory.start_over()

    async def remember(self) -> None:
        """Save what changed last, if this identity goes on."""
        if self._keeper is not None and hasattr(self, "engine"):
            self._keeper.change(timestamp_floor=self.engine.last_timestamp())
            self._keeper.save()

    @property
    def memory(self) -> Keeper:
        """What survives this run."""
        assert self._keeper is not None, "the house was not started"
        return self._keeper

    async def stop(self) -> None:
        """Close every room, the last opened first."""
        await self._rooms.aclose()

    # --- tasks ---

    async def _run_control(self) -> None:
        try:
            await self.control.run()
        except MeshError as error:
            self._on_failure(error)

    async def _watch_bugs(self) -> None:
        """A task that died of something unexpected ends the node, loudly."""
        watched = {self._scope.failed, self.pool.failed}
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        error = done.pop().result()
        if isinstance(error, MeshError):
            self._on_failure(error)
        else:
            failure = EngineError(f"a part of the node failed: {type(error).__name__}: {error}; please report this")
            failure.__cause__ = error
            self._on_failure(failure)

    async def _keep_floor(self) -> None:
        while True:
            await asyncio.sleep(FLOOR_EVERY_S)
            self.memory.change(timestamp_floor=self.engine.last_timestamp())

    # --- questions ---

    async def wait_ready(self) -> None:
        """The netmap is in use, and the home relay connected or given its grace."""
        await self.netmap.until(lambda netmap: netmap is not None and netmap.self_node.authorized)
        if self.home.is_needed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELAY_GRACE_S):
                    await self.home.settled.wait()

    def what_it_waits_for(self) -> tuple[str, MeshError | None]:
        """For NotReady: a sentence, and the error that stands in the way."""
        state = self.control.state
        detail = "".join(f"; {part}" for part in (state.reason, self.portal.text) if part)
        return f"{state.phase.value} at {self.node.control_url}{detail}", state.error

    async def ping(self, host: str, timeout_s: float, size: int = 0) -> Pong:
        """One DISCO ping to a peer, by name or address. size: of the packet; 0: as small as it is."""
        node = self.node.names().node(host)
        netmap = self.netmap.value
        if node is None or netmap is None:
            self.node.resolve(host)  # raises with the nearest names
            raise NameNotFound(f"{host} is a name, but no node's; nothing to ping")
        if node.id == netmap.self_node.id:
            return Pong(node, node.ips[0], 0.0, None, is_self=True)
        result = await self.discovery.ping(node.key, timeout_s, size)
        region = netmap.relays.regions.get(result.region)
        code = region.code if region else str(result.region)
        return Pong(node, node.ips[0], result.latency_s, result.endpoint, result.region, code)


def machine_name() -> str:
    """The first label of this machine's name, made fit for DNS."""
    label = socket.gethostname().partition(".")[0].lower()
    fit = "".join(c if c.isalnum() and c.isascii() else "-" for c in label).strip("-")[:63]
    return fit or "meshnode"
