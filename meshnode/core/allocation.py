"""One allocation at a peer relay: the handshake that binds us to it, and whether our leg of it carries.

Bind goes to every address of the relay, the first Challenge is answered, and the address it came from with the VNI is
our leg, pinged from then on like any other address of the peer. A pong proves it. Until then Bind and pings are
repeated; a leg that carries nothing for the relay's steady lifetime is gone there, and so here.
Source: docs/protocol/paths.md 7.8.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from meshnode.base.addr import Endpoint
from meshnode.base.keys import DiscoPublic, NodePublic
from meshnode.base.units import Seconds
from meshnode.wire.disco import BIND, BIND_ANSWER, CHALLENGE_LEN, Bind, RelayBlock

BIND_GAPS_S: Final = (0.5, 1.0, 2.0)
"""Between Binds that no Challenge answers; the last one repeats."""
PROVE_GAPS_S: Final = (0.3, 0.7, 2.0)
"""Between pings of a leg whose other end may not be bound yet; then we bind anew, for the Answer may be lost."""
HANDSHAKE_MAX_S: Final = 30.0
REBIND_S: Final = 10.0
STEADY_MIN_S: Final = 30.0
STEADY_MAX_S: Final = 3600.0
NO_CHALLENGE: Final = bytes(CHALLENGE_LEN)


class SendBind(NamedTuple):
    """Seal this to the relay and send it by UDP, the control bit set."""

    server: DiscoPublic
    to: Endpoint
    bind: Bind


class Bound(NamedTuple):
    """Ping the peer by this leg."""

    peer: NodePublic
    leg: Endpoint


class Lost(NamedTuple):
    """This leg leads nowhere any more."""

    peer: NodePublic
    leg: Endpoint


class Step(Enum):
    """How far the handshake is."""

    BINDING = auto()
    ANSWERED = auto()
    PROVED = auto()
    OVER = auto()


class Allocation:
    """An allocation for `peer`, ours to bind to."""

    __slots__ = (
        "_gap", "_ways", "block", "due", "generation", "leg", "peer", "proved_at", "remote", "step", "until",
    )  # fmt: skip

    def __init__(
        self, peer: NodePublic, remote: DiscoPublic, block: RelayBlock, ways: tuple[Endpoint, ...], now: Seconds
    ) -> None:
        """remote: the peer's disco key. ways: those addresses of the relay that we are willing to try."""
        self.peer = peer
        self.remote = remote
        self.block = block
        self.leg: Endpoint | None = None
        self.step = Step.BINDING
        self.generation = 0
        self.proved_at: float = -1e9
        self.until: float = now + min(max(block.bind_lifetime_ns / 1e9, 1.0), HANDSHAKE_MAX_S)
        self.due: float = now
        self._ways = tuple(Endpoint(way.ip, way.port, block.vni) for way in ways)
        self._gap = 0

    @property
    def is_working(self) -> bool:
        """Whether its handshake is under way."""
        return self.step in (Step.BINDING, Step.ANSWERED)

    def bind(self, generation: int, now: Seconds) -> list[SendBind | Bound | Lost]:
        """Begin a handshake. A leg we had is asked for first, alone, and pinged: it may be bound all the same."""
        if self.step is Step.PROVED:
            self.until = now + REBIND_S
        self.generation, self.step, self._gap = generation, Step.BINDING, 0
        return self._send_binds((self.leg,) if self.leg else self._ways, now)

    def _send_binds(self, to: tuple[Endpoint, ...], now: Seconds) -> list[SendBind | Bound | Lost]:
        self.due = now + BIND_GAPS_S[min(self._gap, len(BIND_GAPS_S) - 1)]
        self._gap += 1
        message = Bind(BIND, self.block.vni, self.generation, self.remote, NO_CHALLENGE)
        binds: list[SendBind | Bound | Lost] = [SendBind(self.block.server, way, message) for way in to]
        return [*binds, Bound(self.peer, self.leg)] if self.leg is not None else binds

    def on_challenge(self, source: Endpoint, challenge: Bind, now: Seconds) -> list[SendBind | Bound | Lost]:
        """The relay's Challenge. The first of a handshake is answered, and only from a way we asked by."""
        named = (challenge.vni, challenge.generation, challenge.remote)
        is_ours = named == (self.block.vni, self.generation, self.remote) and source.vni == self.block.vni
        if self.step is not Step.BINDING or not is_ours:
            return []
        moved: list[SendBind | Bound | Lost] = []
        if self.leg is not None and self.leg != source:
            moved.append(Lost(self.peer, self.leg))
        self.leg, self.step, self._gap = source, Step.ANSWERED, 0
        answer = Bind(BIND_ANSWER, *named, challenge.challenge)
        return [*moved, SendBind(self.block.server, source, answer), *self._ping(now)]

    def _ping(self, now: Seconds) -> list[SendBind | Bound | Lost]:
        assert self.leg is not None
        self.due = now + PROVE_GAPS_S[self._gap]
        self._gap += 1
        return [Bound(self.peer, self.leg)]

    def on_proved(self, now: Seconds) -> None:
        """A pong of the peer came by our leg."""
        self.step, self.proved_at = Step.PROVED, now
        self.due = now + min(max(self.block.steady_lifetime_ns / 1e9, STEADY_MIN_S), STEADY_MAX_S)

    def on_deadline(self, generation: int, now: Seconds) -> list[SendBind | Bound | Lost]:
        """`due` has come. generation: for a new handshake, if one is needed."""
        if self.step is Step.PROVED or now >= self.until:
            self.step = Step.OVER
            return [Lost(self.peer, self.leg)] if self.leg is not None else []
        if self.step is Step.BINDING:
            return self._send_binds(self._ways, now)
        if self._gap < len(PROVE_GAPS_S):
            return self._ping(now)
        return self.bind(generation, now)
