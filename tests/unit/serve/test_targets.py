"""What `--serve` accepts, and the small questions of files over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.base.errors import ConfigError
from meshnode.serve import files
from meshnode.serve.reverse import encoded
from meshnode.serve.sites import Directory, Upstream, parse_target, site_door


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "page").write_text("x")
    assert parse_target("site") == Directory(Path("site"))
    assert parse_target("127.0.0.1:3000") == Upstream("http", "127.0.0.1", 3000)
    assert parse_target("[::1]:3000").authority == "[::1]:3000"
    assert parse_target(":3000") == Upstream("http", "127.0.0.1", 3000)
    assert parse_target("3000") == Upstream("http", "127.0.0.1", 3000)
    assert parse_target("http://db/api/") == Upstream("http", "db", 80, "/api")
    assert parse_target("https://db") == Upstream("https", "db", 443)
    assert not parse_target("https+insecure://db").verify


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("http:80=page", "is a file; serve the directory"),
        ("http:80=nowhere", "no directory here"),
        ("http:80=db:99999", "99999 is no port"),
        ("http:80=ftp://db", "the scheme is ftp"),
        ("http:80=http://", "names no host"),
        ("http:80=http://user:secret@db/", "more than scheme"),
        ("http:80=ftp://user:secret@db/", "more than scheme"),
        ("http:80=http://db/?token=secret", "more than scheme"),
        ("http:0=.", "no port"),
        ("http:x=.", "is not SCHEME:PORT=TARGET"),
        ("udp:53=db:53", "is not SCHEME:PORT=TARGET"),
        ("tcp:53=db", "has no port"),
        ("tcp:53=db:0", "port 0"),
    ],
)
def test_rules_that_are_refused(rule: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page").write_text("x")
    with pytest.raises(ConfigError, match=problem) as caught:
        site_door(rule)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size", "wanted"),
    [
        ("bytes=0-0", 10, (0, 0)),
        ("bytes=2-", 10, (2, 9)),
        ("bytes=-3", 10, (7, 9)),
        ("bytes=-30", 10, (0, 9)),
        ("bytes=5-99", 10, (5, 9)),
        ("bytes=10-", 10, files.UNSATISFIABLE),
        ("bytes=-0", 10, files.UNSATISFIABLE),
        ("bytes=0-", 0, files.UNSATISFIABLE),
        ("bytes=5-4", 10, None),
        ("bytes=-", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=0-1,4-5", 10, None),
        ("lines=0-1", 10, None),
        ("bytes=0-" + "9" * 40, 10, None),
        ("bytes=+1-2", 10, None),
    ],
)
def test_ranges(text: str, size: int, wanted: object) -> None:
    assert files.parse_range(text, size) == wanted


TAG, MTIME = '"a-1"', 1_700_000_000.9
SAME, EARLIER, LATER = (
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "Tue, 14 Nov 2023 22:13:19 GMT",
    "Tue, 14 Nov 2023 22:13:21 GMT",
)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"If-None-Match": TAG}, 304),
        ({"If-None-Match": f'"x", W/{TAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, None),
        ({"If-None-Match": '"x"', "If-Modified-Since": SAME}, None),
        ({"If-Modified-Since": SAME}, 304),
        ({"If-Modified-Since": LATER}, 304),
        ({"If-Modified-Since": EARLIER}, None),
        ({"If-Modified-Since": "yesterday"}, None),
        ({"If-Match": TAG}, None),
        ({"If-Match": f"W/{TAG}"}, 412),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": EARLIER}, 412),
        ({"If-Unmodified-Since": SAME}, None),
    ],
)
def test_conditions(headers: dict[str, str], status: int | None) -> None:
    assert files.precondition(headers, TAG, MTIME) == status


@pytest.mark.parametrize(
    ("value", "wanted"), [(TAG, True), ('"x"', False), (f"W/{TAG}", False), (SAME, True), (LATER, False)]
)
def test_if_range(value: str, wanted: bool) -> None:
    assert files.if_range({"If-Range": value}, TAG, MTIME) is wanted


@pytest.mark.parametrize(
    "raw",
    ["/..", "/../x", "/a/../b", "/%2e%2e/x", "/.%2E", "/a%2fb", "/a%00", "/.git/config", "/.env", "/" + "a" * 5000],
)
def test_paths_that_lead_nowhere(raw: str) -> None:
    assert files.split_path(raw) is None


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ("/", []),
        ("//a///b/", [b"a", b"b"]),
        ("/./a", [b"a"]),
        ("/%C3%A4", ["ä".encode()]),
        ("/.well-known", [b".well-known"]),
    ],
)
def test_paths(raw: str, names: list[bytes]) -> None:
    assert files.split_path(raw) == names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (b"a.html", "text/html; charset=utf-8"),
        (b"a.json", "application/json; charset=utf-8"),
        (b"a.png", "image/png"),
        (b"a.tar.gz", "application/gzip"),
        (b"a", "application/octet-stream"),
        (b"\xff.txt", "text/plain; charset=utf-8"),
    ],
)
def test_types(name: bytes, wanted: str) -> None:
    assert files.content_type(name) == wanted


def test_names_of_people_fit_into_a_field() -> None:
    assert encoded("ada@example.com") == "ada@example.com"
    assert encoded("Zoë") == "=?utf-8?q?Zo=C3=AB?="
    assert "\n" not in encoded("a\r\nX-Evil: 1")
