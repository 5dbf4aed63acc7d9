"""Pings that a person asked for: matched by txid, answered once, bounded in time.

Source: docs/protocol/paths.md 6.3, 6.5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshnode.base.addr import Endpoint, RegionId
from meshnode.base.errors import PeerOffline, TimedOut
from meshnode.base.units import Seconds
from meshnode.run.clock import Clock
from meshnode.underlay.peers import Known
from meshnode.wire.disco import TXID_LEN

AGAIN_S: Final = 1.0
WAITING_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class PingResult:
    """How a DISCO ping came back."""

    endpoint: Endpoint | None
    """The direct endpoint that answered; None: by relay."""
    region: RegionId
    """The relay region that carried it; 0: direct."""
    latency_s: float


@dataclass(slots=True)
class _Sent:
    peer: Known
    endpoint: Endpoint | None
    region: RegionId
    at: Seconds


class Pings:
    """The pings in flight."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent: dict[bytes, _Sent] = {}
        self._waiting: dict[Known, list[asyncio.Future[PingResult]]] = {}

    def begin(self, peer: Known, endpoint: Endpoint | None, region: RegionId) -> bytes:
        """A txid for one ping about to be sent."""
        if len(self._sent) >= WAITING_MAX:
            del self._sent[next(iter(self._sent))]
        txid = self._clock.entropy(TXID_LEN)
        self._sent[txid] = _Sent(peer, endpoint, region, self._clock.now())
        return txid

    def answer(self, txid: bytes, now: Seconds) -> bool:
        """A pong came; True if it was for one of these. The first answer serves everybody who waits."""
        sent = self._sent.pop(txid, None)
        if sent is None:
            return False
        result = PingResult(sent.endpoint, sent.region, now - sent.at)
        for future in self._waiting.get(sent.peer, ()):
            if not future.done():
                future.set_result(result)
        return True

    async def ask(self, peer: Known | None, send: Callable[[Known, bool], bool], timeout_s: float) -> PingResult:
        """`send(peer, is_first)` once a second until something answers. TimedOut; PeerOffline: no way at all."""
        if peer is None:
            raise PeerOffline("that node is not, or no longer, in the netmap; see `meshnode status`")
        if peer.disco is None:
            raise PeerOffline("that node has not been online yet, so it cannot be pinged")
        future: asyncio.Future[PingResult] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, []).append(future)
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    sent = send(peer, not sent) or sent
                    done, _ = await asyncio.wait({future}, timeout=AGAIN_S)
                    if done:
                        return future.result()
        except TimeoutError:
            if not sent:
                raise PeerOffline("no relay and no address of that node is known; is it online?") from None
            raise TimedOut(f"no answer within {timeout_s:g} s; is the node online?") from None
        finally:
            self._forget(peer, future)

    def _forget(self, peer: Known, future: asyncio.Future[PingResult]) -> None:
        waiting = self._waiting.get(peer, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiting.pop(peer, None)
            self._sent = {t: s for t, s in self._sent.items() if s.peer is not peer}

    def close(self) -> None:
        """Whoever waits is told that nothing will come."""
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(PeerOffline("this node is shutting down"))
        self._sent.clear()
