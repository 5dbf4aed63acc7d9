"""`meshnode capability`: the door that serves fixed commands on one tailnet port.

Everything that can be wrong is found before the node starts: token, spec, port. The HTTP half, which
needs the HTTP library, is in `execapi`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from meshnode.base.errors import ConfigError
from meshnode.config.model import Secret
from meshnode.serve.access import Tokens
from meshnode.serve.ingress import Identify
from meshnode.serve.sites import Handler, Site
from meshnode.serve.specfile import load_spec


def capability_door(*, spec: Path, token: Secret, port: int) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """The door, given a Node. ConfigError if token, spec or port will not do."""
    tokens = Tokens(token.reveal())
    loaded = load_spec(spec)
    if not 1 <= port <= 65535:
        raise ConfigError(f"port: {port} is no port; use 1 to 65535")

    def open_handler(identify: Identify) -> AbstractAsyncContextManager[Handler]:
        from meshnode.serve.execapi import ExecApi

        return ExecApi(loaded, tokens, identify)

    return lambda node: Site(node, port, open_handler)
