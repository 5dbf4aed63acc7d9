"""`meshnode up`: one node in the foreground, until a signal, a logout or a refusal.

Beside it, or alone, run the plain WireGuard networks of the configuration. Standard output carries one line,
`ready NAME ADDRESS…`, once the node and its doors serve; without a tailnet, one for each plain network. The first
SIGTERM or SIGINT stops in order; the second ends the process at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.base.errors import ConfigError
from meshnode.cli.doors import Door, doors_of, doors_out
from meshnode.config.load import load, read_secret
from meshnode.config.model import MEMORY, Config, Secret, settings
from meshnode.run.log import configure, get_logger

if TYPE_CHECKING:
    from meshnode.node.group import Group

STOP_S: Final = 3.0
"""An orderly stop takes no longer; what is left after it is dropped."""
SECRET_FILE_MAX: Final = 64 * 1024

_log = get_logger("up")


def run_up(parsed: argparse.Namespace) -> int:
    """The command."""
    config = load_config(parsed)
    doors: list[Door] = []
    if config.derp.derp:
        from meshnode.cli.derp import relay_door

        doors.append(relay_door(config))
    return run_node(config, doors)


def run_capability(parsed: argparse.Namespace) -> int:
    """`meshnode capability`: a node that serves fixed commands over HTTP."""
    config = load_config(parsed)
    token = read_secret("token", parsed.token, os.environ, _read_text)
    if not parsed.token.startswith(("env:", "file:")):
        hide_from_process_list(token)
    if not 0 < parsed.http_port < 65536:
        raise ConfigError(f"port: {parsed.http_port} is no port; use 1 to 65535  (--port)")
    from meshnode.serve.capability import capability_door

    door = capability_door(spec=Path(parsed.spec), token=token, port=parsed.http_port)
    if not config.has_tailnet:
        raise ConfigError("capability: needs a tailnet, whose rules say who may call; the file has none to run")
    return run_node(config, [door])


def run_node(config: Config, doors: Sequence[Door]) -> int:
    """Run the networks in this process, with `doors` into the first beside those of the configuration, until it is
    told to stop; returns the exit code."""
    configure(level=config.run.log_level, as_json=config.run.log == "json")
    raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory(config.run.loop)) as runner:
        return runner.run(_live(config, _plan(config, doors)))


@dataclass(frozen=True, slots=True)
class Plan:
    """Which doors lead where."""

    first: Sequence[Door]
    """Into the tailnet, or the only plain network."""
    shared: Sequence[Door]
    """From this machine into whichever network a target is in."""
    plain: Mapping[str, Sequence[Door]]
    """Of the other plain networks, by name."""


def _plan(config: Config, doors: Sequence[Door]) -> Plan:
    """ConfigError names the door that cannot be."""
    plain = {entry.name: (*doors_of(entry.tunnel), *doors_out(entry.tunnel)) for entry in config.plain}
    shared = list(doors_out(config.tunnel))
    if config.run.metrics:
        from meshnode.local.metrics_door import metrics_door

        shared.append(metrics_door(config.run.metrics))
    return Plan([*doors, *doors_of(config.tunnel)], shared, plain)


def raise_file_limit() -> None:
    """Both ends of every tunnel connection live in this process: take all descriptors we are allowed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a lower limit only means fewer connections
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name != "uvloop":
        return None
    import uvloop

    return uvloop.new_event_loop


def load_config(parsed: argparse.Namespace) -> Config:
    """Flags, environment and file as one Config, the state directory filled in."""
    names = {item.name for _, item in settings()} | {"network", "wireguard"}
    flags = {name: value for name, value in vars(parsed).items() if name in names and value is not None}
    text = None
    if parsed.config:
        try:
            text = _read_text(parsed.config)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"cannot read the configuration file {parsed.config}: {reason}") from None
    config = load(flags, os.environ, read_text=_read_text, file_text=text, file_name=parsed.config or "")
    given = flags.get("auth_key")
    if given and not given.startswith(("env:", "file:")):
        hide_from_process_list(Secret(given))
    return config


def _read_text(path: str) -> str:
    with open(Path(path).expanduser(), encoding="utf-8") as file:
        return file.read(SECRET_FILE_MAX)


def hide_from_process_list(secret: Secret) -> bool:
    """Overwrite the secret in this process's argument area, so that `ps` no longer shows it."""
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        # proc(5): fields 48 and 49 are arg_start and arg_end; two fields precede the parenthesis' end.
        start, end = int(stat[45]), int(stat[46])
        area = Path("/proc/self/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return False
    raw = secret.reveal().encode()
    offset = area.find(raw)
    if offset < 0 or not start or start + offset + len(raw) > end:
        return False
    import ctypes

    while offset >= 0:
        ctypes.memset(start + offset, ord("x"), len(raw))
        offset = area.find(raw, offset + len(raw))
    return True


class Signals:
    """First signal: `stop` is set. Second: the process ends there and then."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        _log.info("stopping", signal=signal.Signals(number).name)
        self.stop.set()


async def _live(config: Config, plan: Plan) -> int:
    from meshnode.run.scope import log_failures

    log_failures(asyncio.get_running_loop())
    signals = Signals()
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(_group(config))
        await _until_stopped(group, signals, _serve(group, config, plan, stack, signals.stop.set))
    return 0


def _group(config: Config) -> Group:
    from meshnode.node.group import Group

    node = None
    if config.has_tailnet:
        from meshnode.node.node import Node

        node = Node.from_config(config)
    plain = []
    for entry in config.plain:
        from meshnode.node.wgnet import WireGuardNetwork

        network = WireGuardNetwork.from_file(
            entry.config_file, name=entry.name, tcp_memory=entry.tunnel.tcp_memory, tcp_ecn=entry.tunnel.tcp_ecn
        )
        plain.append(network)
    return Group(node, plain)


async def _serve(
    group: Group, config: Config, plan: Plan, stack: AsyncExitStack, on_logout: Callable[[], None]
) -> None:
    """Open every door, wait until the networks are ready, say so; then stay."""
    await stack.enter_async_context(_local_api(group, config, on_logout))
    networks = [group.node] if group.node is not None else list(group.plain.values())
    for door in plan.first:
        await stack.enter_async_context(door(networks[0]))
    for door in plan.shared:
        await stack.enter_async_context(door(group))
    for name, doors in plan.plain.items():
        for door in doors:
            await stack.enter_async_context(door(group.plain[name]))
    await group.ready(timeout=config.run.timeout or None)
    for network in networks:
        addresses = " ".join(str(ip) for ip in network.addresses)
        with contextlib.suppress(BrokenPipeError):
            print(f"ready {network.name} {addresses}", flush=True)
    await asyncio.Event().wait()


def _local_api(group: Group, config: Config, on_logout: Callable[[], None]) -> AbstractAsyncContextManager[Any]:
    from meshnode.local.api import LocalApi
    from meshnode.local.paths import make_runtime_dir, runtime_dir, socket_path

    # Plain networks keep no state; the directory is where their commands look for the socket.
    directory = group.state_dir or ("" if config.has_tailnet else config.tailscale.state_dir) or MEMORY
    if directory != MEMORY:
        with contextlib.suppress(OSError):  # the socket says what is wrong with it
            Path(directory).expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    path = socket_path(directory, os.environ)
    if path.parent == runtime_dir(os.environ):
        make_runtime_dir(os.environ)
    return LocalApi(group, path, on_logout=on_logout)


async def _until_stopped(group: Group, signals: Signals, work: Any) -> None:
    """Run `work` until a signal; raises what `work` raises or what ended a network."""
    from meshnode.run.scope import Scope

    async with Scope("up") as scope:
        serving = scope.spawn(_quiet(work), "serve")
        stopped = scope.spawn(signals.stop.wait(), "signal")
        failed = scope.spawn(group.wait_failed(), "failure")
        await asyncio.wait({serving, stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
        if serving.done() and (error := serving.result()) is not None:
            raise error


async def _quiet(work: Any) -> Exception | None:
    """The error of `work` as a value: it is raised by the caller, not logged as a bug."""
    try:
        await work
    except Exception as error:
        return error
    return None
