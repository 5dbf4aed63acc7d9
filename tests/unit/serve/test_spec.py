"""The capability file: what it may say, how it complains, what callers can and cannot put into a command."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import ConfigError
from meshnode.serve.spec import ParamError, Spec
from meshnode.serve.specfile import load_spec, parse_spec

GOOD = """\
[server]
concurrency = 2

[capabilities.render]
description = "Renders"
argv = ["ffmpeg", "-i", "in/{name}.mp4", "{preset}", "-crf", "{crf}", "--gain={gain}", "{{literal}}", "{name}"]
requires = ["ffmpeg", "sh"]
timeout_s = 5
[capabilities.render.params.name]
pattern = "[a-z-]+"
max_length = 10
[capabilities.render.params.preset]
choices = { fast = ["-preset", "fast"], "4k-h265" = "-x265" }
default = "fast"
[capabilities.render.params.crf]
type = "integer"
min = 0
max = 51
[capabilities.render.params.gain]
type = "number"
default = -1.5
"""


def spec(text: str = GOOD, name: str = "caps.toml") -> Spec:
    return parse_spec(text, name)


def test_values_fill_their_places() -> None:
    render = spec().capabilities["render"]
    assert render.command({"name": "raw", "crf": 18}) == [
        "ffmpeg", "-i", "in/raw.mp4", "-preset", "fast", "-crf", "18", "--gain=-1.5", "{literal}", "raw",
    ]  # fmt: skip
    assert render.command({"name": "raw", "crf": 18, "preset": "4k-h265"})[3] == "-x265"
    assert render.timeout_s == 5
    assert spec().concurrency == 2
    assert (spec().rate, spec().rate_window_s) == (30, 60.0)


def test_json_says_the_same() -> None:
    text = json.dumps(tomllib.loads(GOOD), indent=1)
    assert spec(text, "caps.json").capabilities.keys() == spec().capabilities.keys()
    values = {"name": "raw", "crf": 1}
    assert spec(text, "caps.json").capabilities["render"].command(values) == spec().capabilities["render"].command(
        values
    )


@pytest.mark.parametrize(
    ("values", "param", "allowed"),
    [
        ({"crf": 1}, "name", ()),
        ({"name": "raw"}, "crf", ()),
        ({"name": "Raw", "crf": 1}, "name", ()),
        ({"name": "a" * 11, "crf": 1}, "name", ()),
        ({"name": "a\n", "crf": 1}, "name", ()),
        ({"name": "a; id", "crf": 1}, "name", ()),
        ({"name": ["a"], "crf": 1}, "name", ()),
        ({"name": "-rf", "crf": 1}, "name", ()),
        ({"name": "raw", "crf": 52}, "crf", ()),
        ({"name": "raw", "crf": -1}, "crf", ()),
        ({"name": "raw", "crf": "1"}, "crf", ()),
        ({"name": "raw", "crf": True}, "crf", ()),
        ({"name": "raw", "crf": 1.5}, "crf", ()),
        ({"name": "raw", "crf": 1, "gain": float("nan")}, "gain", ()),
        ({"name": "raw", "crf": 1, "preset": "slow"}, "preset", ("fast", "4k-h265")),
        ({"name": "raw", "crf": 1, "preset": ["-preset"]}, "preset", ("fast", "4k-h265")),
        ({"name": "raw", "crf": 1, "argv": "id"}, "argv", ("name", "preset", "crf", "gain")),
    ],
)
def test_values_that_are_refused(values: dict[str, Any], param: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(ParamError) as caught:
        spec().capabilities["render"].command(values)
    assert (caught.value.param, caught.value.allowed) == (param, allowed)


@given(st.text(max_size=300))
def test_no_text_adds_a_word_or_an_option(text: str) -> None:
    tool = spec('[capabilities.x]\nargv = ["tool", "{v}", "--o={v}"]\nparams.v.pattern = "(?s).*"\n').capabilities["x"]
    try:
        argv = tool.command({"v": text})
    except ParamError:
        return
    assert argv == ["tool", text, f"--o={text}"]
    assert not text.startswith("-")
    assert "\0" not in text


BAD = [
    ("", "names no capability", ""),
    ("[capabilities.x]\nargv = [", "not valid TOML", ""),
    ("[capabilities.x]\n", "capabilities.x.argv", ":1"),
    ('[capabilities.x]\nargv = "ls -l"\n', "there is no shell here", ":2"),
    ('[capabilities.x]\nargv = ["{p}"]\nparams.p.pattern = "a"\n', "must be fixed", ":2"),
    ('[capabilities.x]\nargv = ["ls", "{p}"]\n', "{p} is no parameter", ":2"),
    ('[capabilities.x]\nargv = ["ls", "{naem}"]\nparams.name.pattern = "a"\n', "did you mean name?", ":2"),
    ('[capabilities.x]\nargv = ["ls", "{"]\n', "lone brace", ":2"),
    ('[capabilities.x]\nargv = ["ls"]\n\n[capabilities.x.params.p]\npattern = "a"\n', "never used", ":4"),
    ('[capabilities.x]\nargv = ["ls", "{p}"]\n[capabilities.x.params.p]\n', "free text is never", ":3"),
    ('[capabilities.x]\nargv = ["ls", "{p}"]\n[capabilities.x.params.p]\npattern = "("\n', "no regular expr", ":4"),
    ('[capabilities.x]\nargv = ["ls", "{p}"]\n[capabilities.x.params.p]\ntype = "text"\n', "is none of", ":4"),
    (
        '[capabilities.x]\nargv = ["ls", "{p}"]\nparams.p.pattern = "a"\nparams.p.default = "b"\n',
        "does not match",
        ":4",
    ),
    ('[capabilities.x]\nargv = ["ls", "a{p}"]\nparams.p.choices = { a = ["b", "c"] }\n', "word of its own", ":2"),
    ('[capabilities.x]\nargv = ["ls"]\ntimeout = 3\n', "did you mean timeout_s?", ":3"),
    ('[capabilities.x]\nargv = ["ls"]\ntimeout_s = 0\n', "no number of seconds", ":3"),
    ('[capabilities.x]\nargv = ["ls"]\nconcurrency = true\n', "no whole number", ":3"),
    ('[capabilities."a b"]\nargv = ["ls"]\n', "is no name", ":1"),
    ('[capability.x]\nargv = ["ls"]\n', "did you mean capabilities?", ":1"),
    ('[capabilities.x]\nargv = ["ls"]\n[capabilities.x.env]\nA = 1\n', "list of texts", ":3"),
]


@pytest.mark.parametrize(("text", "problem", "line"), BAD)
def test_mistakes_name_field_and_line(text: str, problem: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(text)
    message = str(caught.value)
    assert problem in message
    assert f"caps.toml{line}" in message
    assert "\n" not in message


def test_mistakes_in_json_name_field_and_line() -> None:
    text = '{\n "capabilities": {\n  "x": {\n   "argv": ["ls", "{"],\n   "queue": 1\n  }\n }\n}'
    with pytest.raises(ConfigError, match=r"lone brace.*caps\.json:4"):
        spec(text, "caps.json")
    with pytest.raises(ConfigError, match=r"not valid JSON: .*caps\.json:2"):
        spec("{\n]", "caps.json")


def test_files_that_cannot_be_read(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="cannot read .*no.toml: No such file"):
        load_spec(tmp_path / "no.toml")
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not text"):
        load_spec(tmp_path / "raw.toml")


@given(st.text(max_size=400), st.sampled_from(["caps.toml", "caps.json"]))
def test_garbage_is_a_config_error(text: str, name: str) -> None:
    with pytest.raises(ConfigError):
        parse_spec(text, name)
