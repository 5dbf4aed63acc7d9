"""Which proxy is chosen: the setting, the environment's variables, and the table of NO_PROXY."""

from __future__ import annotations

import pytest

from meshnode.base.errors import ConfigError
from meshnode.base.proxy import Proxy
from meshnode.core.proxies import NoProxy, Proxies

TARGET = ("https", "hs.example.com", 443)


def chosen(environment: dict[str, str], target: tuple[str, str, int] = TARGET, setting: str = "") -> str:
    proxy = Proxies(setting, environment).choose(*target)
    return f"{proxy} by {proxy.source}" if proxy else ""


@pytest.mark.parametrize(
    ("environment", "scheme", "expected"),
    [
        ({}, "https", ""),
        ({"HTTPS_PROXY": "http://a:1"}, "https", "a:1 by HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://a:1"}, "http", ""),
        ({"https_proxy": "a:1"}, "https", "a:1 by https_proxy"),
        ({"HTTPS_PROXY": "a:1", "https_proxy": "b:2"}, "https", "a:1 by HTTPS_PROXY"),
        ({"HTTPS_PROXY": "", "https_proxy": "b:2"}, "https", "b:2 by https_proxy"),
        ({"HTTP_PROXY": "a"}, "http", "a:3128 by HTTP_PROXY"),
        ({"HTTP_PROXY": "a", "REQUEST_METHOD": "GET"}, "http", ""),
        ({"http_proxy": "a", "REQUEST_METHOD": "GET"}, "http", "a:3128 by http_proxy"),
        ({"ALL_PROXY": "a:1"}, "http", "a:1 by ALL_PROXY"),
        ({"ALL_PROXY": "a:1", "HTTPS_PROXY": "b:2"}, "https", "b:2 by HTTPS_PROXY"),
        ({"all_proxy": "https://a"}, "https", "a:443 by all_proxy"),
        ({"HTTPS_PROXY": "a:1", "NO_PROXY": "example.com"}, "https", ""),
        ({"HTTPS_PROXY": "a:1", "no_proxy": "example.com"}, "https", ""),
        ({"HTTPS_PROXY": "a:1", "NO_PROXY": "other.com", "no_proxy": "*"}, "https", "a:1 by HTTPS_PROXY"),
    ],
)
def test_the_environment(environment: dict[str, str], scheme: str, expected: str) -> None:
    assert chosen(environment, (scheme, *TARGET[1:])) == expected


def test_the_setting_rules() -> None:
    environment = {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "*"}
    assert chosen(environment, setting="off") == ""
    assert chosen(environment, setting="http://b:2") == "b:2 by proxy"
    assert chosen({}, ("http", "127.0.0.1", 80), setting="b:2") == "b:2 by proxy"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.3.3.40", "::1"])
def test_this_machine_is_never_behind_the_environments_proxy(host: str) -> None:
    assert chosen({"HTTPS_PROXY": "a:1"}, ("https", host, 443)) == ""


def test_what_is_no_http_proxy_is_told_once_and_not_used() -> None:
    proxies = Proxies("", {"ALL_PROXY": "socks5h://me:secret@a:1080"})
    assert proxies.choose(*TARGET) is None and proxies.choose("http", "h", 80) is None
    (problem,) = proxies.problems
    assert problem.startswith("ALL_PROXY: 'socks5h' is no kind of proxy we know") and "secret" not in problem


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "direct"),
    [
        ("", "a.com", 443, False),
        ("*", "a.com", 443, True),
        ("*:80", "a.com", 443, False),
        ("a.com", "a.com", 443, True),
        ("A.com.", "a.COM", 443, True),
        ("a.com", "x.a.com", 443, True),
        ("a.com", "xa.com", 443, False),
        (".a.com", "a.com", 443, False),
        (".a.com", "x.y.a.com", 443, True),
        ("*.a.com", "x.a.com", 443, True),
        ("*.a.com", "a.com", 443, False),
        ("a.com:8443", "a.com", 443, False),
        ("a.com:8443", "a.com", 8443, True),
        ("b.com, a.com", "a.com", 443, True),
        ("b.com a.com", "a.com", 443, True),
        ("a.com:https", "a.com", 443, False),
        ("10.0.0.1", "10.0.0.1", 443, True),
        ("10.0.0.1", "10.0.0.10", 443, False),
        ("10.0.0.1:443", "10.0.0.1", 443, True),
        ("10.0.0.1:443", "10.0.0.1", 80, False),
        ("10.0.0.0/8", "10.9.9.9", 443, True),
        ("10.0.0.0/8", "11.0.0.1", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("fd00::/8", "fd77::1", 443, True),
        ("fd00::/8", "10.0.0.1", 443, False),
        ("fd77::1", "fd77::1", 443, True),
        ("[fd77::1]", "fd77::1", 443, True),
        ("[fd77::1]:443", "fd77::1", 443, True),
        ("[fd77::1]:443", "fd77::1", 80, False),
        (":443", "a.com", 443, False),
        (".", "a.com", 443, False),
        ("10.0.0.0/99", "10.0.0.1", 443, False),
    ],
)  # fmt: skip
def test_no_proxy(no_proxy: str, host: str, port: int, direct: bool) -> None:
    assert NoProxy(no_proxy).covers(host, port) is direct


@pytest.mark.parametrize(
    ("text", "shown", "is_tls", "credentials"),
    [
        ("proxy", "proxy:3128", False, None),
        ("http://proxy:8080/", "proxy:8080", False, None),
        ("https://proxy", "proxy:443", True, None),
        ("http://[fd77::1]:8080", "[fd77::1]:8080", False, None),
        ("http://me:p%40ss%3A@proxy:1", "proxy:1", False, ("me", "p@ss:")),
        ("me:pass@proxy:1", "proxy:1", False, ("me", "pass")),
        ("http://me@proxy", "proxy:3128", False, ("me", "")),
    ],
)
def test_proxy_urls(text: str, shown: str, is_tls: bool, credentials: tuple[str, str] | None) -> None:
    proxy = Proxy.parse(text)
    assert (str(proxy), proxy.is_tls, proxy.credentials) == (shown, is_tls, credentials)
    assert "ss" not in repr(proxy) and "me" not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "", "http://", "socks5://secret@h", "http://me:secret@h:port", "http://h:0", "http://h/secret", "http://h?secret",
        "http://[secret", "http://me:secret@", "http://ü.example", "http://a b",
    ],
)  # fmt: skip
def test_bad_proxy_urls_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Proxy.parse(text, "HTTPS_PROXY")
    assert str(caught.value).startswith("HTTPS_PROXY: ") and "secret" not in str(caught.value)
