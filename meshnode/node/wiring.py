"""House: who receives whose events, the only map of the house.

Builds engine, paths, relays and control, introduces them to each other by callables, and takes them
down again. Nothing here decides about protocol; `follow` and `home` hold the few decisions of this
layer. Order of start: state, engine, control, then relays and paths, which are loaded while control's
answer is on its way (start-up time is a promise); of the end: the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from meshnode import __version__
from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import EngineError, ListenError, MeshError, NameNotFound, StateError
from meshnode.base.keys import DiscoPrivate, DiscoPublic, MachinePublic, NodePublic
from meshnode.control.client import ControlClient, ControlConfig, ControlState, Keys, LoginResult
from meshnode.control.hostinfo import gather
from meshnode.engine.engine import Engine
from meshnode.netmap.model import Changes, Netmap
from meshnode.netmap.model import Node as NetmapNode
from meshnode.netmap.tailcfg import EndpointKind
from meshnode.node.events import Broadcast, ControlChanged, NetmapChanged, PathChanged, RelayChanged
from meshnode.node.follow import EngineFace, Follower
from meshnode.node.home import HomeKeeper
from meshnode.node.keeper import Keeper
from meshnode.node.status import Pong
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.run.snapshot import Snapshot
from meshnode.state.store import State
from meshnode.tunnel.dialer import Dialer

if TYPE_CHECKING:
    from meshnode.node.node import Node
    from meshnode.relay.pool import RelayState

RELAY_GRACE_S: Final = 0.2
"""How long `ready` waits for the home relay once the netmap is in use: it connects beside us."""
ENDPOINTS_EVERY_S: Final = 10.0

_log = get_logger("node")


class House:
    """The rooms of one running node."""

    def __init__(
        self,
        node: Node,
        scope: Scope,
        broadcast: Broadcast,
        *,
        on_failure: Callable[[MeshError], None],
        on_netmap: Callable[[Netmap], None],
    ) -> None:
        self._node = node
        self.clock = node.clock
        self._scope = scope
        self._broadcast = broadcast
        self._on_failure = on_failure
        self._on_netmap_seen = on_netmap
        self.netmap: Snapshot[Netmap | None] = Snapshot(None)
        self.endpoints: tuple[Endpoint, ...] = ()
        self._keeper: Keeper | None = None
        self._control_task: asyncio.Task[Any] | None = None
        self.engine: Engine
        self._follower: Follower | None = None
        self._early: list[tuple[Netmap, Changes]] = []
        """Netmaps that came while relays and paths were being loaded."""
        self._rooms = contextlib.AsyncExitStack()

    # --- start ---

    async def start(self) -> None:
        """Bring every room up. StateError, ListenError; what control says comes later."""
        keeper = self._keeper = Keeper(self._node.state_dir, self._node.control_url, self.clock)
        self._rooms.callback(keeper.close)
        await self._start_engine(keeper.state)
        disco = DiscoPrivate.generate(self.clock.entropy)
        self._start_control(keeper.state, disco.public())
        self._control_task = self._scope.spawn(self._run_control(), "control")
        await asyncio.sleep(0)
        self._start_relays(keeper)
        await asyncio.sleep(0)
        self._start_paths(keeper, disco)
        self._introduce()
        self._scope.spawn(self._watch_endpoints(), "endpoints")
        self._scope.spawn(keeper.keep_saving(), "state")
        self._scope.spawn(self._watch_bugs(), "bugs")

    async def _start_engine(self, state: State) -> None:
        node = self._node
        try:
            self.engine = await Engine.start(
                state.node, port=node.port, mtu=node.mtu, timestamp_floor=state.timestamp_floor
            )
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            tip = "choose another with --port, or 0 for any" if taken else "a limit of the system may be in the way"
            reason = (error.strerror or str(error)).lower()
            raise ListenError(f"UDP port {node.port} cannot be used for the tunnel: {reason}; {tip}") from None
        self._rooms.push_async_callback(self.engine.aclose)
        self.dialer = Dialer(self.engine.connect, node.resolve)

    def _start_relays(self, keeper: Keeper) -> None:
        from meshnode.relay.pool import RelayPool

        node = self._node
        self.pool = RelayPool(
            keeper.state.node,
            clock=self.clock,
            ca_file=node.ca_file,
            allow_insecure=node.insecure_relays,
            plain=node.plain_relays,
        )
        self._rooms.push_async_callback(self.pool.aclose)
        preferred = keeper.state.home_region
        self.home = HomeKeeper(choose=self.pool.set_home, report=self._report_home, preferred=preferred)
        self._rooms.callback(self.home.close)

    def _start_paths(self, keeper: Keeper, disco: DiscoPrivate) -> None:
        from meshnode.underlay.disco import Discovery

        public = keeper.state.node.public()
        self.discovery = Discovery(disco, public, clock=self.clock, loopback_ok=self._node.use_loopback)
        self._rooms.callback(self.discovery.close)

    def _start_control(self, state: State, disco: DiscoPublic) -> None:
        node = self._node
        config = ControlConfig(
            url=node.control_url,
            auth_key=node.auth_key.reveal(),
            known=bool(state.node_id),
            ephemeral=node.ephemeral,
            ca_file=node.ca_file,
            pinned_key=state.control_key,
        )
        self.control = ControlClient(
            config,
            Keys(state.machine, state.node, disco, state.old_node),
            gather(node.hostname or machine_name(), version=__version__, log_id=state.log_id),
            clock=self.clock,
            on_netmap=self._on_netmap,
            on_state=self._on_control_state,
            on_login=self._on_login,
            on_keys=self._on_keys,
            on_pin=self._on_pin,
        )

    def _introduce(self) -> None:
        """Who calls whom."""
        engine, discovery, pool = self.engine, self.discovery, self.pool
        engine.on_relay_send = self._relay_send
        engine.on_peer_send = discovery.on_send
        engine.on_peer_recv = discovery.on_recv
        engine.on_send_error = discovery.on_send_error
        engine.on_handshake = discovery.on_handshake
        discovery.send_relay = pool.send
        discovery.set_path = engine.set_path
        discovery.kick = engine.kick
        discovery.notify = self._on_path
        self._mute_udp(self._node.paths == "relay")
        pool.on_packet = self._on_relay_packet
        pool.on_state = self._on_relay_state
        pool.on_peer_gone = discovery.on_peer_gone
        self._follower = Follower(
            engine=cast(EngineFace, engine),
            on_peer=discovery.on_netmap_peer,
            on_peer_gone=discovery.on_netmap_removed,
            on_relays=self._on_relays,
        )
        self._refresh_endpoints()
        early, self._early = self._early, []
        for netmap, changes in early:
            self._on_netmap(netmap, changes)

    def _mute_udp(self, is_muted: bool) -> None:
        """Without DISCO by UDP no direct path is ever proved, so that relays carry everything."""
        self.engine.on_disco = _unheard if is_muted else self.discovery.on_disco
        self.discovery.send_udp = _unheard if is_muted else self.engine.send_raw

    def set_paths(self, paths: str) -> None:
        """Mute UDP or use it again; every path is looked for anew."""
        self._mute_udp(paths == "relay")
        self.discovery.on_link_change()

    # --- end ---

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
            self._memory.erase()

    async def logout(self, timeout_s: float) -> None:
        """Expire this node at the server, then forget its keys. ControlError: the server did not confirm."""
        await self.control.logout(timeout_s)
        if self._node.ephemeral:
            self._memory.erase()
        else:
            self._memory.start_over()

    async def remember(self) -> None:
        """Save what changed last, if this identity goes on."""
        if self._keeper is not None and hasattr(self, "engine"):
            self._keeper.change(timestamp_floor=self.engine.last_timestamp())
            self._keeper.save()

    @property
    def _memory(self) -> Keeper:
        assert self._keeper is not None, "the house was not started"
        return self._keeper

    async def stop(self) -> None:
        """Close every room, the last opened first."""
        await self._rooms.aclose()

    # --- what rooms say ---

    async def _run_control(self) -> None:
        try:
            await self.control.run()
        except MeshError as error:
            self._on_failure(error)

    async def _watch_bugs(self) -> None:
        """A task that died of something unexpected ends the node, loudly."""
        error = await asyncio.shield(self._scope.failed)
        if isinstance(error, MeshError):
            self._on_failure(error)
        else:
            failure = EngineError(f"a part of the node failed: {type(error).__name__}: {error}; please report this")
            failure.__cause__ = error
            self._on_failure(failure)

    def _on_netmap(self, netmap: Netmap, changes: Changes) -> None:
        if self._follower is None:
            self._early.append((netmap, changes))
            return
        is_first = self.netmap.value is None
        self._follower.apply(netmap, changes)
        self._on_netmap_seen(netmap)
        self.netmap.publish(netmap)
        self._broadcast.publish(NetmapChanged(netmap, changes))
        if is_first:
            own = netmap.self_node
            _log.info("netmap in use", name=own.name, addresses=",".join(map(str, own.ips)), peers=len(netmap.peers))
            self._check_name(netmap)
        if is_first or changes.self_changed:
            own = netmap.self_node
            floor = self.engine.last_timestamp()
            self._memory.change(node_id=own.stable_id, name=own.name, addresses=own.ips, timestamp_floor=floor)

    def _check_name(self, netmap: Netmap) -> None:
        wanted = self._node.hostname.lower()
        if wanted and netmap.self_node.label != wanted:
            _log.warning("control gave us another name than we asked for", wanted=wanted, name=netmap.self_node.name)

    def _on_login(self, result: LoginResult) -> None:
        _log.info("registered", with_auth_key=result.used_auth_key, authorized=result.authorized)

    def _on_control_state(self, state: ControlState) -> None:
        _log.info("control", phase=state.phase.value, **({"reason": state.reason} if state.reason else {}))
        self._broadcast.publish(ControlChanged(state.phase.value, state.reason, state.url))

    def _on_keys(self, keys: Keys) -> None:
        """A rotation was accepted: persist first, then use."""
        self._memory.change(now=True, machine=keys.machine, node=keys.node, old_node=keys.old_node)
        self.engine.set_private_key(keys.node)
        if self._follower is not None:
            self.pool.set_private_key(keys.node)
            self.discovery.set_node_key(keys.node.public())

    def _on_pin(self, key: MachinePublic) -> None:
        self._memory.change(control_key=key)

    def _on_relays(self, relays: Any) -> None:
        self.pool.set_map(relays)
        self.home.on_map(relays)

    def _relay_send(self, region: int, peer: NodePublic, data: bytes) -> bool:
        return self.pool.send(RegionId(region), peer, data)

    def _on_relay_packet(self, region: RegionId, sender: NodePublic, data: bytes) -> None:
        from meshnode.wire.disco import is_disco

        if is_disco(data):
            self.discovery.on_relay_disco(region, sender, data)
        else:
            self.engine.inject(region, sender, data)

    def _on_relay_state(self, region: RegionId, state: RelayState) -> None:
        is_connected = state.value == "connected"
        if is_connected:
            self.discovery.relay_up(region)
        elif state.value == "down":
            self.discovery.relay_down(region)
        self.home.on_relay(region, is_connected)
        _log.info("relay", region=region, state=state.value, home=region == self.home.region)
        self._broadcast.publish(RelayChanged(region, is_connected, region == self.home.region))

    def _report_home(self, region: RegionId) -> None:
        self.control.update(home_region=region)
        self._memory.change(home_region=region)

    def _on_path(self, key: NodePublic, old: str, new: str, reason: str) -> None:
        peer = self._peer_by_key(key)
        if peer is None:
            return
        found = self.discovery.status(key)
        endpoint = found.endpoint if found is not None else None
        way = {"endpoint": str(endpoint)} if endpoint else {}
        _log.info("path", peer=peer.label or key.short, state=new, was=old, reason=reason, **way)
        self._broadcast.publish(PathChanged(peer, old, new, reason, endpoint))

    def _peer_by_key(self, key: NodePublic) -> NetmapNode | None:
        netmap = self.netmap.value
        return next((p for p in netmap.peers.values() if p.key == key), None) if netmap else None

    # --- our endpoints, our state ---

    async def _watch_endpoints(self) -> None:
        while True:
            await asyncio.sleep(ENDPOINTS_EVERY_S)
            self._refresh_endpoints()

    def _refresh_endpoints(self) -> None:
        from meshnode.underlay.endpoints import local_endpoints

        found = tuple(local_endpoints(self.engine.port4, self.engine.port6, loopback_ok=self._node.use_loopback))
        if found == self.endpoints:
            return
        gone = {e.ip for e in self.endpoints} - {e.ip for e in found}
        self.endpoints = found
        self.discovery.set_endpoints(found)
        if gone:
            self.discovery.on_link_change(gone)
        self.control.update(endpoints=[(endpoint, EndpointKind.LOCAL) for endpoint in found])

    # --- questions ---

    async def wait_ready(self) -> None:
        """The netmap is in use, and the home relay connected or given its grace."""
        await self.netmap.until(lambda netmap: netmap is not None)
        assert self._follower is not None
        if self.home.is_needed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELAY_GRACE_S):
                    await self.home.settled.wait()

    def what_it_waits_for(self) -> tuple[str, MeshError | None]:
        """For NotReady: a sentence, and the error that stands in the way."""
        state = self.control.state
        detail = f"; {state.reason}" if state.reason else ""
        return f"{state.phase.value} at {self._node.control_url}{detail}", state.error

    async def ping(self, host: str, timeout_s: float) -> Pong:
        """One DISCO ping to a peer, by name or address."""
        node = self._node.names().node(host)
        netmap = self.netmap.value
        if node is None or netmap is None:
            self._node.resolve(host)  # raises with the nearest names
            raise NameNotFound(f"{host} is a name, but no node's; nothing to ping")
        if node.id == netmap.self_node.id:
            return Pong(node, node.ips[0], 0.0, None, is_self=True)
        result = await self.discovery.ping(node.key, timeout_s)
        region = netmap.relays.regions.get(result.region)
        code = region.code if region else str(result.region)
        return Pong(node, node.ips[0], result.latency_s, result.endpoint, result.region, code)


def machine_name() -> str:
    """The first label of this machine's name, made fit for DNS."""
    label = socket.gethostname().partition(".")[0].lower()
    fit = "".join(c if c.isalnum() and c.isascii() else "-" for c in label).strip("-")[:63]
    return fit or "meshnode"


def _unheard(*_: Any) -> None:
    """Where DISCO by UDP goes while only relays may be used."""
