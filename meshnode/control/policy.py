"""The embedded control server's policy: who may reach what.

A short dialect of Headscale's: each rule lists sources and `destination:ports`; a name is `*`, a
member's label, a user with `@` at its end, a tag, or an address. Rules only allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.base.errors import ConfigError

if TYPE_CHECKING:
    from meshnode.control.tailnet import Member

PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Allow:
    """One rule."""

    sources: tuple[str, ...]
    targets: tuple[tuple[str, int, int], ...]
    """(name, first port, last port)."""
    protocols: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules of a tailnet."""

    rules: tuple[Allow, ...]

    @classmethod
    def allow_all(cls) -> Policy:
        """Everybody may reach everything."""
        return cls((Allow(("*",), (("*", 0, PORT_MAX),)),))

    @classmethod
    def parse(cls, rules: Sequence[Mapping[str, Any]]) -> Policy:
        """From `[{"src": ["*"], "dst": ["web:80,443"], "proto": [6]}]`. ConfigError names what is wrong."""
        return cls(tuple(_allow(rule) for rule in rules))

    def rules_for(self, viewer: Member, members: Iterable[Member]) -> list[dict[str, Any]]:
        """The FilterRules of one member, as JSON."""
        everyone = list(members)
        out: list[dict[str, Any]] = []
        for rule in self.rules:
            ports = [(first, last) for name, first, last in rule.targets if _is(name, viewer)]
            sources = [ip for name in rule.sources for ip in _addresses(name, everyone)]
            if not ports or not sources:
                continue
            targets = [
                {"IP": str(ip), "Ports": {"First": first, "Last": last}} for first, last in ports for ip in viewer.ips
            ]
            out.append({"SrcIPs": sources, "DstPorts": targets, "IPProto": list(rule.protocols) or None})
        return out


def _allow(rule: Mapping[str, Any]) -> Allow:
    sources, targets = rule.get("src"), rule.get("dst")
    if not isinstance(sources, list) or not isinstance(targets, list):
        raise ConfigError("policy: every rule wants the lists src and dst")
    parsed = [part for target in targets for part in _target(str(target))]
    return Allow(tuple(map(str, sources)), tuple(parsed), tuple(int(n) for n in rule.get("proto") or ()))


def _target(text: str) -> Iterable[tuple[str, int, int]]:
    name, colon, ports = text.rpartition(":")
    if not colon or not name:
        raise ConfigError(f"policy: {text!r} has no ports; write NAME:80, NAME:80,443, NAME:1-1024 or NAME:*")
    for part in ports.split(","):
        if part == "*":
            yield name, 0, PORT_MAX
            continue
        first, _, last = part.partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError:
            raise ConfigError(f"policy: {part!r} in {text!r} is no port") from None
        if not 0 <= low <= high <= PORT_MAX:
            raise ConfigError(f"policy: {part!r} in {text!r} is no range of ports")
        yield name, low, high


def _is(name: str, member: Member) -> bool:
    owner = not member.tags and name == f"{member.user}@"
    return name in ("*", member.name, *member.tags, *map(str, member.ips)) or owner


def _addresses(name: str, members: Iterable[Member]) -> list[str]:
    if name == "*":
        return ["*"]
    return [str(ip) for member in members if _is(name, member) for ip in member.ips]
