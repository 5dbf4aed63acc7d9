"""Link: one connected stream to a relay, from HTTP upgrade to its end.

States: connected → upgrading → greeted → open → closed. As an asyncio protocol it takes bytes as they
come and writes joined batches; it decides nothing beyond the frames themselves, and leaves the first words to an
Opening. `closed` resolves with the reason when the stream ends, whoever ended it.
Source: docs/protocol/paths.md 1.4, 1.11, 2.2.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Final, cast

from meshnode.base.errors import MeshError, ProtocolError, RelayError
from meshnode.base.keys import KEY_LEN, NodePrivate, NodePublic
from meshnode.core.lanes import Lanes
from meshnode.core.liveness import Liveness, Verdict
from meshnode.engine.link import RelayStream
from meshnode.relay.opening import Opening
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.wire import derp

WRITE_HIGH: Final = 256 * 1024
WRITE_BATCH: Final = 128 * 1024
STREAM_BATCH: Final = 32 * 1024
"""About what is handed to a RelayStream at once."""
HEALTH_MAX: Final = 256
_log = get_logger("relay")


class Phase(Enum):
    """How far a link is."""

    NEW = "new"
    UPGRADING = "upgrading"
    GREETED = "waiting for the relay's greeting"
    OPEN = "open"
    CLOSED = "closed"


class Link(asyncio.Protocol):
    """One stream. `lanes` are its owner's: what they hold survives the link."""

    def __init__(
        self,
        private: NodePrivate,
        lanes: Lanes,
        *,
        clock: Clock,
        region: int = 0,
        on_packet: Callable[[bytes, bytes], None],
        on_gone: Callable[[NodePublic, int], None],
        on_health: Callable[[str], None],
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        """region: whose packets it carries, for a RelayStream. on_packet: (raw sender key, data)."""
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._private = private
        self._frames = derp.Frames(derp.TO_CLIENT)
        self._lanes = lanes
        self._region = region
        self._stream: RelayStream | None = None
        self._is_native = False
        self._on_packet = on_packet
        self._on_gone = on_gone
        self._on_health = on_health
        self._on_sent = on_sent
        self._phase = Phase.NEW
        self._transport: asyncio.Transport | None = None
        self._opening: Opening | None = None
        """None before `login`."""
        self._logged_in: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        """Resolves with why the link ended."""
        self.restart_hint: tuple[float, float] | None = None
        """What the relay announced before it went: (seconds to wait, seconds to try)."""
        self.local_ip = ""
        """Our end's address, as text; '' until the dialler tells."""
        self.rx_bytes = 0
        self.tx_bytes = 0
        self._is_paused = False
        self._flush_due = False
        self._pulse = Liveness(clock.now(), clock.uniform)
        self._pulse_timer: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The stream stands (after TLS)."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._transport = transport
        self._stream = transport if isinstance(transport, RelayStream) else None
        transport.set_write_buffer_limits(high=WRITE_HIGH)

    def data_received(self, data: bytes) -> None:
        """Bytes from the relay."""
        if self._phase is Phase.CLOSED:
            return
        if self._opening is None:
            self._end("it speaks before it is asked: not a relay")
            return
        self.rx_bytes += len(data)
        try:
            if self._phase is Phase.UPGRADING:
                data = self._consume_upgrade(self._opening, data)
                if not data:
                    return
            self._pulse.hear(self._clock.now())
            self._consume_frames(data)
        except (ProtocolError, RelayError) as error:
            self._end(str(error), error)

    def eof_received(self) -> bool:
        """The relay closes without a word; that is how it refuses, too."""
        refused = self._opening is not None and self._opening.is_said and self._opening.info is None
        self._end("the relay closed the connection" + (" without admitting us" if refused else ""))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is gone."""
        self._end(f"the connection broke: {exc}" if exc else "the connection ended")

    def pause_writing(self) -> None:
        """The relay or the network is slower than we: wait, the lanes drop what gets old."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._is_paused = False
        self._flush()

    # --- login ---

    @property
    def is_websocket(self) -> bool:
        """Frames travel inside a WebSocket."""
        return self._opening is not None and self._opening.is_websocket

    @property
    def is_fast(self) -> bool:
        """The login left with the first request: TLS had told the relay's key."""
        return self._opening is not None and self._opening.is_fast

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """For the certificate check, before anything is said."""
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        if tls is None:
            raise RelayError("the connection has no TLS")
        assert isinstance(tls, ssl.SSLObject) or hasattr(tls, "getpeercert")
        return tls  # type: ignore[no-any-return]

    async def login(self, host: str, ideal: str, *, by_websocket: bool = False, told: NodePublic | None = None) -> None:
        """Upgrade, log in, and wait to be admitted; what the lanes hold leaves before that.

        by_websocket: wants a RelayStream, which does the framing. told: the relay's key, if TLS told it.
        UpgradeRefused: HTTP and no upgrade; RelayError or ProtocolError if the other side is no relay or refuses us;
        the caller bounds the wait.
        """
        if self._phase is Phase.CLOSED:
            raise RelayError(self.closed.result())
        opening = self._opening = Opening(
            self._private, host, ideal, entropy=self._clock.entropy, by_websocket=by_websocket, told=told
        )
        self._phase = Phase.UPGRADING
        first = opening.start()
        self._write(first + self._lanes.take(STREAM_BATCH, self._clock.now()) if opening.is_said else first)
        await self._logged_in

    def _consume_upgrade(self, opening: Opening, data: bytes) -> bytes:
        """Returns what already belongs to the frames."""
        rest = opening.receive(data)
        if rest is None:
            return b""
        self._phase = Phase.GREETED
        if opening.is_said:
            self._open()
        if not opening.is_websocket:
            return rest
        assert self._stream is not None
        self._stream.start_websocket(rest)  # it hands their payload on as data
        return b""

    def _consume_frames(self, data: bytes) -> None:
        for kind, payload in self._frames.receive(data):
            self._consume_frame(kind, payload)
        if self._stream is not None and self._phase is Phase.OPEN and not self._is_native:
            self._is_native = True
            self._stream.start_frames(self._region, self._frames.give_up())
            self._flush()

    def _consume_frame(self, kind: int, payload: bytes) -> None:
        if kind == derp.RECV_PACKET:
            if len(payload) >= KEY_LEN:
                self._on_packet(payload[:KEY_LEN], payload[KEY_LEN:])
        elif kind in (derp.SERVER_KEY, derp.SERVER_INFO):
            self._consume_login(kind, payload)
        elif kind == derp.PING:
            self.put_urgent(derp.emit_frame(derp.PONG, payload[: derp.PING_LEN]))
        elif kind == derp.PONG:
            self._pulse.hear_pong(self._clock.now())
        else:
            self._consume_notice(kind, payload)

    def _consume_login(self, kind: int, payload: bytes) -> None:
        assert self._opening is not None
        if kind == derp.SERVER_KEY:
            login = self._opening.greet(payload)
            if login:
                self._write(login)
                self._open()
        else:
            self._opening.admit(payload)
            if not self._logged_in.done():
                self._logged_in.set_result(None)

    def _open(self) -> None:
        self._phase = Phase.OPEN
        self._arm_pulse()
        if self._stream is None:
            self._flush()

    def _consume_notice(self, kind: int, payload: bytes) -> None:
        """What a relay says about itself and others. A frame cut short is dropped, not fatal."""
        try:
            if kind == derp.PEER_GONE:
                self._on_gone(*derp.parse_gone(payload))
            elif kind == derp.HEALTH:
                text = payload[:HEALTH_MAX].decode("utf-8", "replace")
                self._on_health("".join(c if c.isprintable() else " " for c in text).strip())
            elif kind == derp.RESTARTING:
                self.restart_hint = derp.parse_restarting(payload)
        except ProtocolError as error:
            _log.debug("relay frame dropped", error=str(error))

    # --- a stream that moves packets by itself ---

    def frame_received(self, kind: int, payload: bytes) -> None:
        """A frame that is no WireGuard packet."""
        if self._phase is Phase.CLOSED:
            return
        self._pulse.hear(self._clock.now())
        try:
            self._consume_frame(kind, payload)
        except (ProtocolError, RelayError) as error:
            self._end(str(error))

    def pulse(self, heard: bool) -> None:
        """Bytes came or left without our seeing them."""
        if self._phase is Phase.CLOSED:
            return
        if self._stream is not None:
            self.rx_bytes, self.tx_bytes = self._stream.rx_bytes, self._stream.tx_bytes
        now = self._clock.now()
        if heard:
            self._pulse.hear(now)
        elif self._pulse.note_sent(now):
            self._arm_pulse()
        if not heard:
            self._on_sent()

    # --- sending ---

    def put_urgent(self, frame: bytes) -> None:
        """Queue a frame ahead of all data."""
        self._lanes.put_urgent(frame)
        self.schedule_flush()

    def schedule_flush(self) -> None:
        """Something is in the lanes: write it, joined with the rest of this loop turn."""
        is_open = self._phase is Phase.OPEN and (self._stream is None or self._is_native)
        if is_open and not self._flush_due and not self._is_paused:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._phase is not Phase.OPEN or (self._stream is not None and not self._is_native):
            return
        now = self._clock.now()
        wrote = False
        limit = WRITE_BATCH if self._stream is None else STREAM_BATCH
        while not self._is_paused and (batch := self._lanes.take(limit, now)):
            self._write(batch)
            wrote = True
        if wrote and self._pulse.note_sent(now):
            self._arm_pulse()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self.tx_bytes += len(data)
            self._transport.write(data)

    # --- the pulse ---

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip to the relay, from our pings; None before the first."""
        return self._pulse.srtt

    @property
    def heard_at(self) -> float:
        """Loop time of the last frame."""
        return self._pulse.heard_at

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._pulse.note_ping(self._clock.now())
        self.put_urgent(derp.emit_frame(derp.PING, self._clock.entropy(derp.PING_LEN)))

    def ask(self) -> None:
        """Ask now, unless an answer is waited for: asking again would put off the verdict."""
        if self._phase is Phase.OPEN and not self._pulse.is_waiting:
            self.ping()
            self._arm_pulse()

    def check(self) -> None:
        """The network changed or the machine slept: ask now, and do not wait long for the answer."""
        if self._phase is Phase.OPEN:
            self._pulse.check()
            self.ping()
            self._arm_pulse()

    def _arm_pulse(self) -> None:
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        delay = max(0.0, self._pulse.next_deadline() - self._clock.now())
        self._pulse_timer = self._loop.call_later(delay, self._on_pulse)

    def _on_pulse(self) -> None:
        verdict = self._pulse.on_deadline(self._clock.now())
        if verdict is Verdict.DEAD:
            self._end("the relay went silent")
            return
        if verdict is Verdict.PING:
            self.ping()
        self._arm_pulse()

    # --- the end ---

    def abort(self, reason: str = "closed by us") -> None:
        """End it now, from our side."""
        self._end(reason)

    def _end(self, reason: str, error: MeshError | None = None) -> None:
        if self._phase is Phase.CLOSED:
            return
        phase, self._phase = self._phase, Phase.CLOSED
        if phase is Phase.OPEN:
            self._lanes.drop_urgent()  # now: what is said after this moment is for the next link
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self._logged_in.done():
            self._logged_in.set_exception(error or RelayError(reason))
            self._logged_in.exception()  # seen: nobody may wait for it any more
        if not self.closed.done():
            self.closed.set_result(reason)
