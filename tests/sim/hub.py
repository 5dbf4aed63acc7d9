"""A relay's routing as a model: who is here, who has a key, what waits for whom, what is dropped, who is told.

What native/relay says in C with speed in mind is said here plainly; `tests.sim.hub_steps` drives both with the same
steps and compares every frame and every number. Frames are bytes as they lie in a lane, times are milliseconds.

Several connections of one key (the rule that lets neither steal in silence): packets go to the connection that logged
in or spoke last, and nobody is cut off or held back. While there are two at least, each change by speaking is counted;
at the third all connections of the key are told (Health), and who logs in from then on is told at once. When one is
left, it is told that all is well, and the count begins anew.
Source: docs/protocol/paths.md 1.5 to 1.8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from meshnode.wire import derp
from meshnode.wire.disco import is_disco
from tests.sim.hub_client import DATA_BYTES, GONE_BURST, MESH_BYTES, OPEN_NOT_IDEAL, Client, Key
from tests.sim.hub_lane import Lane, Memory

DATA_AGE_MS = 3000
GONE_EVERY_MS = 1000
ROUTES_MAX = 8
FIGHT_CHANGES = 3
MOVE_AFTER_MS = 5000
FIGHT_TEXT = b"another connection uses this node's key; was its state directory copied?"
DEFAULT_MEMORY = 256 << 20

Event = tuple[str, int, int, bytes]
"""(what, which connection, why or kind, payload): what Python is told."""


class Hub:
    """One relay without its sockets."""

    def __init__(self, memory: int = 0, order: Callable[[Iterable[Key]], list[Key]] = list) -> None:
        """order: in which all keys are gone through. Nothing depends on it but the order of notices."""
        self.memory = Memory(memory or DEFAULT_MEMORY)
        self.clients: dict[int, Client] = {}
        self.keys: dict[bytes, Key] = {}
        self.watchers: list[Client] = []
        """Newest first."""
        self.dirty: dict[Client, None] = {}
        """Who has something to write, in order."""
        self.counters: Counter[str] = Counter()
        self.events: list[Event] = []
        self._order = order

    @property
    def now_ms(self) -> int:
        return self.memory.now_ms

    # --- coming and going ---

    def join(self, number: int, key: bytes, opened: int, source: bytes) -> None:
        """A connection has logged in."""
        c = Client(number, key, opened, source, Lane(self.memory), Lane(self.memory), self.now_ms)
        self.clients[number] = c
        self.counters["logins"] += 1
        if not c.is_neighbour:
            entry = self.keys.setdefault(key, Key(key))
            entry.clients.insert(0, c)
            self.counters["dup_conns_total"] += len(entry.clients) > 1
            for watcher in self.watchers:
                self._tell_present(watcher, c)
            if entry.is_fighting:
                self.tell(c, derp.HEALTH, FIGHT_TEXT)
        self.dirty[c] = None

    def leave(self, c: Client, why: int) -> None:
        """A connection has ended: what waits for it is lost, and those who are to know are told."""
        self.events.append(("ended", c.number, why, c.key))
        if c in self.watchers:
            self.watchers.remove(c)
        for source in c.met:
            del self.keys[source].receivers[c]
        self.counters["drop_gone_disconnected"] += len(c.data.frames)
        self.counters["unknown_frames"] += c.skipped
        if c.is_neighbour:
            for entry in self._order(self.keys.values()):
                self.route_remove(c, entry.key)
        else:
            self._leave_key(c)
        c.urgent.clear()
        c.data.clear()
        del self.clients[c.number]
        self.dirty.pop(c, None)

    def _leave_key(self, c: Client) -> None:
        entry = self.keys[c.key]
        entry.clients.remove(c)
        if not entry.clients:
            for watcher in self.watchers:
                self._tell_gone(watcher, c.key, derp.GONE_DISCONNECTED)
        if len(entry.clients) == 1:
            if entry.is_fighting:
                self.tell(entry.clients[0], derp.HEALTH, b"")
            entry.is_fighting, entry.changes = False, 0
        self._drop_if_nowhere(entry)

    def _drop_if_nowhere(self, entry: Key) -> None:
        """Nobody here and no neighbour has the key: who received from it is told, once, the last that met it first."""
        if entry.clients or entry.routes:
            return
        for receiver in reversed(entry.receivers):
            del receiver.met[entry.key]
            self._tell_gone(receiver, entry.key, derp.GONE_DISCONNECTED)
        del self.keys[entry.key]

    def speaks(self, c: Client) -> None:
        """Bytes of this connection have come: it is its key's live one."""
        entry = self.keys.get(c.key)
        if c.is_neighbour or entry is None or entry.clients[0] is c:
            return
        entry.clients.remove(c)
        entry.clients.insert(0, c)
        entry.changes += 1
        if entry.is_fighting or entry.changes < FIGHT_CHANGES:
            return
        entry.is_fighting = True
        self.counters["fights"] += 1
        for each in entry.clients:
            self.tell(each, derp.HEALTH, FIGHT_TEXT)

    def set_home(self, c: Client, is_home: bool) -> None:
        if c.is_home != is_home:
            c.is_home = is_home
            is_move = self.now_ms - c.opened_ms >= MOVE_AFTER_MS
            self.counters["home_moves_in" if is_home else "home_moves_out"] += is_move

    # --- other relays of the region ---

    def watch(self, c: Client) -> None:
        """From now on it hears who comes and goes; first, everybody who is here."""
        if c in self.watchers:
            return
        for entry in self._order(self.keys.values()):
            if entry.clients:
                self._tell_present(c, entry.clients[0])
        self.watchers.insert(0, c)

    def route_add(self, via: Client, key: bytes) -> None:
        """A neighbour says that it has this key."""
        routes = self.keys[key].routes if key in self.keys else []
        if via in routes:
            return
        if len(routes) == ROUTES_MAX:
            self.counters["no_memory"] += 1
            return
        self.keys.setdefault(key, Key(key)).routes.insert(0, via)

    def route_remove(self, via: Client, key: bytes) -> None:
        """It has it no more."""
        entry = self.keys.get(key)
        if entry is not None and via in entry.routes:
            entry.routes.remove(via)
            self._drop_if_nowhere(entry)

    # --- packets ---

    def send(self, c: Client, target: bytes, packet: bytes) -> None:
        """A packet of a client: to the live connection here, else by the newest neighbour, else nowhere."""
        self._count_in(c, packet)
        entry = self.keys.get(target)
        if entry is None:
            self.counters["drop_unknown_dest"] += 1
            if is_disco(packet) and self._may_tell_gone(c):
                self._tell_gone(c, target, derp.GONE_NOT_HERE)
        elif entry.clients:
            self._deliver(entry.clients[0], c.key, packet)
        else:
            via, frame = entry.routes[0], derp.emit_frame(derp.FORWARD_PACKET, c.key + target + packet)
            self._put(via, frame, packet, MESH_BYTES)
            self.counters["forwarded_out"] += 1

    def forward(self, c: Client, source: bytes, target: bytes, packet: bytes) -> None:
        """A packet that a neighbour forwards: delivered here or nowhere, so nothing can go in circles."""
        self._count_in(c, packet)
        self.counters["forwarded_in"] += 1
        entry = self.keys.get(target)
        if entry is not None and entry.clients:
            self._deliver(entry.clients[0], source, packet)
            return
        self.counters["drop_unknown_dest_on_fwd"] += 1
        if self._may_tell_gone(c):
            self._tell_gone(c, target, derp.GONE_NOT_HERE)

    def _count_in(self, c: Client, packet: bytes) -> None:
        c.received += 1
        self.counters["packets_received"] += 1
        self.counters["bytes_received"] += len(packet)
        self.counters["disco_received"] += is_disco(packet)

    def _deliver(self, receiver: Client, source: bytes, packet: bytes) -> None:
        entry = self.keys.get(source)
        if entry is not None:
            entry.receivers.setdefault(receiver)
            receiver.met.setdefault(source)
        receiver.dropped += self._put(receiver, derp.emit_recv(source, packet), packet, DATA_BYTES)

    def _put(self, c: Client, frame: bytes, packet: bytes, data_most: int) -> int:
        """DISCO goes before all data. How many frames were lost."""
        if is_disco(packet):
            lost = c.urgent.put(frame, c.urgent_most)
            self.counters["drop_disco_queue_head"] += lost
        else:
            lost = c.data.put(frame, data_most)
            self.counters["drop_queue_head"] += lost
        self.dirty.setdefault(c)
        return lost

    def _may_tell_gone(self, c: Client) -> bool:
        """One notice a second, three at once."""
        earned = (self.now_ms - c.notices_at_ms) // GONE_EVERY_MS
        c.notices_left = min(GONE_BURST, c.notices_left + earned)
        c.notices_at_ms += earned * GONE_EVERY_MS
        if c.notices_left == 0:
            return False
        c.notices_left -= 1
        return True

    # --- what a connection is told ---

    def tell(self, c: Client, kind: int, payload: bytes) -> None:
        """One frame that goes before all data."""
        self.counters["drop_disco_queue_head"] += c.urgent.put(derp.emit_frame(kind, payload), c.urgent_most)
        self.dirty.setdefault(c)

    def _tell_gone(self, c: Client, key: bytes, why: int) -> None:
        is_end = why == derp.GONE_DISCONNECTED
        self.counters["gone_disconnected_frames" if is_end else "gone_not_here_frames"] += 1
        self.tell(c, derp.PEER_GONE, key + bytes([why]))

    def _tell_present(self, watcher: Client, c: Client) -> None:
        self.tell(watcher, derp.PEER_PRESENT, c.key + c.source + bytes([c.flags]))

    def next_dirty(self) -> int:
        """The next connection to write to, off the list; -1: none."""
        if not self.dirty:
            return -1
        first = next(iter(self.dirty))
        del self.dirty[first]
        return first.number

    def take(self, c: Client, most: int) -> list[bytes]:
        """Frames for one write of at most so many bytes."""
        out, _ = c.urgent.take(most, None)
        if not c.urgent.frames:
            more, old = c.data.take(most - sum(map(len, out)), DATA_AGE_MS)
            out += more
            self.counters["drop_age"] += old
        c.sent += len(out)
        self.counters["packets_sent"] += len(out)
        self.counters["bytes_sent"] += sum(map(len, out))
        return out

    # --- numbers ---

    def gauges(self) -> dict[str, int]:
        """What is the case now, as the relay counts it."""
        local = [len(k.clients) for k in self.keys.values() if k.clients]
        clients = self.clients.values()
        return {
            "clients": len(clients),
            "keys_local": len(local),
            "keys_remote": len(self.keys) - len(local),
            "watchers": len(self.watchers),
            "homes": sum(c.is_home for c in clients),
            "not_ideal": sum(bool(c.opened & OPEN_NOT_IDEAL) and not c.is_neighbour for c in clients),
            "dup_keys": sum(n > 1 for n in local),
            "dup_conns": sum(n for n in local if n > 1),
            "met": sum(len(c.met) for c in clients),
            "lane_chunks": self.memory.used,
            "keys": len(self.keys),
        }
