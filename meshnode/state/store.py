"""State, what a node remembers between runs, and the Store protocol.

One frozen, versioned value. Its JSON text is the same for every store. Reading is strict about what
we wrote (version, keys) and lenient about fields of a newer minor writer: unknown ones are dropped.
Source: behaviours.md D-01: identity first, the auth key only when the identity is no longer good.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self

from meshnode.base.addr import IP, parse_ip
from meshnode.base.errors import KeyFormatError, StateError
from meshnode.base.keys import Entropy, MachinePrivate, MachinePublic, NodePrivate
from meshnode.base.units import Unix

VERSION: Final = 1
TIMESTAMP_LEN: Final = 12


@dataclass(frozen=True, slots=True)
class State:
    """Who we are, to whom, and what must not run backwards."""

    machine: MachinePrivate
    node: NodePrivate
    old_node: NodePrivate | None = None
    control_url: str = ""
    control_key: MachinePublic | None = None
    """The control server's Noise key, as first seen over verified TLS."""
    node_id: str = ""
    """Stable id; '' until control has told us: the node was never registered."""
    name: str = ""
    addresses: tuple[IP, ...] = ()
    log_id: str = ""
    home_region: int = 0
    timestamp_floor: bytes = b""
    """TAI64N of the newest WireGuard initiation; a restart never goes below it."""
    udp_port: int = 0
    """Where peers last knew us; used again if it is free and no other is asked for: what they send there arrives."""
    updated_at: Unix = Unix(0.0)

    @classmethod
    def fresh(cls, entropy: Entropy, control_url: str) -> Self:
        """A new identity that control has never seen."""
        return cls(
            machine=MachinePrivate.generate(entropy),
            node=NodePrivate.generate(entropy),
            control_url=control_url,
            log_id=entropy(32).hex(),
        )

    def moved_to(self, control_url: str, entropy: Entropy) -> State:
        """The same machine at another control server: everything that server said is dropped."""
        fresh = State.fresh(entropy, control_url)
        return replace(fresh, machine=self.machine, log_id=self.log_id, timestamp_floor=self.timestamp_floor)


class Store(Protocol):
    """Keeps one State. Used by one node at a time: `lock` says so."""

    def lock(self) -> None:
        """Claim the store for this process. StateError if another holds it."""

    def load(self) -> State | None:
        """What was saved, None if nothing was. StateError if it cannot be read."""

    def save(self, state: State) -> None:
        """Replace what is saved, wholly or not at all. StateError if it cannot be written."""

    def erase(self) -> None:
        """Forget what was saved."""

    def close(self) -> None:
        """Release the lock."""


def emit_state(state: State) -> str:
    """The JSON text of a state. Holds private keys."""
    record = {
        "version": VERSION,
        "machine_key": state.machine.reveal_text(),
        "node_key": state.node.reveal_text(),
        "old_node_key": state.old_node.reveal_text() if state.old_node else None,
        "control_url": state.control_url,
        "control_key": str(state.control_key) if state.control_key else None,
        "node_id": state.node_id,
        "name": state.name,
        "addresses": [str(ip) for ip in state.addresses],
        "log_id": state.log_id,
        "home_region": state.home_region,
        "timestamp_floor": state.timestamp_floor.hex(),
        "udp_port": state.udp_port,
        "updated_at": state.updated_at,
    }
    return json.dumps(record, indent=1) + "\n"


def parse_state(text: str, where: str) -> State:
    """Read the JSON text. StateError names `where` and what to do, never the content."""
    advice = f"restore it from a backup, or remove it to join as a new node ({where})"
    try:
        record = json.loads(text)
    except ValueError:
        raise StateError(f"the state file is damaged: not JSON; {advice}") from None
    if not isinstance(record, dict) or not isinstance(record.get("version"), int):
        raise StateError(f"the state file is damaged: no version; {advice}")
    if record["version"] > VERSION:
        raise StateError(
            f"the state file has version {record['version']}, this meshnode reads up to {VERSION}; "
            f"use the newer meshnode ({where})"
        )
    try:
        return _build(record)
    except (TypeError, ValueError, OverflowError) as error:
        what = str(error) if isinstance(error, KeyFormatError) else "a field does not parse"
        raise StateError(f"the state file is damaged: {what}; {advice}") from None


def _build(record: dict[str, Any]) -> State:
    old, control = _text(record, "old_node_key"), _text(record, "control_key")
    floor = bytes.fromhex(_text(record, "timestamp_floor"))
    if len(floor) not in (0, TIMESTAMP_LEN):
        raise ValueError("timestamp_floor")
    return State(
        machine=MachinePrivate.parse(_text(record, "machine_key")),
        node=NodePrivate.parse(_text(record, "node_key")),
        old_node=NodePrivate.parse(old) if old else None,
        control_url=_text(record, "control_url"),
        control_key=MachinePublic.parse(control) if control else None,
        node_id=_text(record, "node_id"),
        name=_text(record, "name"),
        addresses=tuple(parse_ip(str(ip)) for ip in record.get("addresses") or ()),
        log_id=_text(record, "log_id"),
        home_region=int(record.get("home_region") or 0),
        timestamp_floor=floor,
        udp_port=_port(record.get("udp_port") or 0),
        updated_at=Unix(float(record.get("updated_at") or 0.0)),
    )


def _port(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError("udp_port")
    return value


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name) or ""
    if not isinstance(value, str):
        raise TypeError(name)
    return value
