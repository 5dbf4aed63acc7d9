"""The doors that a configuration asks for: tailnet ports to serve, local ports into the tailnet.

Each is a function from a network (for doors out of this machine: from the group of them) to an async context manager,
so that `up` opens them while the node joins. Checking a target is done here, before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from meshnode.config.model import Tunnel

Door = Callable[[Any], AbstractAsyncContextManager[Any]]


def doors_of(tunnel: Tunnel) -> Sequence[Door]:
    """The doors of a `[tunnel]` that serve into its network. ConfigError names the one that cannot be."""
    doors: list[Door] = []
    for rule in tunnel.serve:
        from meshnode.serve.sites import site_door

        doors.append(site_door(rule))
    return doors


def doors_out(tunnel: Tunnel) -> Sequence[Door]:
    """Its doors for local programs. ConfigError."""
    if not tunnel.socks5:
        return ()
    from meshnode.tunnel.proxy import socks5_door

    return (socks5_door(tunnel.socks5),)
