"""The one place that creates tasks.

A Scope owns named tasks and ends them, newest first, when its block is left. A task that fails
ends the scope with its error, loudly; `supervise` restarts what speaks to the outside instead.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from meshnode.run.log import Logger, get_logger

_log: Logger = get_logger("scope")
STOP_TIMEOUT_S = 5.0
"""A task that ignores its cancellation this long is reported and left behind."""


def log_failures(loop: asyncio.AbstractEventLoop) -> None:
    """What fails in a callback, where no task is to blame, becomes one line of the log."""

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        named = {"error": f"{type(error).__name__}: {error}"} if error is not None else {}
        _log.error("callback failed", what=context.get("message", ""), **named)
        if error is not None:
            _log.debug("where", stack="".join(traceback.format_exception(error)))

    loop.set_exception_handler(tell)


class Scope:
    """Named tasks with one owner.

    `failed` completes with the first unexpected error of any task; the owner awaits it beside its
    own work, so that a bug is never silent.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: list[asyncio.Task[Any]] = []
        self._closing = False
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` until it ends or the scope does. RuntimeError once the scope is closing."""
        if self._closing:
            work.close()
            raise RuntimeError(f"scope {self.name} is closing; {name} cannot start")
        task = asyncio.create_task(work, name=f"{self.name}/{name}")
        self._tasks.append(task)
        task.add_done_callback(self._on_done)
        return task

    def supervise(
        self,
        make: Callable[[], Awaitable[Any]],
        name: str,
        *,
        delay: Callable[[int], float],
        expected: tuple[type[BaseException], ...],
    ) -> asyncio.Task[Any]:
        """Run `make()` again and again: after an `expected` error, wait `delay(failures)` seconds."""

        async def loop() -> None:
            failures = 0
            while True:
                try:
                    await make()
                    failures = 0
                except expected as error:
                    failures += 1
                    _log.warning("restarting after an error", part=name, error=str(error), failures=failures)
                await asyncio.sleep(delay(failures))

        return self.spawn(loop(), name)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if not self._closing:
            _log.error("task failed", task=task.get_name(), error=f"{type(error).__name__}: {error}")
        if not self.failed.done():
            self.failed.set_result(error)

    async def aclose(self) -> None:
        """Cancel every task, newest first, and wait for each, bounded."""
        self._closing = True
        me = asyncio.current_task()
        while tasks := [t for t in self._tasks if t is not me]:
            task = tasks[-1]
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
            if not done:
                _log.error("task ignores its cancellation", task=task.get_name())
            if task in self._tasks:
                self._tasks.remove(task)
        if not self.failed.done():
            self.failed.cancel()
