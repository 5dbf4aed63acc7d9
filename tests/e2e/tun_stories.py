"""What tests/e2e/test_tun.py runs in a network namespace of its own: `python -m tests.e2e.tun_stories STORY`.

A town on the namespace's loopback, one node with a kernel interface, others without: the kernel's programs are this
process's own plain sockets, which know nothing of meshnode.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from meshnode.base.errors import AccessDenied, Refused
from meshnode.control.policy import Policy
from meshnode.node.node import Node
from tests.e2e.town import Town, make_town, run, see_each_other, until

TUN = "mesh0"
BYTES = bytes(range(256)) * 8192


def ip(*words: str) -> Any:
    """What `ip -json …` says."""
    done = subprocess.run(["ip", "-json", *words], capture_output=True, text=True, check=False)
    return json.loads(done.stdout or "[]")


def has_interface() -> bool:
    return any(link["ifname"] == TUN for link in ip("link"))


def addresses() -> list[str]:
    (link,) = ip("address", "show", "dev", TUN)
    return [a["local"] for a in link["addr_info"] if a["scope"] == "global"]


def routes() -> set[str]:
    """Host routes into the interface, our own address left out."""
    found = [*ip("route", "show", "dev", TUN), *ip("-6", "route", "show", "dev", TUN)]
    return {r["dst"] for r in found if r["protocol"] == "static"}


async def echo(reader: asyncio.StreamReader, writer: Any) -> None:
    """Send back what comes until its end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def through(reader: asyncio.StreamReader, writer: Any, data: bytes = BYTES) -> bytes:
    """What an echo makes of `data`; both ways are busy at once."""

    async def write() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(write())
    got = await reader.read(-1)
    await sending
    writer.close()
    return got


async def ping(target: str) -> bool:
    """One answer of several: the first may be lost with a handshake, as on any network."""
    process = await asyncio.create_subprocess_exec("ping", "-c", "5", "-W", "5", target, stdout=-3)
    return await process.wait() == 0


async def pair(town: Town) -> tuple[Node, Node]:
    tun, plain = await town.join("tun", tun=TUN), await town.join("plain")
    await see_each_other(tun, plain)
    await until(lambda: len(routes()) == 2, "the peer is routed")
    return tun, plain


# --- stories ---


async def tcp() -> None:
    """Both families, both ways, kernel and in-process sockets on the same addresses."""
    async with make_town() as town:
        tun, plain = await pair(town)
        (link,) = ip("-details", "link", "show", "dev", TUN)
        assert (link["mtu"], link["gso_max_segs"]) == (1280, 49)
        assert addresses() == [str(a) for a in tun.addresses]
        assert routes() == {str(a) for a in plain.addresses}
        assert tun.status().to_json()["Interface"] == TUN and tun.status().to_json()["TUN"] is True
        await plain.start_server(echo, 7)
        await tun.start_server(echo, 8)  # of the process, on an address that the kernel has too
        for mine, theirs in zip(tun.addresses, plain.addresses, strict=True):
            assert await through(*await asyncio.open_connection(str(theirs), 7)) == BYTES
            kernel = await asyncio.start_server(echo, str(mine), 9)
            async with kernel:
                assert await through(*await plain.open_connection(mine, 9)) == BYTES
            assert await through(*await plain.open_connection(mine, 8)) == BYTES
            assert await through(*await tun.open_connection(theirs, 7)) == BYTES
            try:
                await plain.connect(mine, 10)
            except Refused:
                pass
            else:
                raise AssertionError("the kernel refuses a port that nobody has")
        counters = tun.status().counters
        assert counters["tun_read_bytes"] > 8 * len(BYTES) / 4 and counters["tun_merge_refused"] == 0
        assert counters["tun_writes"] < counters["tun_written"], "nothing was merged"
    assert not has_interface()


async def udp_and_ping() -> None:
    """Datagrams and echo both ways, both families."""
    async with make_town() as town:
        tun, plain = await pair(town)
        for mine, theirs in zip(tun.addresses, plain.addresses, strict=True):
            assert await ping(str(theirs))
            await plain.ping(mine, kind="icmp")
            await plain.ping(mine, kind="icmp", size=1200)
            with kernel_socket(mine, 5353) as kernel:
                await ask_from_kernel(kernel, plain, theirs)
                async with await plain.open_datagram(mine, 5353) as flow:
                    flow.send(b"unasked")
                    assert await heard(kernel) == b"unasked"


async def by_relay() -> None:
    """What relays carry reaches the kernel at once, each packet whole, with nothing by UDP to push it along."""
    async with make_town(paths="relay") as town:
        tun, plain = await pair(town)
        await plain.start_server(echo, 7)
        for mine, theirs in zip(tun.addresses, plain.addresses, strict=True):
            reader, writer = await asyncio.open_connection(str(theirs), 7)
            for number in range(200):  # one packet each way at a time
                writer.write(number.to_bytes(4, "big"))
                assert int.from_bytes(await asyncio.wait_for(reader.readexactly(4), 5.0), "big") == number
            assert await through(reader, writer) == BYTES
            kernel = await asyncio.start_server(echo, str(mine), 9)
            async with kernel:
                assert await through(*await plain.open_connection(mine, 9)) == BYTES
        counters = tun.status().counters
        assert counters["udp_rx_datagrams"] == 0 and counters["wg_rx_data"] > 400


def kernel_socket(own: Any, port: int) -> socket.socket:
    kernel = socket.socket(socket.AF_INET if own.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    kernel.setblocking(False)
    kernel.bind((str(own), port))
    return kernel


async def heard(kernel: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(kernel, 2000)


async def ask_from_kernel(kernel: socket.socket, plain: Node, theirs: Any) -> None:
    """A question by a kernel's socket, answered by the other node."""
    server = await plain.listen_packet(53, host=theirs)
    await asyncio.get_running_loop().sock_sendto(kernel, b"question", (str(theirs), 53))
    async with asyncio.timeout(5):
        datagram = await server.recv()
    assert datagram.data == b"question"
    server.reply(datagram, b"answer")
    assert await heard(kernel) == b"answer"
    server.close()


async def policy() -> None:
    """Answers to what the kernel sent need no rule; what nobody asked for does."""
    async with make_town() as town:
        tun, plain = await pair(town)
        mine, theirs = tun.addresses[0], plain.addresses[0]
        town.control.tailnet.set_policy(Policy.parse([{"src": ["*"], "dst": ["plain:*"]}]))
        await until(lambda: tun.netmap and len(tun.netmap.rules) == 0, "nothing may enter")
        await until(lambda: plain.netmap and len(plain.netmap.rules) == 1, "one way is open")
        await plain.start_server(echo, 7)
        assert await through(*await asyncio.open_connection(str(theirs), 7)) == BYTES
        assert await ping(str(theirs))
        with kernel_socket(mine, 5353) as kernel, kernel_socket(mine, 5354) as other:
            await ask_from_kernel(kernel, plain, theirs)
            async with await plain.open_datagram(mine, 5354) as flow:
                flow.send(b"unasked")
                await ask_from_kernel(kernel, plain, theirs)  # it came after, and what came before is gone
            try:
                other.recv(100)
            except BlockingIOError:
                pass
            else:
                raise AssertionError("it entered without a rule")
        kernel_server = await asyncio.start_server(echo, str(mine), 9)
        async with kernel_server:
            try:
                await plain.connect(mine, 9, timeout=5)
            except AccessDenied:
                pass
            else:
                raise AssertionError("it entered without a rule")


async def peers_come_and_go() -> None:
    """Routes follow the netmap, and only it."""
    async with make_town() as town:
        tun, plain = await pair(town)
        third = town.node("third")
        async with third:
            await third.ready(timeout=10)
            await until(lambda: len(routes()) == 4, "the third is routed")
            assert await ping(str(third.addresses[0]))
        await until(lambda: routes() == {str(a) for a in plain.addresses}, "its routes are gone")
        assert not await ping(str(third.addresses[0])), "no way leads there any more"


def node_process(town: Town, folder: str) -> subprocess.Popen[str]:
    """`meshnode up --tun`, ready."""
    words = ["up", "--tun", TUN, "--control-url", town.control.url, "--auth-key", town.control.add_key()]
    environment = os.environ | {"MESHNODE_PLAIN_RELAYS": "1", "MESHNODE_USE_LOOPBACK": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "meshnode", *words, "--hostname", "tun", "--state-dir", folder],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def is_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line.startswith("ready tun"), process.communicate()[1]


async def ends() -> None:
    """Nothing stays behind: after SIGTERM, after SIGKILL, after somebody removed the interface."""
    async with make_town() as town:
        plain = await town.join("plain")
        for how, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL), (None, 1)):
            with tempfile.TemporaryDirectory() as folder:
                process = node_process(town, folder)
                await is_ready(process)
                assert len(addresses()) == 2 and {str(a) for a in plain.addresses} <= routes()
                assert await ping(str(plain.addresses[0]))
                if how is not None:
                    process.send_signal(how)
                else:
                    subprocess.run(["ip", "link", "delete", TUN], check=True)
                _, said = await asyncio.to_thread(process.communicate)
                assert process.returncode == code, said
                assert not has_interface() and not routes()
                assert how is not None or f"interface {TUN} was removed while in use" in said


async def without_ipv6() -> None:
    """A machine that has IPv6 turned off still gets the rest."""
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    async with make_town() as town:
        tun, plain = await town.join("tun", tun=TUN), await town.join("plain")
        await see_each_other(tun, plain)
        await until(lambda: routes() == {str(plain.addresses[0])}, "IPv4 is routed")
        assert addresses() == [str(tun.addresses[0])]
        assert await ping(str(plain.addresses[0]))


async def guide() -> None:
    """docs/guides/tun.md, as a reader would run it."""
    from tests.test_docs import TUN_PAGE, play

    async with make_town() as town:
        await asyncio.to_thread(play, TUN_PAGE, town.control.url, town.control.add_key())
    await until(lambda: not has_interface(), "the interface is gone with the reader's shell")


STORIES = {f.__name__: f for f in (guide, tcp, udp_and_ping, by_relay, policy, peers_come_and_go, ends, without_ipv6)}

if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    run("asyncio", STORIES[sys.argv[1]], bound_s=60)
