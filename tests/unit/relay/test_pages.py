"""The plain pages of our relay, and names in certificates."""

from __future__ import annotations

import pytest

from meshnode.relay.session import respond
from meshnode.relay.trust import matches_name
from meshnode.wire.http1 import Request


def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    status, _, answer = respond(Request(method, path, {k.replace("_", "-"): v for k, v in headers.items()}))
    return status, dict(answer)


def test_probes() -> None:
    for path in ("/derp/probe", "/derp/latency-check"):
        assert ask(path) == ask(path, "HEAD") == (200, {"Access-Control-Allow-Origin": "*"})
        assert ask(path, "POST")[0] == 405


def test_derp_wants_an_upgrade() -> None:
    assert ask("/derp")[0] == 426


@pytest.mark.parametrize(
    ("challenge", "proven"), [("ok-1.2_3:4", True), ("x" * 64, True), ("x" * 65, False), ("a b", False)]
)
def test_captive_portal_check(challenge: str, proven: bool) -> None:
    status, headers = ask("/generate_204", x_tailscale_challenge=challenge)
    assert status == 204 and "no-store" in headers["Cache-Control"]
    assert headers.get("X-Tailscale-Response") == (f"response {challenge}" if proven else None)


def test_the_rest() -> None:
    assert ask("/healthz")[0] == ask("/robots.txt")[0] == ask("/")[0] == 200
    assert ask("/nothing")[0] == 404


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("derp.example.com", "DERP.example.com", True),
        ("derp.example.com", "example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0:0:0:0:0:0:0:1", "::1", True),
        ("", "derp.example.com", False),
    ],
)
def test_names_of_certificates(pattern: str, name: str, fits: bool) -> None:
    assert matches_name(pattern, name) is fits
