"""`meshnode derp`: a relay in the foreground, until a signal.

Standard output carries one line, `ready ADDRESS`, once clients are served; with --self-signed the region entry for
the relay map follows it. SIGTERM and SIGINT drain and stop, a second one ends at once; SIGHUP reads certificate and
lists again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from meshnode.base.errors import RelayError
from meshnode.base.keys import NodePublic
from meshnode.cli.up import Signals, load_config, raise_file_limit
from meshnode.config.model import Config
from meshnode.run.log import configure, get_logger

DRAIN_S: Final = 3.0
"""Whoever is cut off first waits this long and the start of the next relay for its place: short, then."""
_log = get_logger("derp")


def run_derp(parsed: argparse.Namespace) -> int:
    """The command."""
    if parsed.check:
        from meshnode.relay.check import run_check

        return asyncio.run(run_check(parsed.check, ca_file=parsed.derp_ca_file or "", as_json=parsed.json))
    config = load_config(parsed)
    configure(level=config.run.log_level, as_json=config.run.log == "json")
    raise_file_limit()
    return asyncio.run(_live(config))


def plan_of(config: Config, **besides: Any) -> Any:
    """The Plan of a configuration."""
    from meshnode.relay.inherit import has_inherited
    from meshnode.relay.server import Limits
    from meshnode.relay.station import Plan

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
    from meshnode.relay.station import Station

    signals = Signals()
    station = await Station.start(plan_of(config))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, station.reload)
    try:
        if config.derp.derp_plain:
            _log.warning("no TLS: for development, or behind a proxy that has it")
        with contextlib.suppress(BrokenPipeError):
            print(announce(station), flush=True)
        await signals.stop.wait()
        await station.drain(DRAIN_S)
    finally:
        await station.aclose()
    return 0


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
        station = await Station.start(plan_of(config, members=None if asked else is_member))
        try:
            print(announce(station), flush=True)
            yield
            await station.drain(1.0)
        finally:
            await station.aclose()

    return door


def announce(station: Any) -> str:
    """What an operator wants to see: where it listens, and for a certificate of its own what goes into the map."""
    from meshnode.relay.identity import headscale_yaml

    lines = [f"ready {station.host}:{station.server.port} {station.server.public}"]
    if station.pin:
        region = station.region()
        lines += ["", "# for Headscale's derp.paths:", headscale_yaml(region).rstrip()]
        lines += ["", "# the same as JSON:", json.dumps({str(region["RegionID"]): region})]
    return "\n".join(lines)
