"""Mapper: keeps one UDP port of ours mapped at one gateway, by NAT-PMP, PCP or UPnP, whichever it speaks.

Owns the order of attempts, the time limits, the lease and its renewal, the gateway's epoch, and what is known of
which protocols it speaks. Takes datagrams, HTTP answers and the time, returns effects; ended by `release`.
Source: docs/protocol/paths.md 5; RFC 6886, RFC 6887.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from ipaddress import IPv4Address
from typing import Final

from meshnode.base.addr import Endpoint
from meshnode.base.errors import RemoteProtocolError
from meshnode.base.units import Seconds
from meshnode.core import portmap_upnp
from meshnode.core.portmap_tenure import AGAIN_S, Tenure
from meshnode.core.portmap_values import (
    LIFETIME_S,
    LOWEST_PORT,
    Answer,
    Effect,
    Gateway,
    Lease,
    Mapped,
    Presence,
    Protocol,
    Search,
    Send,
    refusal_of,
)
from meshnode.core.portmap_watch import Watch
from meshnode.wire import natpmp, pcp
from meshnode.wire.ssdp import Found

ANSWER_S: Final = 0.25
"""For an answer from port 5351."""
SEARCH_S: Final = 2.5
"""For the first answer to a UPnP search: devices wait up to two seconds on purpose."""
SETTLE_S: Final = 0.05
"""For more answers after the first."""
FOUND_MAX: Final = 11
ALL: Final = frozenset(Protocol)
NOT_GRANTED: Final = "the gateway answered, but granted no mapping"

Entropy = Callable[[int], bytes]


class Step(Enum):
    """What the mapper waits for."""

    REST = "the time of the next attempt, check or renewal"
    ASK = "answers from port 5351"
    MAP = "the answer to a PCP mapping request"
    SEARCH = "answers to a UPnP search"
    UPNP = "an HTTP answer"


class Mapper:
    """One port at one gateway. `deadline`: when `on_due` wants to be called."""

    def __init__(
        self, gateway: Gateway, port: int, now: Seconds, *, entropy: Entropy, allowed: frozenset[Protocol] = ALL
    ) -> None:
        self.gateway = gateway
        self.deadline = now
        self._port = port
        self._entropy = entropy
        self._allowed = allowed
        self._watch = Watch()
        self._nonce = entropy(pcp.NONCE_LEN)
        self._step = Step.REST
        self._told: Endpoint | None = None
        self._tenure = Tenure()
        self._asked_at = Seconds(-1e9)
        self._external: natpmp.ExternalReply | None = None
        self._mapped: natpmp.MapReply | None = None
        self._found: list[str] = []
        self._refusal = ""
        self._upnp: portmap_upnp.Steps | None = None
        self._is_checking = False
        self._is_hinted = False
        self._is_pmp_out = False
        self._is_judged_next = False

    @property
    def lease(self) -> Lease | None:
        """What the gateway granted, while it lasts."""
        return self._tenure.lease

    @property
    def reason(self) -> str:
        """Why there is no lease: a sentence."""
        return self._tenure.reason

    def presence(self) -> Presence:
        """Which protocols the gateway speaks, as far as seen."""
        return self._watch.presence()

    # --- what happens ---

    def on_due(self, now: Seconds) -> list[Effect]:
        """The deadline has come."""
        if now < self.deadline:
            return []
        if self._step is Step.REST:
            if self._is_judged_next:
                self._watch.conclude(now)
                self._is_judged_next = False
            return self._on_rest_over(now)
        if self._step is Step.SEARCH and self._found:
            return self._settle(self._begin_upnp(now), now)
        if self._is_checking:
            self._rest(now)
            return []
        return self._settle(self._next(now), now)

    def on_datagram(self, data: bytes, now: Seconds) -> list[Effect]:
        """Something came from the gateway's port 5351."""
        try:
            if data[:1] == bytes((pcp.VERSION,)):
                effects = self._on_pcp(pcp.parse_reply(data), now)
            else:
                effects = self._on_pmp(natpmp.parse_reply(data), now)
        except RemoteProtocolError:
            return []
        return self._settle(effects, now)

    def on_refused(self, now: Seconds) -> list[Effect]:
        """Nobody listens at the gateway's port 5351."""
        if self._step not in (Step.ASK, Step.MAP) or self._is_checking:
            return []
        return self._settle(self._next(now), now)

    def on_found(self, found: Found, now: Seconds) -> list[Effect]:
        """The gateway answered a UPnP search."""
        if Protocol.UPNP not in self._allowed:
            return []
        self._watch.saw(Protocol.UPNP, now)
        is_first = not self._found
        if found.location not in self._found and len(self._found) < FOUND_MAX:
            self._found.append(found.location)
        if self._step is Step.SEARCH and is_first:
            self.deadline = Seconds(now + SETTLE_S)
        return []

    def on_answer(self, answer: Answer, now: Seconds) -> list[Effect]:
        """What a Fetch brought."""
        if self._step is not Step.UPNP or self._upnp is None:
            return []
        return self._settle(self._advance(answer, now), now)

    def on_hint(self, now: Seconds) -> list[Effect]:
        """Something may have changed at the gateway: it said so, or STUN did. A lease is renewed at once.

        Who said it is not known, so nothing is given up for it, and it is heeded once in a while only.
        """
        if self._step is Step.REST:
            self._is_hinted = True
            self.deadline = Seconds(min(self.deadline, max(now, self._asked_at + AGAIN_S[0])))
        return self.on_due(now)

    def on_link_change(self, now: Seconds) -> list[Effect]:
        """Another network, perhaps with a gateway of the same address: whatever was granted was granted elsewhere."""
        self._upnp = None
        self._tenure.lose("the network changed")
        return self._settle(self._ask(now), now)

    def release(self) -> list[Effect]:
        """Give the mapping back; nobody waits for answers."""
        lease = self.lease
        self._tenure.lose("given back")
        self._step, self._upnp = Step.REST, None
        if lease is None:
            return []
        if lease.igd is not None:
            return [portmap_upnp.delete(lease.igd, lease.external.port)]
        return [self._deletion(lease.protocol)]

    # --- attempts ---

    def _on_rest_over(self, now: Seconds) -> list[Effect]:
        lease = self.lease
        if lease is None:
            return self._settle(self._ask(now), now)
        if now >= lease.until:
            self._tenure.lose("the lease ended and could not be renewed")
            return self._settle(self._ask(now), now)
        if now >= lease.renew_at or self._is_hinted:
            return self._settle(self._renew(lease, now), now)
        return self._check(lease, now)

    def _ask(self, now: Seconds) -> list[Effect]:
        """Ask for everything that is allowed, at once."""
        self._begin(Step.ASK, ANSWER_S, now)
        self._found, self._refusal = [], ""
        effects: list[Effect] = []
        if Protocol.PMP in self._allowed:
            effects += self._pmp_requests()
        if Protocol.PCP in self._allowed:
            effects.append(Send(pcp.emit_announce(self.gateway.client)))
        if Protocol.UPNP in self._allowed:
            effects.append(Search())
        self._watch.asked(self._allowed)
        self._is_judged_next = True
        return effects

    def _renew(self, lease: Lease, now: Seconds) -> list[Effect]:
        self._begin(Step.ASK, ANSWER_S, now)
        if lease.protocol is Protocol.PMP:
            return self._pmp_requests()
        if lease.protocol is Protocol.PCP:
            return self._map_by_pcp(now)
        assert lease.igd is not None
        self._upnp = portmap_upnp.renew(
            lease.igd, self.gateway.client, self._port, lease.external.port, self._random_port
        )
        return self._advance(None, now)

    def _check(self, lease: Lease, now: Seconds) -> list[Effect]:
        """Look whether the gateway still knows us."""
        if lease.protocol is Protocol.UPNP:
            return self._settle(self._renew(lease, now), now)
        self._begin(Step.ASK, ANSWER_S, now)
        self._is_checking = True
        if lease.protocol is Protocol.PMP:
            return [Send(natpmp.emit_external_request())]
        return [Send(pcp.emit_announce(self.gateway.client))]

    def _begin(self, step: Step, limit_s: float, now: Seconds) -> None:
        self._step, self.deadline, self._asked_at = step, Seconds(now + limit_s), now
        self._external = self._mapped = None
        self._is_checking = self._is_hinted = False
        self._is_pmp_out = Protocol.PMP not in self._allowed

    def _pmp_requests(self) -> list[Effect]:
        port = self._tenure.wish or self._port
        return [Send(natpmp.emit_external_request()), Send(natpmp.emit_map_request(self._port, port, LIFETIME_S))]

    def _map_by_pcp(self, now: Seconds) -> list[Effect]:
        self._step, self.deadline = Step.MAP, Seconds(now + ANSWER_S)
        wish = self._tenure.wish or self._port
        return [Send(pcp.emit_map_request(self.gateway.client, self._nonce, self._port, wish, LIFETIME_S))]

    def _next(self, now: Seconds) -> list[Effect]:
        """This protocol brought nothing: the next one, or rest."""
        if self.lease is None:
            if self._step is Step.ASK and self._watch.is_present(Protocol.PCP, now):
                return self._map_by_pcp(now)
            if self._step in (Step.ASK, Step.MAP) and Protocol.UPNP in self._allowed:
                self._step = Step.SEARCH
                self.deadline = Seconds(now + SETTLE_S if self._found else self._asked_at + SEARCH_S)
                return []
            self._watch.conclude(now)
            is_silent = not self._refusal and not self._watch.is_anyone_present(now)
            silence = f"the gateway {self.gateway.ip} speaks none of NAT-PMP, PCP and UPnP"
            self._tenure.reason = silence if is_silent else self._refusal or NOT_GRANTED
        self._tenure.failures += 1
        self._rest(now)
        return []

    def _begin_upnp(self, now: Seconds) -> list[Effect]:
        client, wish = self.gateway.client, self._tenure.wish
        self._upnp = portmap_upnp.obtain(self._found, client, self._port, wish, self._random_port)
        return self._advance(None, now)

    def _advance(self, answer: Answer | None, now: Seconds) -> list[Effect]:
        assert self._upnp is not None
        self._step, self.deadline = Step.UPNP, Seconds(float("inf"))
        try:
            return [next(self._upnp) if answer is None else self._upnp.send(answer)]
        except StopIteration as stop:
            outcome: portmap_upnp.Outcome = stop.value
        self._upnp = None
        if isinstance(outcome, portmap_upnp.Granted):
            self._watch.saw(Protocol.UPNP, now)
            service, external, lifetime = outcome
            self._tenure.hold(Protocol.UPNP, external, self._port, lifetime or LIFETIME_S, now, service)
            self._rest(now)
            return []
        self._refusal = outcome.reason
        self._tenure.lose(outcome.reason)
        return self._next(now)

    def _random_port(self) -> int:
        return LOWEST_PORT + int.from_bytes(self._entropy(4), "big") % (65536 - LOWEST_PORT)

    # --- answers from port 5351 ---

    def _on_pmp(self, reply: natpmp.Reply, now: Seconds) -> list[Effect]:
        if Protocol.PMP not in self._allowed:
            return []
        self._note_epoch(Protocol.PMP, reply.epoch, now)
        if isinstance(reply, natpmp.Refusal):
            if reply.result != natpmp.Result.UNSUPPORTED_VERSION:
                self._refusal = f"the gateway refused by NAT-PMP, result {reply.result}"
            self._is_pmp_out = True
            return self._next(now) if self._is_turn_of_pcp(now) else []
        self._watch.saw(Protocol.PMP, now)
        if isinstance(reply, natpmp.ExternalReply):
            self._external = reply
        elif reply.internal_port == self._port and reply.lifetime:
            self._mapped = reply
        if self._is_checking and self._external is not None:
            return self._end_check(self._external.ip, now)
        if self._step in (Step.ASK, Step.SEARCH) and self._external is not None and self._mapped is not None:
            mapped = self._mapped
            return self._take(Protocol.PMP, Endpoint(self._external.ip, mapped.external_port), mapped.lifetime, now)
        return []

    def _on_pcp(self, reply: pcp.Reply, now: Seconds) -> list[Effect]:
        if Protocol.PCP not in self._allowed:
            return []
        self._note_epoch(Protocol.PCP, reply.epoch, now)
        if isinstance(reply, pcp.Refusal):
            return self._on_pcp_refusal(reply, now)
        self._watch.saw(Protocol.PCP, now)
        if isinstance(reply, pcp.AnnounceReply):
            if self._is_checking:
                return self._end_check(None, now)
            return self._next(now) if self._is_turn_of_pcp(now) else []
        is_ours = reply.nonce == self._nonce and reply.internal_port == self._port and reply.lifetime > 0
        if self._step is Step.MAP and is_ours and reply.external_ip.version == 4:
            external = Endpoint(reply.external_ip, reply.external_port)
            return self._take(Protocol.PCP, external, reply.lifetime, now)
        return []

    def _is_turn_of_pcp(self, now: Seconds) -> bool:
        is_asking = self._step is Step.ASK and not self._is_checking
        return is_asking and self._is_pmp_out and self._watch.is_present(Protocol.PCP, now)

    def _end_check(self, ip: IPv4Address | None, now: Seconds) -> list[Effect]:
        """The gateway still answers. ip: its address, if it said."""
        if self.lease is not None and ip is not None and self.lease.external.ip != ip:
            self._tenure.lose("the gateway's address changed")
        if self.lease is None:
            return self._ask(now)
        self._rest(now)
        return []

    def _on_pcp_refusal(self, reply: pcp.Refusal, now: Seconds) -> list[Effect]:
        if reply.result == pcp.Result.UNSUPPORTED_VERSION:
            return []
        self._refusal = f"the gateway refused by PCP, result {reply.result}"
        if reply.result == pcp.Result.ADDRESS_MISMATCH:
            self._refusal = "another NAT stands between this machine and the gateway (PCP address mismatch)"
        if self._step is Step.MAP and reply.is_map:
            self._watch.forget(Protocol.PCP)
            return self._next(now)
        return []

    # --- the lease ---

    def _take(self, protocol: Protocol, external: Endpoint, lifetime: int, now: Seconds) -> list[Effect]:
        """The gateway granted this; if it is of no use, it is given back."""
        assert isinstance(external.ip, IPv4Address)
        refusal = refusal_of(external.ip, external.port)
        effects = [self._deletion(protocol)] if refusal else []
        if refusal:
            self._tenure.refuse(refusal)
        else:
            self._tenure.hold(protocol, external, self._port, lifetime, now)
        self._rest(now)
        return effects

    def _deletion(self, protocol: Protocol) -> Effect:
        if protocol is Protocol.PMP:
            return Send(natpmp.emit_map_request(self._port, 0, 0))
        return Send(pcp.emit_map_request(self.gateway.client, self._nonce, self._port, 0, 0))

    def _rest(self, now: Seconds) -> None:
        self._step, self._is_checking = Step.REST, False
        self.deadline = self._tenure.next_at(now)

    def _note_epoch(self, protocol: Protocol, epoch: int, now: Seconds) -> None:
        """A gateway whose epoch ran backwards has forgotten us."""
        has_reset = self._watch.has_reset(protocol, epoch, now)
        if has_reset and self.lease is not None and self.lease.protocol is protocol:
            self._tenure.lose("the gateway restarted")

    def _settle(self, effects: list[Effect], now: Seconds) -> list[Effect]:
        """Tell a changed endpoint, once."""
        external = self.lease.external if self.lease is not None else None
        if external == self._told:
            return effects
        self._told = external
        return [*effects, Mapped(external)]
