"""UPnP: descriptions and SOAP as gateways write them, and what is refused: entities, other schemes, floods."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.errors import RemoteProtocolError
from meshnode.wire import upnp

LOCATION = "http://192.168.50.1:45071/rootDesc.xml"
IP1 = "urn:schemas-upnp-org:service:WANIPConnection:1"
IP2 = "urn:schemas-upnp-org:service:WANIPConnection:2"
PPP = "urn:schemas-upnp-org:service:WANPPPConnection:1"


def service(kind: str, control: str, prefix: str = "") -> str:
    p = prefix
    return (
        f"<{p}service><{p}serviceType>{kind}</{p}serviceType><{p}serviceId>x</{p}serviceId>"
        f"<{p}controlURL>{control}</{p}controlURL><{p}eventSubURL/></{p}service>"
    )


def description(*services: str, base: str = "", prefix: str = "") -> bytes:
    p = prefix
    names = f' xmlns:{p[:-1]}="urn:schemas-upnp-org:device-1-0"' if p else ' xmlns="urn:schemas-upnp-org:device-1-0"'
    url = f"<{p}URLBase>{base}</{p}URLBase>" if base else ""
    inner = f"<{p}device><{p}serviceList>{''.join(services)}</{p}serviceList></{p}device>"
    outer = (
        f"<{p}device><{p}friendlyName>box &amp; co</{p}friendlyName><{p}deviceList>{inner}</{p}deviceList></{p}device>"
    )
    return f'<?xml version="1.0"?>\n<{p}root{names}>{url}{outer}</{p}root>\n'.encode()


def envelope(body: str, prefix: str = "s:") -> bytes:
    return f"<{prefix}Envelope><{prefix}Body>{body}</{prefix}Body></{prefix}Envelope>".encode()


@pytest.mark.parametrize("prefix", ["", "d:"])
def test_services_best_first_whatever_the_prefix(prefix: str) -> None:
    data = description(
        service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3", prefix),
        service(PPP, "/ppp", prefix),
        service(IP2, "/ctl/ip2?x=1", prefix),
        service(IP1, "ctl", prefix),
        prefix=prefix,
    )
    assert upnp.parse_description(data, LOCATION) == (
        (IP2, (45071, "/ctl/ip2?x=1")),
        (IP1, (45071, "/ctl")),
        (PPP, (45071, "/ppp")),
    )


def test_of_urls_only_port_and_path_count() -> None:
    """A device may name any host; it is never asked. URLBase, where there is one, is what paths are relative to."""
    data = description(service(IP1, "http://169.254.169.254:99/ctl"), service(PPP, "up"), base="http://evil:5000/a/b")
    assert upnp.parse_description(data, LOCATION) == ((IP1, (99, "/ctl")), (PPP, (5000, "/a/up")))


@pytest.mark.parametrize(
    "url",
    ["https://192.168.50.1/x", "ftp://h/x", "file:///etc/passwd", "http://h:99999/", "http://[::1/", "http://h/a b"]
    + ["http://h/a\r\nX: y", "x"],
)
def test_urls_that_are_not_plain_http(url: str) -> None:
    with pytest.raises(RemoteProtocolError):
        upnp.parse_url(url)


def test_calls_and_their_answers() -> None:
    assert upnp.soap_action(IP1, "GetExternalIPAddress") == f'"{IP1}#GetExternalIPAddress"'
    call = upnp.emit_call(IP1, "DeletePortMapping", {"NewRemoteHost": "", "NewExternalPort": 41641})
    assert call.startswith(b'<?xml version="1.0"?>') and b"<NewExternalPort>41641</NewExternalPort>" in call
    name = "GetExternalIPAddressResponse"
    answer = f"<u:{name}><NewExternalIPAddress> 11.77.0.2\n</NewExternalIPAddress></u:{name}>"
    for prefix in ("s:", "SOAP-ENV:"):
        got = upnp.parse_call_answer(envelope(answer, prefix), "GetExternalIPAddress")
        assert got == {"NewExternalIPAddress": "11.77.0.2"}
    assert upnp.parse_call_answer(envelope("<u:AddPortMappingResponse/>"), "AddPortMapping") == {}
    assert (
        upnp.parse_call_answer(envelope("<AddPortMappingResponse>\n</AddPortMappingResponse>"), "AddPortMapping") == {}
    )


def test_faults() -> None:
    error = "<detail><UPnPError><errorCode>718</errorCode></UPnPError></detail>"
    fault = f"<s:Fault><faultcode>s:Client</faultcode>{error}</s:Fault>"
    with pytest.raises(upnp.Fault) as caught:
        upnp.parse_call_answer(envelope(fault), "AddPortMapping")
    assert caught.value.code == 718
    with pytest.raises(RemoteProtocolError):
        upnp.parse_call_answer(envelope("<other/>"), "AddPortMapping")


BOMB = b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><r><x>&b;</x></r>'


@pytest.mark.parametrize(
    "data",
    [BOMB, b'<!DOCTYPE r SYSTEM "http://evil/x.dtd"><r/>', b"<r>&undefined;</r>", b"<r><a></r>", b"", b"not xml"]
    + [b'<?xml version="1.0" encoding="utf-7"?><r/>', b"<a>" * 30 + b"</a>" * 30, b"<r>" + b"<a/>" * 3000 + b"</r>"]
    + [b"<r><a>" + b"x" * 2000 + b"</a></r>", b"<r>" + b" " * 70_000 + b"</r>"],
)
def test_documents_that_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        upnp.parse_description(data, LOCATION)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (lambda d: upnp.parse_description(d, LOCATION), lambda d: upnp.parse_call_answer(d, "AddPortMapping")):
        with contextlib.suppress(RemoteProtocolError):
            read(b"<r><service>" + data + b"</service></r>")
