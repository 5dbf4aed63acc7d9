"""SSDP: the search for UPnP gateways, and what one answers.

Source: docs/protocol/paths.md 5.3; UPnP Device Architecture 1.1, chapter 1.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from meshnode.base.errors import RemoteProtocolError

PORT: Final = 1900
GROUP: Final = "239.255.255.250"
ALL: Final = "ssdp:all"
GATEWAY: Final = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
"""What a search asks for; some gateways answer only one of the two."""
WAIT_S: Final = 2
"""A device may take this long to answer a search."""
ANSWER_MAX: Final = 4096
LOCATION_MAX: Final = 512


class Found(NamedTuple):
    """A device that answered."""

    location: str
    """Where its description is: a URL, of a host not to be trusted."""
    target: str
    """What it is, as it says."""


def emit_search(target: str) -> bytes:
    """The search for one kind of device."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {GROUP}:{PORT}", f"ST: {target}", 'MAN: "ssdp:discover"', f"MX: {WAIT_S}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def parse_answer(data: bytes) -> Found:
    """Read an answer to a search. RemoteProtocolError for anything else."""
    if len(data) > ANSWER_MAX:
        raise RemoteProtocolError(f"SSDP answer of {len(data)} bytes")
    lines = data.decode("latin-1").splitlines()
    status = lines[0].split(maxsplit=2) if lines else []
    if len(status) < 2 or not status[0].startswith("HTTP/1.") or status[1] != "200":
        raise RemoteProtocolError("not an SSDP answer")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    location = fields.get("location", "")
    if not location or len(location) > LOCATION_MAX:
        raise RemoteProtocolError("SSDP answer without a usable location")
    return Found(location, fields.get("st", ""))
