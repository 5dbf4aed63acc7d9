"""Capabilities as values: fixed commands with named, checked parameters.

Callers choose a capability and values, never words of the command: a value fills its place inside one
word, and may not begin an option where the template does not. `specfile` reads these from a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from meshnode.base import bounds

PLACE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
"""A doubled brace, a {parameter}, or a brace that is neither."""


class ParamError(Exception):
    """A caller's value does not fit; `allowed` lists what would."""

    def __init__(self, message: str, param: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.param = param
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Param:
    """One named value of a capability."""

    name: str
    kind: str
    """string, integer or number."""
    pattern: re.Pattern[str] | None = None
    choices: Mapping[str, tuple[str, ...]] | None = None
    """Value → the words it stands for."""
    low: float | None = None
    high: float | None = None
    max_length: int = 256
    default: Any = None

    def words(self, value: Any) -> tuple[str, ...]:
        """The checked value as words. ParamError says what would fit."""
        if self.choices is not None:
            chosen = self.choices.get(value) if isinstance(value, str) else None
            if chosen is None:
                raise ParamError(f"{self.name} must be one of the listed values", self.name, tuple(self.choices))
            return chosen
        if self.kind == "string":
            return (self._text(value),)
        return (self._number(value),)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ParamError(f"{self.name} must be a string", self.name)
        if len(value) > self.max_length:
            raise ParamError(f"{self.name} is longer than {self.max_length} characters", self.name)
        assert self.pattern is not None
        if "\0" in value or not self.pattern.fullmatch(value):
            raise ParamError(f"{self.name} does not match {self.pattern.pattern}", self.name)
        return value

    def _number(self, value: Any) -> str:
        wanted = int if self.kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value):
            article = "an integer" if self.kind == "integer" else "a number"
            raise ParamError(f"{self.name} must be {article}", self.name)
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise ParamError(f"{self.name} must be {_span(self.low, self.high)}", self.name)
        return str(value)

    def describe(self) -> dict[str, Any]:
        """For `GET /capabilities`."""
        about: dict[str, Any] = {"type": self.kind, "required": self.default is None}
        if self.pattern is not None:
            about["pattern"] = self.pattern.pattern
        if self.choices is not None:
            about["choices"] = list(self.choices)
        about |= {key: value for key, value in (("min", self.low), ("max", self.high)) if value is not None}
        return about if self.default is None else about | {"default": self.default}


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"


@dataclass(frozen=True, slots=True)
class Capability:
    """One fixed command."""

    name: str
    argv: tuple[str, ...]
    description: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    """Programs that must be found; the command itself if the file names none."""
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0
    concurrency: int = 1
    queue: int = 8
    output_max: int = bounds.EXEC_OUTPUT_MAX

    def command(self, values: Mapping[str, Any]) -> list[str]:
        """The argv for a caller's values. ParamError names the parameter that is wrong."""
        for name in values:
            if name not in self.params:
                raise ParamError(f"{name} is no parameter of {self.name}", name, tuple(self.params))
        words: dict[str, tuple[str, ...]] = {}
        for param in self.params.values():
            value = values.get(param.name, param.default)
            if value is None:
                raise ParamError(f"{param.name} is missing", param.name)
            words[param.name] = param.words(value)
        argv: list[str] = []
        for template in self.argv:
            argv += self._fill(template, words)
        return argv

    def _fill(self, template: str, words: Mapping[str, tuple[str, ...]]) -> list[str]:
        place = PLACE.fullmatch(template)
        if place is not None and place.group(1) and self.params[place.group(1)].choices is not None:
            return list(words[place.group(1)])
        filled = PLACE.sub(lambda m: words[m.group(1)][0] if m.group(1) else m.group(0)[0], template)
        if filled.startswith("-") and not template.startswith("-"):
            name = next(m.group(1) for m in PLACE.finditer(template) if m.group(1))
            raise ParamError(f"{name} may not begin with a hyphen", name)
        return [filled]


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole file."""

    capabilities: Mapping[str, Capability]
    concurrency: int = 4
    """Runs at once, all capabilities together."""
    rate: int = 30
    """Requests of one caller within `rate_window_s`."""
    rate_window_s: float = 60.0
