"""Relay routing: who is here, whose queue, what to drop first.

A Member is one connection, a key may have several: the last that sent something is the live one, and all
are told when they fight. Queues are Lanes; a member that reads slowly loses its own oldest data and costs
the others nothing. Whoever received from a key that leaves is told once.
Source: docs/protocol/paths.md 1.5 to 1.7.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from meshnode.core.bucket import Bucket
from meshnode.core.lanes import Lanes
from meshnode.wire import derp
from meshnode.wire.disco import is_disco

FIGHT_FLIPS: Final = 3
FIGHT_WINDOW_S: Final = 10.0
FIGHT_TEXT: Final = "another connection uses this node's key; was its state directory copied?"
GONE_PER_S: Final = 1.0
GONE_BURST: Final = 3.0


class Member:
    """One logged-in connection. `lanes` holds what waits for it."""

    __slots__ = ("gone", "is_home", "key", "lanes", "met", "rx_bytes", "tx_bytes")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.lanes = Lanes()
        self.met: set[bytes] = set()
        """Keys that packets were delivered from."""
        self.gone = Bucket(GONE_PER_S, GONE_BURST)
        self.is_home = False
        self.rx_bytes = 0
        self.tx_bytes = 0


class _Key:
    """The connections of one key, the live one last."""

    __slots__ = ("flips", "is_fighting", "members")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.flips: deque[float] = deque(maxlen=FIGHT_FLIPS)
        self.is_fighting = False


class Fanout:
    """The routing table of one relay."""

    def __init__(self) -> None:
        self._keys: dict[bytes, _Key] = {}
        self._live: dict[bytes, Member] = {}
        self._receivers: dict[bytes, set[Member]] = {}
        self.dirty: set[Member] = set()
        """Members whose lanes got something since the owner last emptied this."""
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(k.members) for k in self._keys.values())

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def members(self, key: bytes) -> tuple[Member, ...]:
        """Every connection of a key."""
        entry = self._keys.get(key)
        return tuple(entry.members) if entry else ()

    def add(self, member: Member) -> None:
        """A connection logged in; it becomes its key's live one."""
        entry = self._keys.setdefault(member.key, _Key())
        entry.members.append(member)
        self._live[member.key] = member

    def remove(self, member: Member) -> None:
        """A connection ended; whoever received from its key is told if it was the last one."""
        entry = self._keys.get(member.key)
        if entry is None or member not in entry.members:
            return
        entry.members.remove(member)
        self.dirty.discard(member)
        for source in member.met:
            self._receivers.get(source, set()).discard(member)
        member.met.clear()
        self.counters["gone_disconnected"] += len(member.lanes)
        if entry.members:
            self._live[member.key] = entry.members[-1]
            if len(entry.members) == 1:
                self._end_fight(entry)
            return
        del self._keys[member.key], self._live[member.key]
        frame = derp.emit_gone(member.key, derp.GONE_DISCONNECTED)
        for receiver in self._receivers.pop(member.key, ()):
            receiver.met.discard(member.key)
            self._tell(receiver, frame)

    def send(self, sender: Member, target: bytes, data: bytes, now: float) -> None:
        """Queue a packet for `target`, or tell the sender that nobody has that key here."""
        receiver = self._live.get(target)
        if receiver is None:
            self._refuse(sender, target, data, now)
            return
        source = sender.key
        if source not in receiver.met:
            receiver.met.add(source)
            self._receivers.setdefault(source, set()).add(receiver)
        frame = derp.emit_recv(source, data)
        if is_disco(data):
            receiver.lanes.put_urgent(frame)
        else:
            receiver.lanes.put_data(frame, now)
        self.dirty.add(receiver)

    def _refuse(self, sender: Member, target: bytes, data: bytes, now: float) -> None:
        self.counters["unknown_dest"] += 1
        if is_disco(data) and sender.gone.take(now):
            self._tell(sender, derp.emit_gone(target, derp.GONE_NOT_HERE))

    def _tell(self, member: Member, frame: bytes) -> None:
        member.lanes.put_urgent(frame)
        self.dirty.add(member)

    def note_activity(self, member: Member, now: float) -> None:
        """A connection sent something, so it is its key's live one. Call for each batch of frames."""
        if self._live.get(member.key) is member:
            return
        entry = self._keys.get(member.key)
        if entry is None or member not in entry.members:
            return
        entry.members.remove(member)
        entry.members.append(member)
        self._live[member.key] = member
        entry.flips.append(now)
        fighting = len(entry.flips) == FIGHT_FLIPS and now - entry.flips[0] <= FIGHT_WINDOW_S
        if fighting and not entry.is_fighting:
            entry.is_fighting = True
            self.counters["fights"] += 1
            for each in entry.members:
                self._tell(each, derp.emit_frame(derp.HEALTH, FIGHT_TEXT.encode()))

    def _end_fight(self, entry: _Key) -> None:
        if entry.is_fighting:
            entry.is_fighting = False
            entry.flips.clear()
            self._tell(entry.members[0], derp.emit_frame(derp.HEALTH))
