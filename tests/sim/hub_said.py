"""What a relay's connections say, as a model: frames out of bytes, who may say what, and what silence means.

The counterpart of native/relay/frame.c, input.c and the timers of conn.c, on top of the routing of tests/sim/hub.py.
Source: docs/protocol/paths.md 1.1, 1.2, 1.4.
"""

from __future__ import annotations

from meshnode.wire import derp
from tests.sim.hub import Hub
from tests.sim.hub_client import OPEN_ACKS_PINGS, Client

KEY = 32
PACKET_MAX = 65536
FRAME_MAX = 2 * KEY + PACKET_MAX
SKIP_MAX = 1 << 20
NOTICE_MAX = 16 << 10
MESH_LENGTHS = {derp.FORWARD_PACKET: (2 * KEY, FRAME_MAX), derp.WATCH_CONNS: (0, 0), derp.CLOSE_PEER: (KEY, KEY)}
KEEP_ALIVE_MS, PING_AFTER_MS, PING_WAIT_MS = 60_000, 45_000, 15_000
CLOSED_BY_PEER, SILENT, BROKE_RULES, CLOSE_PEER = 1, 7, 8, 10
"""Why a connection ended."""


class Relay(Hub):
    """A relay without its sockets."""

    def pass_time(self, ms: int) -> None:
        """The clock goes on, and every connection's timer is looked at."""
        self.memory.now_ms += ms
        for c in sorted(self.clients.values(), key=lambda c: c.number):
            silent = self.now_ms - c.heard_ms
            if c.opened & OPEN_ACKS_PINGS and silent >= PING_AFTER_MS:
                if c.was_pinged and silent >= PING_AFTER_MS + PING_WAIT_MS:
                    self.counters["silent"] += 1
                    self.leave(c, SILENT)
                    continue
                if not c.was_pinged:
                    self.tell(c, derp.PING, (self.now_ms * 1_000_000).to_bytes(8, "little"))
                    c.was_pinged = True
            if self.now_ms - c.kept_alive_ms >= KEEP_ALIVE_MS:
                self.tell(c, derp.KEEP_ALIVE, b"")
                c.kept_alive_ms = self.now_ms

    def receive(self, c: Client, data: bytes) -> None:
        """Bytes of its stream of frames, in any pieces."""
        c.heard_ms, c.was_pinged = self.now_ms, False
        self.speaks(c)
        data, c.kept = c.kept + data, b""
        at = 0
        while c.number in self.clients:
            passed = min(c.skip, len(data) - at)
            c.skip -= passed
            at += passed
            if len(data) - at < derp.HEADER_LEN:
                break
            kind, length = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
            is_known = derp.SERVER_KEY <= kind <= derp.FORWARD_PACKET or derp.WATCH_CONNS <= kind <= derp.RESTARTING
            if length > (FRAME_MAX if is_known else SKIP_MAX):
                self._cut_off(c)
                return
            if not is_known:
                c.skipped += 1
                c.skip = length
                at += derp.HEADER_LEN
            elif len(data) - at - derp.HEADER_LEN < length:
                break
            else:
                at += derp.HEADER_LEN + length
                heard = self._on_neighbour_frame if c.is_neighbour else self._on_frame
                if not heard(c, kind, data[at - length : at]) and c.number in self.clients:
                    self._cut_off(c)
                    return
        c.kept = data[at:]

    def _cut_off(self, c: Client) -> None:
        self.counters["protocol_errors"] += 1
        self.leave(c, BROKE_RULES)

    def _on_frame(self, c: Client, kind: int, payload: bytes) -> bool:
        """False: it breaks the rules."""
        length = len(payload)
        if kind == derp.SEND_PACKET:
            if not KEY <= length <= KEY + PACKET_MAX:
                return False
            self.send(c, payload[:KEY], payload[KEY:])
        elif kind in (derp.FORWARD_PACKET, derp.WATCH_CONNS, derp.CLOSE_PEER):
            return self._on_mesh_frame(c, kind, payload)
        elif kind == derp.PING:
            return self._on_ping(c, payload)
        elif kind == derp.NOTE_PREFERRED:
            if length != 1:
                return False
            self.set_home(c, payload != b"\0")
        elif kind == derp.CLIENT_INFO:
            return False
        elif kind != derp.PONG:
            self.counters["unknown_frames"] += 1
        return True

    def _on_mesh_frame(self, c: Client, kind: int, payload: bytes) -> bool:
        """Only for those who know the mesh key."""
        self.counters["mesh_refused"] += not c.may_mesh
        least, most = MESH_LENGTHS[kind]
        if not c.may_mesh or not least <= len(payload) <= most:
            return False
        if kind == derp.FORWARD_PACKET:
            self.forward(c, payload[:KEY], payload[KEY : 2 * KEY], payload[2 * KEY :])
        elif kind == derp.WATCH_CONNS:
            self.watch(c)
        else:
            while payload in self.keys and self.keys[payload].clients:
                self.leave(self.keys[payload].clients[0], CLOSE_PEER)
        return True

    def _on_ping(self, c: Client, payload: bytes) -> bool:
        if not derp.PING_LEN <= len(payload) <= derp.PING_MAX:
            return False
        self.counters["pings_received"] += 1
        self.counters["pongs_sent"] += 1
        self.tell(c, derp.PONG, payload[: derp.PING_LEN])
        return True

    def _on_neighbour_frame(self, c: Client, kind: int, payload: bytes) -> bool:
        """What the other relay of a region says to us, its client."""
        if kind == derp.PEER_PRESENT:
            if len(payload) >= KEY and payload[:KEY] != c.key:
                self.route_add(c, payload[:KEY])
        elif kind == derp.PEER_GONE:
            if len(payload) >= KEY:
                self.route_remove(c, payload[:KEY])
        elif kind == derp.PING:
            return self._on_ping(c, payload)
        elif kind in (derp.HEALTH, derp.RESTARTING, derp.SERVER_INFO) and len(payload) <= NOTICE_MAX:
            self.events.append(("notice", c.number, kind, payload))
        return True
