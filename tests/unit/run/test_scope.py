"""A scope ends what it started, and no failure is silent."""

import asyncio
import io

import pytest

from meshnode.run.log import configure
from meshnode.run.scope import Scope, log_failures
from meshnode.run.snapshot import Snapshot


async def _forever() -> None:
    await asyncio.Event().wait()


def test_leaving_the_block_ends_every_task() -> None:
    async def main() -> None:
        async with Scope("s") as scope:
            tasks = [scope.spawn(_forever(), f"t{i}") for i in range(3)]
        assert all(t.cancelled() for t in tasks)

    asyncio.run(main())


def test_a_failing_task_is_reported() -> None:
    async def fail() -> None:
        raise KeyError("bug")

    async def main() -> None:
        async with Scope("s") as scope:
            scope.spawn(fail(), "t")
            error = await asyncio.wait_for(scope.failed, 5)
            assert isinstance(error, KeyError)

    asyncio.run(main())


def test_a_failing_callback_is_one_line() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    def fail() -> None:
        raise KeyError("bug")

    async def main() -> None:
        log_failures(asyncio.get_running_loop())
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    try:
        asyncio.run(main())
    finally:
        configure(level="off")
    assert "callback failed" in stream.getvalue() and "KeyError: 'bug'" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1 and "Traceback" not in stream.getvalue()


def test_supervise_restarts_after_an_expected_error_only() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        raise ConnectionError if runs < 3 else ValueError

    async def main() -> None:
        async with Scope("s") as scope:
            scope.supervise(work, "w", delay=lambda n: 0.0, expected=(ConnectionError,))
            assert isinstance(await asyncio.wait_for(scope.failed, 5), ValueError)

    asyncio.run(main())
    assert runs == 3


def test_a_closing_scope_takes_no_more_work() -> None:
    async def main() -> None:
        scope = Scope("s")
        await scope.aclose()
        with pytest.raises(RuntimeError):
            scope.spawn(_forever(), "late")

    asyncio.run(main())


def test_snapshot_wakes_whoever_waits() -> None:
    async def main() -> None:
        value = Snapshot(0)
        waiter = asyncio.ensure_future(value.until(lambda v: v >= 2))
        await asyncio.sleep(0)
        value.publish(1)
        value.publish(2)
        assert await asyncio.wait_for(waiter, 5) == 2

    asyncio.run(main())
