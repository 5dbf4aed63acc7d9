"""UPnP gateways: the description of a device, and SOAP calls to the services in it.

Reads XML with expat, document types and entities refused, everything bounded; names are compared without
their prefixes, since gateways differ in these. Of every URL only port and path are taken: the host is always
the gateway.
Source: docs/protocol/paths.md 5.3; docs/decisions/0301-upnp.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn
from urllib.parse import urljoin, urlsplit
from xml.parsers import expat

from meshnode.base.bounds import UPNP_BODY_MAX
from meshnode.base.errors import RemoteProtocolError

KINDS: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
    "urn:dslforum-org:service:WANIPConnection:1",
    "urn:dslforum-org:service:WANPPPConnection:1",
)
"""Services that map ports, the best first."""
SERVICES_MAX: Final = 8
_DEPTH_MAX: Final = 24
_ELEMENTS_MAX: Final = 2000
_TEXT_MAX: Final = 1024


class Url(NamedTuple):
    """Where on the gateway."""

    port: int
    target: str
    """Path and query."""


class Service(NamedTuple):
    """A service of a gateway that maps ports."""

    kind: str
    """One of KINDS."""
    control: Url


class Fault(RemoteProtocolError):
    """The gateway refused a call."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the gateway refused, UPnP error {code}")
        self.code = code


def parse_url(text: str, base: str = "") -> Url:
    """The port and path of an http URL, absolute or relative to `base`. RemoteProtocolError."""
    try:
        parts = urlsplit(urljoin(base, text))
        port = parts.port or 80
    except ValueError:
        raise RemoteProtocolError("UPnP: an unreadable URL") from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme != "http" or not target.startswith("/") or not all("!" <= c <= "~" for c in target):
        raise RemoteProtocolError("UPnP: a URL that is not plain http")
    return Url(port, target)


def parse_description(data: bytes, location: str) -> tuple[Service, ...]:
    """The services in a device's description that map ports, best first. RemoteProtocolError."""
    groups = _groups(data)
    base = next((g.leaves["URLBase"] for g in groups if g.leaves.get("URLBase")), "") or location
    found = []
    for group in groups:
        kind, control = group.leaves.get("serviceType", ""), group.leaves.get("controlURL", "")
        if group.name == "service" and kind in KINDS and control:
            found.append(Service(kind, parse_url(control, base)))
    return tuple(sorted(found, key=lambda s: KINDS.index(s.kind))[:SERVICES_MAX])


def emit_call(kind: str, action: str, arguments: Mapping[str, str | int]) -> bytes:
    """The body of a SOAP call; its SOAPAction header is `soap_action`'s."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{kind}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode("ascii")


def soap_action(kind: str, action: str) -> str:
    """The value of the SOAPAction header."""
    return f'"{kind}#{action}"'


def parse_call_answer(data: bytes, action: str) -> Mapping[str, str]:
    """What a call returned, by name. Fault if it was refused, RemoteProtocolError for anything else."""
    groups = _groups(data)
    for group in groups:
        code = group.leaves.get("errorCode", "")
        if code:
            raise Fault(int(code) if code.isascii() and code.isdigit() and len(code) < 6 else 0)
    answer = f"{action}Response"
    for group in groups:
        if group.name == answer:
            return group.leaves
        if answer in group.leaves:
            return {}
    raise RemoteProtocolError(f"UPnP: no answer to {action} in what the gateway sent")


@dataclass(slots=True)
class _Group:
    """One element that is no leaf: the text of each leaf directly in it, the first of a name."""

    name: str
    leaves: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Collects the groups of a document."""

    def __init__(self) -> None:
        self.groups: list[_Group] = []
        self._open: list[_Group] = []
        self._text: list[str] = []
        self._length = 0
        self._elements = 0
        self._is_leaf = False

    def start(self, name: str, _: object) -> None:
        self._elements += 1
        if self._elements > _ELEMENTS_MAX or len(self._open) >= _DEPTH_MAX:
            raise RemoteProtocolError("UPnP: too many elements")
        self._open.append(_Group(name.rpartition(":")[2]))
        self._text, self._length, self._is_leaf = [], 0, True

    def end(self, _: str) -> None:
        group = self._open.pop()
        if self._is_leaf and self._open:
            self._open[-1].leaves.setdefault(group.name, "".join(self._text).strip())
        elif group.leaves:
            self.groups.append(group)
        self._is_leaf = False

    def text(self, data: str) -> None:
        self._length += len(data)
        if self._length > _TEXT_MAX and self._is_leaf:
            raise RemoteProtocolError("UPnP: too much text in one element")
        self._text.append(data)

    def refuse(self, *_: object) -> NoReturn:
        raise RemoteProtocolError("UPnP: a document type or an entity, which no gateway needs")


def _groups(data: bytes) -> list[_Group]:
    """Every element with leaves in it, in the order of their ends."""
    if len(data) > UPNP_BODY_MAX:
        raise RemoteProtocolError(f"UPnP: a document of {len(data)} bytes")
    reader, parser = _Reader(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = reader.refuse
    parser.ExternalEntityRefHandler = parser.UnparsedEntityDeclHandler = reader.refuse
    try:
        parser.Parse(data.rstrip(b"\0 \r\n\t"), True)
    except (expat.ExpatError, ValueError, LookupError):
        raise RemoteProtocolError("UPnP: not XML") from None
    return reader.groups
