"""Name and port → a connected TunnelSocket.

Addresses are tried in order, IPv4 first: both families reach the same peer through the same tunnel,
so a race would prove nothing. The next is tried only where it could differ; the first error is told.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from meshnode.base.addr import IP
from meshnode.base.errors import AccessDenied, DialError, Refused, TimedOut
from meshnode.engine.flow import TunnelSocket

CONNECT_TIMEOUT_S: Final = 10.0
_WORTH_ANOTHER: Final = (Refused, AccessDenied)
"""The service or the policy may know the other family only; an absent peer is absent by both."""


class Dialer:
    """Dials by the names of the newest netmap."""

    def __init__(
        self,
        connect: Callable[[IP, int], Awaitable[TunnelSocket]],
        resolve: Callable[[str], Sequence[IP]],
    ) -> None:
        """resolve: addresses of a name or of an address in text; raises NameNotFound."""
        self._connect = connect
        self._resolve = resolve

    async def dial(self, host: str | IP, port: int, *, timeout: float | None = CONNECT_TIMEOUT_S) -> TunnelSocket:
        """Connect. DialError says why not, within `timeout` seconds; None leaves it to TCP."""
        if not 0 < port < 65536:
            raise _refit(DialError(f"{port} is no port to connect to; use 1 to 65535"), errno.EINVAL)
        name = str(host)
        addresses = self._resolve(name)
        first: DialError | None = None
        try:
            async with asyncio.timeout(timeout):
                for ip in addresses:
                    try:
                        return await self._connect(ip, port)
                    except _WORTH_ANOTHER as error:
                        first = first or error
        except TimeoutError as error:
            if isinstance(error, DialError):
                raise _named(error, name, addresses) from None
            message = (
                f"{name} port {port} did not answer within {timeout:g} s; is it online, and does the policy allow it?"
            )
            raise _refit(TimedOut(message), errno.ETIMEDOUT) from None
        except DialError as error:
            raise _named(error, name, addresses) from None
        assert first is not None, "resolve returned no address and raised nothing"
        raise _named(first, name, addresses) from None


def _named(error: DialError, name: str, addresses: Sequence[IP]) -> DialError:
    """The same error with the name the caller used in front."""
    if name in {str(ip) for ip in addresses}:
        return error
    return _refit(type(error)(f"{name}: {error}"), error.errno)


def _refit(error: DialError, number: int | None) -> DialError:
    error.errno = number
    return error
