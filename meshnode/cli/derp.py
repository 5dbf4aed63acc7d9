"""`meshnode derp`: a relay in the foreground, until a signal.

Standard output carries one line, `ready ADDRESS`, once clients are served; with --host the region entry for the relay
map follows it, to the end. SIGTERM and SIGINT drain and stop, a second one ends at once; SIGHUP reads certificate and
lists again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from meshnode.base.errors import ConfigError, RelayError
from meshnode.base.keys import NodePublic
from meshnode.cli.up import Signals, hide_from_process_list, load_config, raise_file_limit
from meshnode.config.model import Config
from meshnode.run.log import configure, get_logger
from meshnode.run.scope import Scope, log_failures

DRAIN_S: Final = 3.0
"""Whoever is cut off first waits this long and the start of the next relay for its place: short, then."""
_log = get_logger("derp")


def run_derp(parsed: argparse.Namespace) -> int:
    """The command."""
    if parsed.check is not None:
        from meshnode.relay.check import run_check

        wish = {"ca_file": parsed.derp_ca_file or "", "stun": parsed.derp_stun or "", "pin": parsed.pin}
        return asyncio.run(run_check(parsed.check, **wish, as_json=parsed.json))
    for flag, given in (("--json", parsed.json), ("--pin", parsed.pin)):
        if given:
            raise ConfigError(f"{flag}: belongs to --check HOST")
    config = load_config(parsed)
    hide_mesh_key(parsed.derp_mesh_key, config)
    configure(level=config.run.log_level, as_json=config.run.log == "json")
    raise_file_limit()
    return asyncio.run(_live(config))


def hide_mesh_key(given: str | None, config: Config) -> None:
    """A key written on the command line leaves the process list."""
    if given and not given.startswith(("env:", "file:")):
        hide_from_process_list(config.derp.derp_mesh_key)


def plan_of(config: Config, **besides: Any) -> Any:
    """The Plan of a configuration."""
    from meshnode.relay.inherit import has_inherited
    from meshnode.relay.plan import Plan
    from meshnode.relay.server import Limits

    derp = config.derp
    return Plan(
        listen=derp.derp_listen or (() if has_inherited() else _usual_port(derp.derp_plain)),
        stun=derp.derp_stun,
        http=derp.derp_http,
        hosts=derp.derp_host,
        folder=Path(derp.derp_dir).expanduser() if derp.derp_dir else _default_folder(),
        self_signed=derp.derp_self_signed,
        cert=derp.derp_cert,
        key=derp.derp_key,
        acme=derp.derp_acme,
        acme_email=derp.derp_acme_email,
        acme_by=derp.derp_acme_by,
        plain=derp.derp_plain,
        open=derp.derp_open,
        verify_url=derp.derp_verify_url,
        allow_keys=derp.derp_allow_keys,
        ca_file=derp.derp_ca_file,
        mesh=derp.derp_mesh,
        mesh_key=derp.derp_mesh_key.reveal(),
        metrics=derp.derp_metrics,
        bootstrap_dns=derp.derp_bootstrap_dns,
        region=derp.derp_region,
        limits=Limits(
            clients=derp.derp_clients,
            client_rate=derp.derp_rate,
            per_ip=derp.derp_per_ip,
            per_ip_rate=derp.derp_per_ip_rate,
        ),
        **besides,
    )


def _usual_port(plain: bool) -> tuple[str, ...]:
    return (":3340",) if plain else (":443",)


def _default_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "meshnode" / "derp"


async def _live(config: Config) -> int:
    log_failures(asyncio.get_running_loop())
    signals = Signals()
    with _reloads() as on_hangup:
        station = await _started(plan_of(config), signals)
        if station is None:
            return 0
        on_hangup.append(station.reload)
        try:
            _say(station)
            await signals.stop.wait()
            await station.drain(DRAIN_S)
        finally:
            await station.aclose()
    return 0


async def _started(plan: Any, signals: Signals) -> Any:
    """The Station; None if a signal came first: a certificate can take its time."""
    from meshnode.relay.station import Station

    async def start() -> Any:
        try:
            return await Station.start(plan)
        except Exception as error:
            return error

    async with Scope("derp") as scope:
        starting = scope.spawn(start(), "start")
        stopped = scope.spawn(signals.stop.wait(), "signal")
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return None
        if isinstance(made := starting.result(), Exception):
            raise made
        return made


@contextlib.contextmanager
def _reloads() -> Iterator[list[Callable[[], None]]]:
    """What SIGHUP calls, from now on; a hangup before anything is there is none."""
    calls: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: [call() for call in calls])
    try:
        yield calls
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _say(station: Any) -> None:
    """What an operator wants to know of a relay that serves."""
    plan = station.plan
    if plan.plain:
        _log.warning("no TLS: for development, or behind a proxy that has it")
    if plan.open:
        _log.warning("open: anybody who finds this relay may use it")
    with contextlib.suppress(BrokenPipeError):
        print(announce(station), flush=True)


def relay_door(config: Config) -> Any:
    """`up --derp`: a relay beside the node, for the members of its tailnet unless somebody else is asked."""

    @contextlib.asynccontextmanager
    async def door(node: Any) -> AsyncIterator[None]:
        from meshnode.relay.station import Station

        async def is_member(key: NodePublic, source: str) -> bool:
            netmap = node.netmap
            if netmap is None:
                raise RelayError("the tailnet's members are not known yet")
            return key == netmap.self_node.key or any(peer.key == key for peer in netmap.peers.values())

        asked = (
            not config.has_tailnet
            or config.derp.derp_open
            or config.derp.derp_verify_url
            or config.derp.derp_allow_keys
        )
        try:
            station = await Station.start(plan_of(config, members=None if asked else is_member))
        except ConfigError as error:
            raise ConfigError(f"{error}  ([derp] of the file, or MESHNODE_DERP_…)") from None
        with _reloads() as on_hangup:
            on_hangup.append(station.reload)
            try:
                _say(station)
                yield
                await station.drain(1.0)
            finally:
                await station.aclose()

    return door


def announce(station: Any) -> str:
    """What an operator wants to see: where it listens, and for a certificate of its own what goes into the map."""
    from meshnode.relay.identity import headscale_yaml

    host = f"[{station.host}]" if ":" in station.host else station.host
    lines = [f"ready {host}:{station.server.port} {station.server.public}"]
    if station.plan.hosts and not station.plan.plain:
        region = station.region()
        lines += ["", "# the region as JSON:", json.dumps({str(region["RegionID"]): region})]
        lines += ["", "# for Headscale's derp.paths:", headscale_yaml(region).rstrip(), ""]
    return "\n".join(lines)
