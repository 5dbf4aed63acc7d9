"""The capability file: fixed commands with named, checked parameters.

    [capabilities.probe]
    argv = ["ffprobe", "-v", "error", "-show_format", "media/{name}"]
    timeout_s = 30
    [capabilities.probe.params.name]
    type = "string"
    pattern = "[a-z0-9_-]{1,64}\\\\.mp4"

TOML or JSON of the same shape. Callers choose a capability and values, never words of the command: a
value fills its place inside one word, and may not begin an option where the template does not. A
string needs a pattern or choices; choices may stand for several words. Every mistake in the file is a
ConfigError with the field and its line.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from meshnode.base import bounds
from meshnode.base.errors import ConfigError
from meshnode.serve.spec import PLACE, Capability, Param, ParamError, Spec

SPEC_MAX: Final = 1 << 20
CAPABILITIES_MAX: Final = 256
VALUE_MAX: Final = 4096
WORDS_MAX: Final = 1024
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PARAM: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def load_spec(path: Path) -> Spec:
    """Read and check the file. ConfigError names the field and its line."""
    try:
        with open(path, "rb") as file:
            raw = file.read(SPEC_MAX + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(f"spec: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"spec: {path} is not text") from None
    if len(raw) > SPEC_MAX:
        raise ConfigError(f"spec: {path} is larger than {SPEC_MAX >> 20} MiB")
    return parse_spec(text, str(path))


def parse_spec(text: str, name: str) -> Spec:
    """The spec in `text`; `name` is the file's, its ending decides the format."""
    return _Reader(text, name).spec()


class _Reader:
    """Walks the parsed file; knows the line of each field."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._lines = text.splitlines()
        try:
            self.tree: Any = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"spec: not valid JSON: {error.msg.lower()}  ({name}:{error.lineno})") from None
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"\(at line (\d+), column \d+\)", str(error))
            where = f"{name}:{found.group(1)}" if found else name
            sentence = str(error).partition(" (at ")[0]
            raise ConfigError(f"spec: not valid TOML: {sentence[:1].lower()}{sentence[1:]}  ({where})") from None
        except RecursionError:
            raise ConfigError(f"spec: {name} is nested too deeply") from None

    def spec(self) -> Spec:
        """Check everything."""
        top = self._table((), self.tree, {"server", "capabilities"})
        server = self._table(("server",), top.get("server", {}), {"concurrency", "rate", "rate_window_s"})
        tables = self._table(("capabilities",), top.get("capabilities", {}), None)
        if not tables:
            raise ConfigError(f"spec: the file names no capability; write [capabilities.NAME]  ({self.name})")
        if len(tables) > CAPABILITIES_MAX:
            raise ConfigError(f"spec: more than {CAPABILITIES_MAX} capabilities  ({self.name})")
        return Spec(
            {name: self._capability(name, table) for name, table in tables.items()},
            concurrency=self._int(("server", "concurrency"), server.get("concurrency", 4), 1, 1024),
            rate=self._int(("server", "rate"), server.get("rate", 30), 1, 100_000),
            rate_window_s=self._seconds(("server", "rate_window_s"), server.get("rate_window_s", 60.0)),
        )

    def _capability(self, name: str, value: Any) -> Capability:
        path = ("capabilities", name)
        if not _NAME.fullmatch(name):
            self._fail(path, "is no name; use lower-case letters, digits, dots and hyphens")
        known = {"argv", "description", "params", "requires", "env", "timeout_s", "concurrency", "queue", "output_max"}
        table = self._table(path, value, known)
        params = {
            key: self._param((*path, "params", key), key, body)
            for key, body in self._table((*path, "params"), table.get("params", {}), None).items()
        }
        argv = self._argv((*path, "argv"), table.get("argv"), params)
        env = self._table((*path, "env"), table.get("env", {}), None)
        if any("\0" in text for pair in env.items() for text in pair if isinstance(text, str)):
            self._fail((*path, "env"), "holds a NUL character")
        description = table.get("description", "")
        if not isinstance(description, str):
            self._fail((*path, "description"), "must be a text")
        return Capability(
            name,
            argv,
            description=description,
            params=params,
            requires=self._texts((*path, "requires"), table.get("requires", [argv[0]])),
            env=dict(zip(env, self._texts((*path, "env"), list(env.values())), strict=True)),
            timeout_s=self._seconds((*path, "timeout_s"), table.get("timeout_s", 60.0)),
            concurrency=self._int((*path, "concurrency"), table.get("concurrency", 1), 1, 1024),
            queue=self._int((*path, "queue"), table.get("queue", 8), 0, 1024),
            output_max=self._int((*path, "output_max"), table.get("output_max", bounds.EXEC_OUTPUT_MAX), 0, 64 << 20),
        )

    def _argv(self, path: tuple[str, ...], value: Any, params: Mapping[str, Param]) -> tuple[str, ...]:
        if isinstance(value, str):
            self._fail(path, 'must be a list of words, as ["ffprobe", "{name}"]; there is no shell here')
        argv = self._texts(path, value if value is not None else [])
        if not argv or not argv[0] or len(argv) > WORDS_MAX:
            self._fail(path, f"must be a list of 1 to {WORDS_MAX} words, the program first")
        used: set[str] = set()
        for number, word in enumerate(argv):
            for place in self._places(path, word):
                if number == 0:
                    self._fail(path, "the program itself must be fixed, without a {parameter}")
                if place not in params:
                    self._fail(path, f"{{{place}}} is no parameter{_near(place, params)}")
                choices = params[place].choices
                if choices is not None and word != f"{{{place}}}" and any(len(c) != 1 for c in choices.values()):
                    self._fail(path, f"{{{place}}} may stand for several words and must be a word of its own")
                used.add(place)
        if unused := sorted(set(params) - used):
            self._fail((*path[:-1], "params", unused[0]), "is never used in argv")
        return argv

    def _places(self, path: tuple[str, ...], word: str) -> Iterator[str]:
        if "\0" in word:
            self._fail(path, "holds a NUL character")
        for match in PLACE.finditer(word):
            if match.group(0) in ("{", "}") or match.group(1) == "":
                self._fail(path, f"{word!r} has a lone brace; write {{{{ and }}}} for braces")
            if match.group(1):
                yield match.group(1)

    def _param(self, path: tuple[str, ...], name: str, value: Any) -> Param:
        if not _PARAM.fullmatch(name):
            self._fail(path, "is no name; use lower-case letters, digits and underscores")
        table = self._table(path, value, {"type", "pattern", "choices", "min", "max", "max_length", "default"})
        kind = table.get("type", "string")
        if kind not in ("string", "integer", "number"):
            self._fail((*path, "type"), f"{kind!r} is none of string, integer, number")
        choices = self._choices((*path, "choices"), table["choices"]) if "choices" in table else None
        pattern = self._pattern((*path, "pattern"), table["pattern"]) if "pattern" in table else None
        if kind == "string" and (choices is None) == (pattern is None):
            self._fail(path, "a string needs either a pattern or choices: free text is never an argument")
        if kind != "string" and (choices is not None or pattern is not None):
            self._fail(path, f"pattern and choices belong to strings, not to type {kind}")
        limits = {key: self._bound((*path, key), table[key]) for key in ("min", "max") if key in table}
        if kind == "string" and limits:
            self._fail(path, "min and max belong to numbers; use max_length")
        length = self._int((*path, "max_length"), table.get("max_length", 256), 1, VALUE_MAX)
        param = Param(name, kind, pattern, choices, limits.get("min"), limits.get("max"), length, table.get("default"))
        if param.default is not None:
            try:
                param.words(param.default)
            except ParamError as error:
                self._fail((*path, "default"), str(error))
        return param

    def _choices(self, path: tuple[str, ...], value: Any) -> dict[str, tuple[str, ...]]:
        if isinstance(value, list):
            value = {text: text for text in self._texts(path, value)}
        table = self._table(path, value, None)
        if not table:
            self._fail(path, "offers nothing to choose")
        return {
            key: self._texts((*path, key), words if isinstance(words, list) else [words])
            for key, words in table.items()
        }

    def _pattern(self, path: tuple[str, ...], value: Any) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            self._fail(path, f"is no regular expression: {error}")

    # --- kinds of values ---

    def _table(self, path: tuple[str, ...], value: Any, known: set[str] | None) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(path, "must be a table")
        for key in value:
            if known is not None and key not in known:
                self._fail((*path, key), f"no such field{_near(key, known)}")
        return dict(value)

    def _texts(self, path: tuple[str, ...], value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
            self._fail(path, "must be a list of texts")
        return tuple(value)

    def _int(self, path: tuple[str, ...], value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._fail(path, f"{value!r} is no whole number from {low} to {high}")
        return int(value)

    def _bound(self, path: tuple[str, ...], value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._fail(path, f"{value!r} is no number")
        return float(value) if isinstance(value, float) else value

    def _seconds(self, path: tuple[str, ...], value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86_400:
            self._fail(path, f"{value!r} is no number of seconds up to a day")
        return float(value)

    # --- errors ---

    def _fail(self, path: tuple[str, ...], problem: str) -> NoReturn:
        raise ConfigError(f"spec: {'.'.join(path) or 'the file'}: {problem}  ({self._where(path)})")

    def _where(self, path: tuple[str, ...]) -> str:
        """`caps.toml:7`, the line of the field, or of the nearest table above it."""
        while path:
            number = next((n for n, found in self._walk() if found[: len(path)] == path), None)
            if number is not None:
                return f"{self.name}:{number}"
            path = path[:-1]
        return self.name

    def _walk(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        if self.name.endswith(".json"):
            yield from _walk_json(self._lines)
            return
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if text.startswith("["):
                table = _dotted(text.strip("[ ").partition("]")[0])
                yield number, table
            elif "=" in text and not text.startswith("#"):
                yield number, (*table, *_dotted(text.partition("=")[0]))


def _dotted(text: str) -> tuple[str, ...]:
    return tuple(a or b or c for a, b, c in re.findall(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)", text))


def _walk_json(lines: list[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, path) of every key, by counting braces outside strings; the text is known to be valid JSON."""
    path: list[str] = []
    key = ""
    token = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[{}\[\]]')
    for number, line in enumerate(lines, 1):
        for match in token.finditer(line):
            if match.group(2):
                key = json.loads(f'"{match.group(1)}"')
                yield number, tuple(part for part in (*path, key) if part)
            elif match.group(0) in "{[":
                path.append(key)
                key = ""
            elif match.group(0) in "}]":
                path.pop()


def _near(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
