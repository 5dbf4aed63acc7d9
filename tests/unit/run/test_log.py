"""Log lines carry no secrets and do not flood."""

import io
import json

import pytest

from meshnode.run import log


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(log, "_sink", log._Sink())
    return io.StringIO()


def test_keys_are_replaced_whoever_logs_them(sink: io.StringIO) -> None:
    log.configure(stream=sink)
    log.get_logger("x").info("joining with tskey-auth-abc123", header="Bearer s3cret", key="privkey:" + "ab" * 32)
    text = sink.getvalue()
    assert "abc123" not in text
    assert "s3cret" not in text
    assert "abab" not in text


def test_a_login_address_stays_readable() -> None:
    url = "https://hs.example/register/hskey-authreq-abc123"
    assert log.redact(f"visit {url}") == f"visit {url}"
    assert "abc123" not in log.redact("hskey-auth-abc123")


def test_json_lines_parse(sink: io.StringIO) -> None:
    log.configure(stream=sink, as_json=True)
    log.get_logger("room").warning("went wrong\nbadly", peer="a b", count=3)
    record = json.loads(sink.getvalue())
    assert record["room"] == "room"
    assert record["count"] == 3
    assert record["level"] == "warning"


def test_one_sentence_repeated_is_bounded_and_counted(sink: io.StringIO) -> None:
    log.configure(stream=sink)
    for _ in range(log.BURST * 3):
        log.get_logger("room").info("again")
    assert sink.getvalue().count("again") == log.BURST
    assert log._sink.dropped["room"] == log.BURST * 2


def test_a_line_stays_one_line(sink: io.StringIO) -> None:
    log.configure(stream=sink)
    log.get_logger("room").info("a\nb", field="c\nd")
    assert sink.getvalue().count("\n") == 1
