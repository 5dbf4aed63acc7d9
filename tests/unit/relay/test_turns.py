"""Places by turns: no crowd keeps another's out, and none is lost."""

from __future__ import annotations

import asyncio

from meshnode.base.keys import NodePrivate
from meshnode.relay.turns import Turns
from meshnode.relay.verify import ASKING_MAX, VerifyUrl


def test_a_crowd_waits_for_itself() -> None:
    async def main() -> None:
        turns, order = Turns(2), list[str]()

        async def ask(who: str) -> None:
            async with turns.place(who):
                order.append(who)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            for who in ["crowd"] * 50 + ["one", "another"]:
                tasks.create_task(ask(who))
        assert len(order) == 52
        assert {"one", "another"} <= set(order[:6])
        assert turns.waiting == 0

    asyncio.run(main())


def test_who_gives_up_leaves_its_place() -> None:
    async def main() -> None:
        turns = Turns(1)
        held, done = asyncio.Event(), list[str]()

        async def hold(who: str) -> None:
            async with turns.place(who):
                done.append(who)
                await held.wait()

        first, second, third = [asyncio.create_task(hold(who)) for who in "abb"]
        await asyncio.sleep(0)
        assert turns.waiting == 2
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert turns.waiting == 1
        held.set()
        first.cancel()  # its place goes to the third in the same moment in which the third gives up
        await asyncio.sleep(0)
        third.cancel()
        await asyncio.gather(first, third, return_exceptions=True)
        async with asyncio.timeout(10), turns.place("c"):
            assert done[0] == "a"

    asyncio.run(main())


class Verifier:
    """An HTTP server that gives as many answers as it is allowed to."""

    def __init__(self) -> None:
        self.allowed: asyncio.Queue[None] = asyncio.Queue()
        self.server: asyncio.Server
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/verify"

    async def aclose(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
                await self.allowed.get()
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"Allow":true}')
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()


def test_a_flood_of_questions_from_one_address_and_a_slow_verifier_keep_no_other_waiting() -> None:
    async def main() -> None:
        verifier = Verifier()
        verify = VerifyUrl(await verifier.start())
        key = NodePrivate(bytes(range(32))).public()
        crowd = [asyncio.create_task(verify(key, "192.0.2.1")) for _ in range(4 * ASKING_MAX)]
        member = asyncio.create_task(verify(key, "192.0.2.2"))
        await asyncio.sleep(0)
        for _ in range(ASKING_MAX + 2):
            verifier.allowed.put_nowait(None)
        async with asyncio.timeout(20):
            assert await member
        assert sum(task.done() for task in crowd) < 2 * ASKING_MAX
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await verify.aclose()
        await verifier.aclose()

    asyncio.run(main())
