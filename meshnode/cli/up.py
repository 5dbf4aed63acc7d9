"""`meshnode up`: one node in the foreground, until a signal, a logout or a refusal.

Standard output carries one line, `ready NAME ADDRESS…`, once the node and its doors serve. The
first SIGTERM or SIGINT stops in order; the second ends the process at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Final

from meshnode.base.errors import ConfigError
from meshnode.cli.doors import Door, doors_of
from meshnode.config.load import load, read_secret
from meshnode.config.model import MEMORY, Config, Secret, settings
from meshnode.run.log import configure, get_logger

STOP_S: Final = 3.0
"""An orderly stop takes no longer; what is left after it is dropped."""
SECRET_FILE_MAX: Final = 64 * 1024

_log = get_logger("up")


def run_up(parsed: argparse.Namespace) -> int:
    """The command."""
    config = load_config(parsed)
    return run_node(config, doors_of(config))


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
    return run_node(config, [door, *doors_of(config)])


def run_node(config: Config, doors: Sequence[Door]) -> int:
    """Run a node with its doors in this process until it is told to stop; returns the exit code."""
    configure(level=config.run.log_level, as_json=config.run.log == "json")
    raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory(config.run.loop)) as runner:
        return runner.run(_live(config, doors))


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
    names = {item.name for _, item in settings()} | {"network"}
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


class _Signals:
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


async def _live(config: Config, doors: Sequence[Door]) -> int:
    from meshnode.node.node import Node

    signals = _Signals()
    node = Node.from_config(config)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(node)
        await _until_stopped(node, signals, _serve(node, config, doors, stack, signals.stop.set))
    return 0


async def _serve(
    node: Any, config: Config, doors: Sequence[Door], stack: AsyncExitStack, on_logout: Callable[[], None]
) -> None:
    """Open every door, wait until the node is ready, say so; then stay."""
    await stack.enter_async_context(_local_api(node, config, on_logout))
    for door in doors:
        await stack.enter_async_context(door(node))
    await node.ready(timeout=config.run.timeout or None)
    addresses = " ".join(str(ip) for ip in node.addresses)
    with contextlib.suppress(BrokenPipeError):
        print(f"ready {node.name} {addresses}", flush=True)
    await asyncio.Event().wait()


def _local_api(node: Any, config: Config, on_logout: Callable[[], None]) -> AbstractAsyncContextManager[Any]:
    from meshnode.local.api import LocalApi
    from meshnode.local.paths import make_runtime_dir, runtime_dir, socket_path

    directory = node.state_dir or MEMORY
    path = socket_path(directory, os.environ)
    if path.parent == runtime_dir(os.environ):
        make_runtime_dir(os.environ)
    return LocalApi(node, path, on_logout=on_logout)


async def _until_stopped(node: Any, signals: _Signals, work: Any) -> None:
    """Run `work` until a signal; raises what `work` raises or what ended the node."""
    from meshnode.run.scope import Scope

    async with Scope("up") as scope:
        serving = scope.spawn(_quiet(work), "serve")
        stopped = scope.spawn(signals.stop.wait(), "signal")
        failed = scope.spawn(node.wait_failed(), "failure")
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
