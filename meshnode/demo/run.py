"""The story of `meshnode demo`, each step checked: join, resolve, call, download by relay, then directly.

Lines are printed as things happen. The path of a download is not believed because a node says so: the
relay's own count of bytes has to agree. Any step that does not hold ends the demo with its reason and
exit code 1; everything that was started is ended first.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from meshnode.base.errors import DialError, MeshError
from meshnode.demo.paper import write_file
from meshnode.demo.stage import CAPABILITY_PORT, FILE, MEBIBYTES, Broken, Child, Stage, build
from meshnode.run.scope import Scope

BUDGET_S: Final = 60.0
"""Nothing here takes this long; a demo that hangs says so."""
SEE_S: Final = 5.0
DIRECT_S: Final = 10.0
POLL_S: Final = 0.05
SPACE_NEEDED: Final = (MEBIBYTES + 64) << 20
INTERRUPTED: Final = 130
TERMINATED: Final = 143


def run(*, keep: bool) -> int:
    """Play the demo; returns the exit code."""
    try:
        with asyncio.Runner() as runner:
            return runner.run(_play(keep))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        print("\nended by you; nothing is left running", file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED


async def _play(keep: bool) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    started = time.monotonic()
    try:
        async with build() as stage:
            try:
                async with asyncio.timeout(BUDGET_S):
                    await _while_alive(stage, _story(stage))
                say(f"\nEverything held, in {time.monotonic() - started:.1f} s.")
                if keep:
                    await _keep(stage)
            except (MeshError, TimeoutError):
                print(stage.logs(), file=sys.stderr)
                raise
    except TimeoutError as error:
        if isinstance(error, MeshError):
            raise
        raise Broken(f"the demo did not end within {BUDGET_S:g} s") from None
    return 0


def say(text: str = "") -> None:
    """One line for the reader, at once."""
    print(text, flush=True)


async def _while_alive(stage: Stage, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`; a node that ends meanwhile ends it at once instead of by a time-out."""
    async with Scope("story") as scope:
        telling = scope.spawn(_outcome(work), "tell")
        await asyncio.wait({telling, stage.on_child_end}, return_when=asyncio.FIRST_COMPLETED)
        if stage.on_child_end.done():
            raise Broken(stage.on_child_end.result())
        if (error := telling.result()) is not None:
            raise error


async def _outcome(work: Coroutine[Any, Any, None]) -> Exception | None:
    """The error of `work` as a value: it is raised by the caller, not logged as a bug."""
    try:
        await work
    except Exception as error:
        return error
    return None


async def _story(stage: Stage) -> None:
    say("A tailnet on this machine: a control server, a relay, two nodes. No root, and nothing stays behind.\n")
    say(f"  control server   {stage.control.url}, in this process")
    say(f"  relay            demo, 127.0.0.1:{stage.relay.port}, TLS, its certificate pinned by the relay map")
    if shutil.disk_usage(stage.folder).free < SPACE_NEEDED:
        raise Broken(f"{stage.folder.parent} has less than {SPACE_NEEDED >> 20} MiB free; set TMPDIR to a larger place")
    # Written before the nodes start, so that their start is not measured against this.
    stage.digest = await asyncio.to_thread(write_file, stage.site / FILE, MEBIBYTES)
    worker = await stage.add_worker()
    laptop = await stage.add_laptop()
    await worker.wait_ready()
    for child in (worker, laptop):
        say(f"  {child.name:<16} {', '.join((child.fqdn, *child.addresses))}; ready after {child.ready_s:.2f} s")
    await _until(lambda: _sees(laptop, worker), SEE_S, "the laptop learns of the worker")
    say("\nFrom the laptop, by name:\n")
    await _resolve(laptop, worker)
    await _call(stage)
    say("\nBy relay, no UDP between them:\n")
    await _transfer(stage, laptop, is_relayed=True)
    await asyncio.to_thread(lambda: laptop.tell("/paths", mode="auto"))
    await _until(lambda: _endpoint(laptop), DIRECT_S, "a direct path is found")
    say("\nDirectly, WireGuard over UDP:\n")
    await _transfer(stage, laptop, is_relayed=False)


async def _until(wanted: Callable[[], Any], bound_s: float, what: str) -> Any:
    """Wait for a condition that is asked of a child, away from the loop: the relay lives in it."""
    deadline = time.monotonic() + bound_s
    while not (value := await asyncio.to_thread(wanted)):
        if time.monotonic() > deadline:
            raise Broken(f"not within {bound_s:g} s: {what}")
        await asyncio.sleep(POLL_S)
    return value


def _sees(laptop: Child, worker: Child) -> bool:
    peers = (laptop.ask("/status")["Peer"] or {}).values()
    return any(peer["DNSName"].rstrip(".") == worker.fqdn for peer in peers)


def _ping(laptop: Child) -> dict[str, Any]:
    return dict(laptop.tell("/ping", ip="worker", timeout=2.0))


def _endpoint(laptop: Child) -> str:
    try:
        return str(_ping(laptop)["Endpoint"])
    except DialError:
        return ""


async def _resolve(laptop: Child, worker: Child) -> None:
    found = await asyncio.to_thread(lambda: laptop.ask("/dns", name="worker")["Addresses"])
    if sorted(found) != sorted(worker.addresses):
        raise Broken(f"worker resolves to {found}, but has {worker.addresses}")
    say(f"  worker           is {' and '.join(found)}")


async def _call(stage: Stage) -> None:
    base = f"http://worker:{CAPABILITY_PORT}"
    health = await stage.fetch("GET", f"{base}/health")
    _expect(health, 200, {"status": "ok", "capabilities": ["hello", "checksum"]})
    say(f"  GET /health      {health['status']} {health['body']}  {_ms(health['first_s'])}")
    order = json.dumps({"capability": "hello", "params": {"who": "from the laptop"}})
    refused = await stage.fetch("POST", f"{base}/exec", body=order)
    _expect(refused, 401, {"error": "Unauthorized"})
    say(f"  POST /exec       {refused['status']} {refused['body']}  without the token")
    bearer = f"Authorization: Bearer {stage.token}"
    answer = await stage.fetch("POST", f"{base}/exec", bearer, body=order)
    _expect(answer, 200, {"exit_code": 0, "stdout": "hello, from the laptop\n"})
    say(f"  POST /exec       {answer['status']} {json.loads(answer['body'])['stdout']!r}  {_ms(answer['first_s'])}")
    order = json.dumps({"capability": "checksum", "params": {"file": FILE}})
    answer = await stage.fetch("POST", f"{base}/exec", bearer, body=order)
    _expect(answer, 200, {"exit_code": 0})
    told = json.loads(answer["body"])["stdout"].split()[0]
    if told != stage.digest:
        raise Broken(f"the worker says that {FILE} has the SHA-256 {told}, but it was written with {stage.digest}")
    say(f"  POST /exec       {answer['status']} checksum of {FILE}: {told[:16]}…")


def _expect(answer: dict[str, Any], status: int, holds: dict[str, Any]) -> None:
    body = json.loads(answer["body"]) if answer["status"] == status else None
    if body is None or any(body.get(key) != value for key, value in holds.items()):
        raise Broken(f"expected {status} {holds}, got {answer['status']} {answer.get('body')}")


async def _transfer(stage: Stage, laptop: Child, *, is_relayed: bool) -> None:
    pong = await asyncio.to_thread(_ping, laptop)
    if bool(pong["Endpoint"]) == is_relayed:
        raise Broken(f"the pong came via {pong['Endpoint'] or 'the relay'}")
    way = pong["Endpoint"] or f"relay {pong['DERPRegionCode']}"
    latency = _ms(pong["LatencySeconds"])
    say(f"  ping             pong from {pong['NodeName']} ({pong['NodeIP']}) via {way} in {latency}")
    before = stage.relayed_bytes()
    answer = await stage.fetch("GET", f"http://worker/{FILE}")
    carried = stage.relayed_bytes() - before
    if answer["status"] != 200 or answer["size"] != MEBIBYTES << 20:
        raise Broken(f"the download ended with {answer['status']} and {answer['size']} bytes")
    if answer["sha256"] != stage.digest:
        raise Broken(f"the download has the SHA-256 {answer['sha256']}, expected {stage.digest}")
    if (carried > answer["size"]) != is_relayed:
        raise Broken(f"the relay carried {carried >> 20} MiB of it, which is not the path expected")
    rate = answer["size"] / answer["seconds"]
    say(
        f"  GET /{FILE}    {MEBIBYTES} MiB in {answer['seconds']:.2f} s, {rate / (1 << 20):.0f} MiB/s "
        f"({rate * 8 / 1e9:.2f} Gbit/s); first byte after {_ms(answer['first_s'])}"
    )
    share = f"{carried >> 20} MiB" if carried >> 20 else f"{carried >> 10} KiB"
    say(f"                   SHA-256 equal; of this the relay carried {share}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


async def _keep(stage: Stage) -> None:
    """Say how to use it, then stay until Ctrl-C."""
    laptop, door = stage.folder / "laptop", stage.door_port
    curl = f"curl --socks5-hostname 127.0.0.1:{door}"
    key = stage.control.add_key()
    say(f"""
It stays until Ctrl-C. In another shell:

  meshnode status --state-dir {laptop}
  meshnode ping worker --state-dir {laptop}
  {curl} http://worker:{CAPABILITY_PORT}/health
  {curl} -H 'Authorization: Bearer {stage.token}' \\
      -d '{{"capability":"hello","params":{{"who":"you"}}}}' http://worker:{CAPABILITY_PORT}/exec
  {curl} -o /dev/null http://worker/{FILE}

A third node, with whatever you like to serve:

  MESHNODE_USE_LOOPBACK=true meshnode up --control-url {stage.control.url} \\
      --auth-key {key} --hostname third --state-dir mem: --serve http:80=.
""")
    raise Broken(await stage.on_child_end)
