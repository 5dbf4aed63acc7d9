"""WireGuard in small: sessions, handshakes and keepalives of one pair, without a cipher.

Enough of it that what depends on WireGuard is true here as well: a restarted peer understands nothing until
a handshake, a receiver of data answers within ten seconds, initiations alternate between two paths and are
never doubled, an answer goes where its question came from, and a copy that
arrives second proves its path and is nothing else.
Source: docs/protocol/dataplane.md 1.10.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from meshnode.base.addr import Endpoint
from meshnode.core.path_values import What
from tests.sim.link import Wg

if TYPE_CHECKING:
    from tests.sim.node import SimNode

DATA, KEEPALIVE, INITIATION, RESPONSE = "data", "keepalive", "initiation", "response"
KEEPALIVE_S: Final = 10.0
RETRANSMIT_S: Final = 5.0
NEW_HANDSHAKE_S: Final = 15.0
REKEY_S: Final = 120.0
GIVE_UP_AFTER: Final = 20
STAGED_MAX: Final = 16
SMALL: Final = 128
NEVER: Final = float("inf")


class Tunnel:
    """One node's end of the tunnel to one peer."""

    def __init__(self, node: SimNode, peer: SimNode) -> None:
        self.node = node
        self.peer = peer
        self.current = 0
        self.others: deque[int] = deque(maxlen=4)
        """Sessions before, and those not used by their initiators yet."""
        self.is_initiator = False
        self.made_at = 0.0
        self.attempts = 0
        self.asked = 0
        self.needs_another_keepalive = False
        self.seen: set[int] = set()
        self.staged: deque[Wg] = deque(maxlen=STAGED_MAX)
        self.due: dict[Callable[[], None], float] = {}
        self._wakes_at = NEVER

    def establish(self, session: int, *, is_initiator: bool) -> None:
        """A session without a handshake, for worlds in which two know each other already."""
        self.current, self.is_initiator, self.made_at = session, is_initiator, self.node.now

    # out

    def send(self, number: int, size: int) -> int:
        """One data packet; how many copies went out."""
        if self.current == 0:
            self.staged.append(Wg(DATA, 0, number, size))
            self.initiate()
            return 0
        if self.is_initiator and self.node.now - self.made_at > REKEY_S:
            self.initiate()
        return self._transmit(Wg(DATA, self.current, number, size))

    def initiate(self) -> None:
        """Begin a handshake, unless one is under way."""
        if self._retransmit not in self.due:
            self.attempts = 0
            self._send_initiation()

    def _transmit(self, packet: Wg) -> int:
        self.due.pop(self._send_keepalive, None)
        if packet.kind == DATA and self._new_handshake not in self.due:
            self._arm(self._new_handshake, NEW_HANDSHAKE_S + self.node.world.dice.uniform(0.0, 0.33))
        return self.node.send_by_plan(self.peer, packet)

    def _send_initiation(self) -> None:
        self.asked = self.node.world.dice.getrandbits(62) | 1
        self._arm(self._retransmit, RETRANSMIT_S + self.node.world.dice.uniform(0.0, 0.33))
        self.node.send_initiation(self.peer, Wg(INITIATION, self.asked, 0, 176), self.attempts)

    def _retransmit(self) -> None:
        self.attempts += 1
        if self.attempts > GIVE_UP_AFTER:
            self.staged.clear()
            self.node.discovery.on_handshake(self.peer.key, False)
        else:
            self._send_initiation()

    def _new_handshake(self) -> None:
        self.initiate()

    def _send_keepalive(self) -> None:
        if self.current:
            self.node.serial += 1
            self._transmit(Wg(KEEPALIVE, self.current, self.node.serial, SMALL))
        if self.needs_another_keepalive:
            self.needs_another_keepalive = False
            self._arm(self._send_keepalive, KEEPALIVE_S)

    # in

    def receive(self, packet: Wg, source: Endpoint | None, region: int) -> What | None:
        """What an authentic packet was, a copy of one that came before counting as a keepalive; None: not authentic."""
        if packet.kind == INITIATION:
            self.others.append(packet.session)
            self.node.send_answer(self.peer, Wg(RESPONSE, packet.session, 0, 120), source, region)
            return What.HANDSHAKE
        if packet.kind == RESPONSE:
            return self._take_response(packet)
        if packet.session == self.current and packet.session:
            pass
        elif packet.session in self.others:
            self._promote(packet.session)
        else:
            return None
        if packet.number in self.seen:
            return What.KEEPALIVE
        self.seen.add(packet.number)
        self.due.pop(self._new_handshake, None)
        if packet.kind == KEEPALIVE:
            return What.KEEPALIVE
        if self._send_keepalive in self.due:
            self.needs_another_keepalive = True
        else:
            self._arm(self._send_keepalive, KEEPALIVE_S)
        return What.DATA

    def _promote(self, session: int) -> None:
        """The initiator uses its session; a packet of the one before changes nothing."""
        if session == self.others[-1]:
            self.others.pop()
            self.others.append(self.current)
            self.current, self.is_initiator, self.made_at = session, False, self.node.now
            self._flush()

    def _take_response(self, packet: Wg) -> What | None:
        if packet.session != self.asked:
            return None
        self.others.append(self.current)
        self.current, self.asked, self.is_initiator, self.made_at = packet.session, 0, True, self.node.now
        self.due.pop(self._retransmit, None)
        self.due.pop(self._new_handshake, None)
        self.node.discovery.on_handshake(self.peer.key, True)
        if not self.staged:
            self._send_keepalive()
        self._flush()
        return What.HANDSHAKE

    def _flush(self) -> None:
        while self.staged and self.current:
            packet = self.staged.popleft()
            self._transmit(packet._replace(session=self.current))

    # time

    def _arm(self, what: Callable[[], None], delay_s: float) -> None:
        at = self.node.now + delay_s
        self.due[what] = at
        if at < self._wakes_at:
            self._wakes_at = at
            self.node.call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        now = self.node.now
        self._wakes_at = NEVER
        for what in [w for w, at in self.due.items() if at <= now + 1e-9]:
            if self.due.pop(what, None) is not None:
                what()
        if self.due:
            at = min(self.due.values())
            if at < self._wakes_at:
                self._wakes_at = at
                self.node.call_later(max(0.0, at - now), self._on_time)
