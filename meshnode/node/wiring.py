"""Who receives whose events: the only map of the house.

Rooms do not know each other; here each is handed the callables of the others, and what needs more than
one of them is done. Nothing here decides about protocol; `follow` and `home` hold the few decisions of
this layer.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.keys import MachinePublic, NodePublic
from meshnode.control.client import ControlState, Keys, LoginResult
from meshnode.engine.engine import KEYS_CLOCK_BEHIND
from meshnode.netmap.model import Changes, Netmap, RelayMap
from meshnode.netmap.model import Node as NetmapNode
from meshnode.node.events import Broadcast, ControlChanged, NetmapChanged, PathChanged, RelayChanged
from meshnode.node.follow import EngineFace, Follower, is_usable, may_change_relay_servers, prefixes_of, relay_servers
from meshnode.node.offloads import offloads
from meshnode.run.log import get_logger

if TYPE_CHECKING:
    from meshnode.node.house import House
    from meshnode.relay.pool import RelayState

_log = get_logger("node")


class Wiring:
    """Introduces the rooms of a House and listens to them."""

    def __init__(self, house: House, broadcast: Broadcast) -> None:
        self._house = house
        self._node = house.node
        self._broadcast = broadcast
        self._follower: Follower | None = None
        self.transitions: Counter[str] = Counter()
        """How often paths came into each state."""
        self._early: list[tuple[Netmap, Changes]] = []
        """Netmaps that came while relays and paths were being loaded."""

    def introduce(self) -> None:
        """Who calls whom."""
        from meshnode.wire.disco import is_disco

        self._is_disco = is_disco
        house = self._house
        engine, discovery, pool = house.engine, house.discovery, house.pool
        engine.on_relay_send = self._relay_send
        engine.on_peer_send = discovery.on_send
        engine.on_peer_recv = discovery.on_recv
        engine.on_send_error = self._on_send_error
        engine.on_handshake = discovery.on_handshake
        engine.on_rebound = self._on_rebound
        engine.on_keys = self._on_keys
        discovery.send_relay = pool.send
        discovery.set_path = engine.set_path
        discovery.kick = engine.kick
        discovery.tell_key = self._tell_disco_key
        engine.on_disco_key = discovery.on_disco_key
        discovery.nudge = engine.nudge
        discovery.notify = self._on_path
        if self._node.disco.port_prediction:
            prediction = discovery.use_prediction()
            prediction.report = lambda: house.reach.report
            prediction.server = lambda: house.reach.netcheck.server
            prediction.send_extra = engine.send_extra
            engine.on_extra_stun = prediction.on_stun
            prediction.set_extra = lambda first, count, wanted: engine.set_extra(first, count, is_open=wanted)
        self._mute_udp(self._node.paths == "relay")
        discovery.allow_relay(self._node.paths != "direct")
        discovery.allow_peer_relays(self._node.paths == "auto")
        pool.on_packet = self._on_relay_packet
        pool.on_state = self._on_relay_state
        pool.on_peer_gone = discovery.on_peer_gone
        self._follower = Follower(
            engine=cast(EngineFace, engine),
            on_peer=discovery.on_netmap_peer,
            on_peer_gone=discovery.on_netmap_removed,
            on_relays=self._on_relays,
        )
        early, self._early = self._early, []
        for netmap, changes in early:
            self.on_netmap(netmap, changes)

    def _mute_udp(self, is_muted: bool) -> None:
        """Without DISCO by UDP no direct path is ever proved, so that relays carry everything."""
        self._house.engine.on_disco = _unheard if is_muted else self._house.discovery.on_disco
        self._house.engine.on_extra = _unheard if is_muted else self._house.discovery.on_extra
        self._house.discovery.send_udp = _unheard if is_muted else self._house.engine.send_raw
        self._house.discovery.send_extra = _unheard if is_muted else self._house.engine.send_extra
        if self._house.discovery.prediction is not None:
            self._house.discovery.prediction.is_paused = is_muted

    def set_paths(self, paths: str) -> None:
        """Mute UDP or use it again; every path is looked for anew."""
        self._mute_udp(paths == "relay")
        self._house.discovery.allow_relay(paths != "direct")
        self._house.discovery.allow_peer_relays(paths == "auto")
        self._house.discovery.on_link_change()

    # --- what rooms say ---

    def on_netmap(self, netmap: Netmap, changes: Changes) -> None:
        """Control: a new netmap. Rooms first, then readers."""
        if self._follower is None:
            self._early.append((netmap, changes))
            return
        house = self._house
        is_first = house.netmap.value is None
        self._follower.apply(netmap, changes)
        if is_first or may_change_relay_servers(changes):
            house.discovery.set_relay_servers(relay_servers(netmap))
        if house.interface is not None:
            self._set_interface(netmap)
        self._node.on_netmap(netmap)
        house.netmap.publish(netmap)
        if is_first or changes.relays_changed:
            house.reach.on_map()
        elif changes.added and len(changes.added) == len(netmap.peers):
            house.reach.on_first_peer()
        self._broadcast.publish(NetmapChanged(netmap, changes))
        if is_first:
            own = netmap.self_node
            _log.info("netmap in use", name=own.name, addresses=",".join(map(str, own.ips)), peers=len(netmap.peers))
            self._check_name(netmap)
        if is_first or changes.self_changed:
            own = netmap.self_node
            house.engine.set_offloads(*offloads(self._node.udp_gso, self._node.udp_gro, own.caps))
            floor = house.engine.last_timestamp()
            house.memory.change(node_id=own.stable_id, name=own.name, addresses=own.ips, timestamp_floor=floor)

    def _set_interface(self, netmap: Netmap) -> None:
        from meshnode.tunnel.interface import layout_of, merging

        house, own = self._house, netmap.self_node
        assert house.interface is not None
        usable = (peer for peer in netmap.peers.values() if is_usable(peer))
        house.interface.apply(layout_of(own.ips, (p for peer in usable for p in prefixes_of(peer))))
        tcp, udp = merging(own.caps)
        house.engine.set_tun_merge(tcp=tcp, udp=udp)

    def _check_name(self, netmap: Netmap) -> None:
        wanted = self._node.hostname.lower()
        if wanted and netmap.self_node.label != wanted:
            _log.warning("control gave us another name than we asked for", wanted=wanted, name=netmap.self_node.name)

    def _on_keys(self, peer: NodePublic, what: int) -> None:
        if what == KEYS_CLOCK_BEHIND:
            _log.warning(
                "this machine's clock is behind the last handshake of this node; handshakes go on, but set the clock"
            )
        else:
            _log.debug("no new WireGuard session for nine minutes; the keys are wiped", peer=peer)

    def _on_send_error(self, endpoint: Endpoint, number: int) -> None:
        self._house.discovery.on_send_error(endpoint, number)
        self._house.links.on_send_error(endpoint.ip, number)

    def _on_rebound(self, number: int) -> None:
        engine = self._house.engine
        if self._house.discovery.prediction is not None:
            self._house.discovery.prediction.on_sockets_lost()
        self._house.links.on_rebound(number)
        if number:
            _log.error("no UDP socket after the change of the network; relays carry everything", errno=number)
        else:
            self._house.memory.change(udp_port=engine.port4 or engine.port6)
            _log.info("UDP sockets renewed after a change of the network", port4=engine.port4, port6=engine.port6)

    def on_login(self, result: LoginResult) -> None:
        """Control: this node is registered."""
        _log.info("registered", with_auth_key=result.used_auth_key, authorized=result.authorized)

    def on_control_state(self, state: ControlState) -> None:
        """Control: another phase."""
        _log.info("control", phase=state.phase.value, **({"reason": state.reason} if state.reason else {}))
        self._house.portal.on_control_state(state)
        self._broadcast.publish(ControlChanged(state.phase.value, state.reason, state.url))

    def on_keys(self, keys: Keys) -> None:
        """Control: a rotation was accepted: persist first, then use."""
        self._house.memory.change(now=True, machine=keys.machine, node=keys.node, old_node=keys.old_node)
        self._house.engine.set_private_key(keys.node)
        if self._follower is not None:
            self._house.pool.set_private_key(keys.node)
            self._house.discovery.set_node_key(keys.node.public())

    def on_pin(self, key: MachinePublic) -> None:
        """Control: the server's key, seen for the first time or proved anew."""
        self._house.memory.change(control_key=key)

    def _on_relays(self, relays: RelayMap) -> None:
        self._house.pool.set_map(relays)
        self._house.home.on_map(relays)

    def _relay_send(self, region: int, peer: NodePublic, data: bytes) -> bool:
        return self._house.pool.send(RegionId(region), peer, data)

    def _on_relay_packet(self, region: RegionId, sender: NodePublic, data: bytes) -> None:
        if self._is_disco(data):
            self._house.discovery.on_relay_disco(region, sender, data)
        else:
            self._house.engine.inject(region, sender, data)

    def _on_relay_state(self, region: RegionId, state: RelayState) -> None:
        is_connected = state.value == "connected"
        if is_connected:
            self._house.discovery.relay_up(region)
        elif state.value == "down":
            self._house.discovery.relay_down(region)
        self._house.home.on_relay(region, is_connected, is_over=state.value in ("down", "closed"))
        if region == self._house.home.region:
            if state.value == "down":
                self._house.reach.on_home_lost()
            elif is_connected:
                self._house.reach.on_home_back()
        _log.info("relay", region=region, state=state.value, home=region == self._house.home.region)
        self._broadcast.publish(RelayChanged(region, is_connected, region == self._house.home.region))

    def on_home(self, region: RegionId) -> None:
        """HomeKeeper: this region is our home and connected."""
        self._house.discovery.set_home(region)
        self._house.control.update(home_region=region)
        self._house.memory.change(home_region=region)

    def _on_path(self, key: NodePublic, old: str, new: str, reason: str) -> None:
        peer = self._peer_by_key(key)
        if peer is None:
            return
        found = self._house.discovery.status(key)
        endpoint = found.endpoint if found is not None else None
        way = {"endpoint": str(endpoint)} if endpoint else {}
        if new != old:
            self.transitions[new] += 1
        _log.info("path", peer=peer.label or key.short, state=new, was=old, reason=reason, **way)
        self._broadcast.publish(PathChanged(peer, old, new, reason, endpoint))

    def _tell_disco_key(self, key: NodePublic) -> None:
        peer = self._peer_by_key(key)
        if peer is not None and peer.ips:
            self._house.engine.tell_disco_key(peer.ips[0], self._house.discovery.public)

    def _peer_by_key(self, key: NodePublic) -> NetmapNode | None:
        netmap = self._house.netmap.value
        return next((p for p in netmap.peers.values() if p.key == key), None) if netmap else None


def _unheard(*_: Any) -> None:
    """Where DISCO by UDP goes while only relays may be used."""
