"""The doors that a configuration asks for: tailnet ports to serve, local ports into the tailnet.

Each is a function from the node to an async context manager, so that `up` opens them while the node
joins. Checking a target is done here, before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from meshnode.config.model import Config

Door = Callable[[Any], AbstractAsyncContextManager[Any]]


def doors_of(config: Config) -> Sequence[Door]:
    """Every door of `[tunnel]`. ConfigError names the one that cannot be."""
    doors: list[Door] = []
    for rule in config.tunnel.serve:
        from meshnode.serve.sites import site_door

        doors.append(site_door(rule))
    if config.tunnel.socks5:
        from meshnode.tunnel.proxy import socks5_door

        doors.append(socks5_door(config.tunnel.socks5))
    return doors
