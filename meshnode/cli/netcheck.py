"""`meshnode netcheck`: what the network lets the running node, or one to come, do, for people or as JSON.

With --derp-map or --relay no node is asked: the same look is taken from here. The text is close to what `tailscale
netcheck` prints, with the kind of NAT in words and the reason for the home.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from typing import Any, Final

from meshnode.base.errors import ConfigError, NoRunningNode, TimedOut
from meshnode.cli.commands import door_of, print_json

TIMEOUT_SLACK_S: Final = 2.0
"""The node's own timeout comes first, so that its better message arrives."""
PORT_MAPPINGS: Final = {"UPnP": "UPnP", "PMP": "NAT-PMP", "PCP": "PCP"}


def run_netcheck(parsed: argparse.Namespace) -> int:
    """`meshnode netcheck`."""
    is_alone = parsed.derp_map is not None or parsed.relay is not None
    report = asyncio.run(_look(parsed)) if is_alone else _ask_node(parsed)
    if parsed.json:
        print_json(report)
    else:
        print("Report:")
        print("\n".join(_lines(report)))
    return 0


def _ask_node(parsed: argparse.Namespace) -> dict[str, Any]:
    try:
        report: dict[str, Any] = door_of(parsed).post(
            "/netcheck", timeout=parsed.timeout, timeout_s=parsed.timeout + TIMEOUT_SLACK_S
        )
    except NoRunningNode as error:
        raise NoRunningNode(f"{error}; or look without one: --derp-map FILE|URL or --relay HOST[:PORT]") from None
    return report


async def _look(parsed: argparse.Namespace) -> dict[str, Any]:
    """Without a node."""
    from meshnode.core.proxies import Proxies
    from meshnode.node.relaymap import load_relay_map, relay_map_of
    from meshnode.node.survey import Survey

    if parsed.state_dir or parsed.network:
        raise ConfigError("--state-dir and --network name a running node; leave them out with --derp-map and --relay")
    ca_file, proxies = parsed.ca_file or "", Proxies("", os.environ)
    try:
        async with asyncio.timeout(parsed.timeout):
            if parsed.relay is not None:
                relays = await relay_map_of(parsed.relay, proxies=proxies)
            else:
                relays = await load_relay_map(parsed.derp_map, ca_file=ca_file, proxies=proxies)
            view = await Survey(relays, ca_file=ca_file, proxies=proxies).look()
    except TimeoutError:
        raise TimedOut(f"no report of the network within {parsed.timeout:g} s; allow more with --timeout") from None
    return view.to_json()


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"\t* Time: {report['Now']}"
    yield f"\t* UDP: {_yes(report['UDP'])}" + ("" if report["UDP"] else f"  ({report['NATReason']})")
    yield f"\t* IPv4: {_family(report, 'IPv4', 'GlobalV4')}"
    yield f"\t* IPv6: {_family(report, 'IPv6', 'GlobalV6')}"
    yield f"\t* NAT: {report['NAT']}  ({report['NATReason']})"
    yield f"\t* MappingVariesByDestIP: {_maybe(report['MappingVariesByDestIP'])}"
    yield f"\t* PortMapping: {_port_mapping(report)}"
    yield f"\t* CaptivePortal: {_maybe(report['CaptivePortal'])}"
    if report["Proxy"]:
        yield f"\t* Proxy: {report['Proxy']}"
    measured = [r for r in report["Regions"] if r["LatencyMs"] is not None]
    nearest = measured[0] if measured else None
    yield f"\t* Nearest DERP: {nearest['RegionName'] or nearest['RegionCode'] if nearest else 'unknown (no response)'}"
    yield from _home(report)
    yield "\t* DERP latency:"
    width = max((len(r["RegionCode"]) for r in report["Regions"]), default=0)
    for region in report["Regions"]:
        if region["Measured"]:
            yield f"\t\t- {_region(region, width)}"


def _home(report: dict[str, Any]) -> Iterator[str]:
    home = report["Home"]
    if not home["RegionID"]:
        yield "\t* Home: none"
        return
    state = ", by WebSocket" if home["WebSocket"] else "" if home["Connected"] else ", not connected"
    yield f"\t* Home: {home['RegionCode'] or home['RegionID']}{state}  ({home['Reason']})"


def _region(region: dict[str, Any], width: int) -> str:
    parts = [f"{region['RegionCode']}:".ljust(width + 1), _ms(region["LatencyMs"]).rjust(9)]
    ways = {"IPv4": region["V4Ms"], "IPv6": region["V6Ms"], "HTTPS": region["HTTPSMs"], "ICMP": region["ICMPMs"]}
    known = [f"{name} {_ms(value)}" for name, value in ways.items() if value is not None]
    if len(known) > 1 or (known and ways["IPv4"] is None):
        parts.append(f"[{', '.join(known)}]")
    parts += [f"({region['RegionName']})"] if region["RegionName"] else []
    parts += ["home"] if region["Home"] else []
    return "  ".join(parts)


def _ms(value: float | None) -> str:
    if value is None:
        return "no answer"
    return f"{value:.1f}ms" if value >= 1 else f"{value:.2g}ms"


def _yes(value: bool) -> str:
    return "true" if value else "false"


def _maybe(value: bool | None) -> str:
    return "not known" if value is None else _yes(value)


def _family(report: dict[str, Any], name: str, address: str) -> str:
    if report[name]:
        return f"yes, {report[address]}"
    if report[f"{name}CanSend"]:
        return "no, nothing comes back"
    if name == "IPv6" and not report["OSHasIPv6"]:
        return "no, unavailable in OS"
    return "no, but OS has support" if name == "IPv6" else "no (no addr found)"


def _port_mapping(report: dict[str, Any]) -> str:
    found = [word for name, word in PORT_MAPPINGS.items() if report[name]]
    if found:
        return ", ".join(found)
    return "not known" if all(report[name] is None for name in PORT_MAPPINGS) else "none"
