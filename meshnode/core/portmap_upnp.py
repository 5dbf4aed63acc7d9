"""Port mapping by UPnP: the calls in their order, as generators that yield a Fetch and are sent its Answer.

`obtain` finds the best service among the devices that answered a search and maps a port there, `renew` and
`external_ip` use a known one, `delete` ends a mapping.
Source: docs/protocol/paths.md 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from meshnode.base.addr import Endpoint
from meshnode.base.errors import RemoteProtocolError
from meshnode.core.portmap_values import LIFETIME_S, Answer, Fetch, is_hidden, is_no_host, refusal_of
from meshnode.wire import upnp
from meshnode.wire.upnp import Service

DEVICES_MAX: Final = 4
"""Descriptions read in one attempt."""
PORT_TRIES: Final = 3
DESCRIPTION: Final = "meshnode"
ADD_ANY: Final = "AddAnyPortMapping"
ADD: Final = "AddPortMapping"
BAD_ARGUMENTS: Final = 402
CONFLICT: Final = 718
ONLY_PERMANENT: Final = 725

RandomPort = Callable[[], int]


class Granted(NamedTuple):
    """A mapping was made."""

    service: Service
    external: Endpoint
    lifetime: int
    """Seconds; 0: until the gateway restarts or we delete it."""


class Failed(NamedTuple):
    """No mapping, and why: a sentence."""

    reason: str


Outcome = Granted | Failed
Steps = Generator[Fetch, Answer, Outcome]


def obtain(locations: Sequence[str], client: IPv4Address, port: int, wish: int, random_port: RandomPort) -> Steps:
    """Map `port` of `client` by the best service found at these locations. wish: external port, 0 = any."""
    reason = "no UPnP device of the gateway maps ports"
    best: list[tuple[bool, Service]] = []
    for location in locations[:DEVICES_MAX]:
        for service in (yield from _services(location)):
            ip = yield from external_ip(service)
            if ip is None or is_no_host(ip):
                reason = "the gateway has no address outside"
            else:
                best.append((is_hidden(ip), service))
                break
    for hidden, service in sorted(best, key=lambda pair: pair[0]):
        if hidden:
            ip = yield from external_ip(service)
            return Failed(refusal_of(ip, port) if ip else reason)
        outcome = yield from renew(service, client, port, wish, random_port)
        if isinstance(outcome, Granted):
            return outcome
        reason = outcome.reason
    return Failed(reason)


def renew(service: Service, client: IPv4Address, port: int, wish: int, random_port: RandomPort) -> Steps:
    """Map, or map again, by a known service."""
    external, lifetime, reason = wish or random_port(), LIFETIME_S, ""
    for _ in range(PORT_TRIES + 1):
        action = ADD_ANY if service.kind.endswith("WANIPConnection:2") else ADD
        arguments = _mapping(external, client, port, lifetime)
        try:
            answer = yield from _call(service, action, arguments)
        except upnp.Fault as fault:
            reason = str(fault)
            if fault.code in (BAD_ARGUMENTS, ONLY_PERMANENT) and lifetime:
                lifetime = 0
            elif fault.code == CONFLICT:
                external = random_port()
            else:
                return Failed(reason)
            continue
        except RemoteProtocolError as error:
            return Failed(str(error))
        ip = yield from external_ip(service)
        external = _reserved_port(answer, external)
        refusal = refusal_of(ip, external) if ip is not None else "the gateway does not say its address outside"
        if ip is not None and not refusal:
            return Granted(service, Endpoint(ip, external), lifetime)
        yield delete(service, external)
        return Failed(refusal)
    return Failed(reason)


def external_ip(service: Service) -> Generator[Fetch, Answer, IPv4Address | None]:
    """The gateway's own address; None if it does not say."""
    try:
        answer = yield from _call(service, "GetExternalIPAddress", {})
        return IPv4Address(answer.get("NewExternalIPAddress", ""))
    except (RemoteProtocolError, ValueError):
        return None


def delete(service: Service, external_port: int) -> Fetch:
    """End a mapping; nobody waits for the answer."""
    named: dict[str, str | int] = {"NewRemoteHost": "", "NewExternalPort": external_port, "NewProtocol": "UDP"}
    return _fetch(service, "DeletePortMapping", named)


def _services(location: str) -> Generator[Fetch, Answer, tuple[Service, ...]]:
    try:
        url = upnp.parse_url(location)
        answer = yield Fetch(url.port, url.target)
        return upnp.parse_description(answer.body, location) if answer.status == 200 else ()
    except RemoteProtocolError:
        return ()


def _call(
    service: Service, action: str, arguments: Mapping[str, str | int]
) -> Generator[Fetch, Answer, Mapping[str, str]]:
    answer = yield _fetch(service, action, arguments)
    if answer.status not in (200, 500):
        raise RemoteProtocolError(f"the gateway answered {action} with status {answer.status}")
    return upnp.parse_call_answer(answer.body, action)


def _fetch(service: Service, action: str, arguments: Mapping[str, str | int]) -> Fetch:
    body = upnp.emit_call(service.kind, action, arguments)
    return Fetch(service.control.port, service.control.target, upnp.soap_action(service.kind, action), body)


def _mapping(external: int, client: IPv4Address, port: int, lifetime: int) -> dict[str, str | int]:
    return {
        "NewRemoteHost": "",
        "NewExternalPort": external,
        "NewProtocol": "UDP",
        "NewInternalPort": port,
        "NewInternalClient": str(client),
        "NewEnabled": 1,
        "NewPortMappingDescription": DESCRIPTION,
        "NewLeaseDuration": lifetime,
    }


def _reserved_port(answer: Mapping[str, str], asked: int) -> int:
    """AddAnyPortMapping says which port it took."""
    text = answer.get("NewReservedPort", "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    return number if 0 < number < 65536 else asked
