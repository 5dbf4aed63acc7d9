"""docs/reference/errors.md, row by row: the bad input goes to the real command, its one line is compared.

`MESHNODE_WRITE_DOCS=1 pytest tests/e2e/test_errors.py` writes the page anew from what the commands say.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import ssl
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnode.base import errors
from meshnode.base.errors import MeshError
from meshnode.node.node import Node
from tests.e2e.town import Town, make_town, run, see_each_other

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "errors.md"
BOUND_S = 20.0
Argv = Callable[["Stage"], list[str]]

HEAD = """# What can go wrong, and the exit code it ends with

Every error is one line on standard error that starts with `meshnode:`, and an exit code of its own;
`--debug` adds the traceback. In a program the same errors are exceptions of `meshnode`, and
network errors are the built-in ones too (`ConnectionRefusedError`, `TimeoutError`, …).

This page is compared with the real commands by `tests/e2e/test_errors.py`.

## Exit codes

0 is success, 1 an error without a better code, 2 also a misused command line, 70 a bug of meshnode, 130 an interrupt.
A node that is not ready in time ends with the code of what stood in its way, if anything did, else 46.

| code | error | means |
|---|---|---|
"""
MIDDLE = """
## Bad input and what is said to it

`DIR` stands for a path, ports and process numbers are examples.

| what is wrong | command | message | code |
|---|---|---|---|
"""


@dataclass
class Stage:
    """A town, a running node, and servers that are no control servers."""

    town: Town
    node: Node
    folder: Path
    web: str
    tls: str
    proxy: str
    used: str

    @property
    def state(self) -> str:
        return str(self.folder / "running")

    def up(self, **settings: str) -> list[str]:
        """`meshnode up`, fine but for these settings."""
        values = {
            "control_url": self.town.control.url,
            "state_dir": str(self.folder / "fresh"),
            "auth_key": self.town.control.add_key(),
            "timeout": "3",
        }
        return ["up", *(word for flag, value in (values | settings).items() for word in (_flag(flag), value))]

    def with_state(self, name: str, content: str) -> list[str]:
        """`meshnode up` with this state file."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "state.json").write_text(content)
        return self.up(state_dir=str(folder))

    def with_file(self, content: str) -> list[str]:
        """`meshnode up -c` with this file."""
        path = self.folder / "node.toml"
        path.write_text(content)
        return ["up", "-c", str(path)]

    def ask(self, verb: str, *words: str) -> list[str]:
        """A command for the running node."""
        return [verb, "--state-dir", self.state, *words]

    def derp(self, *words: str, listen: str = "127.0.0.1:0") -> list[str]:
        """`meshnode derp` on no fixed port."""
        place = ["--listen", listen.removeprefix("http://"), "--stun", "off", "--dir", str(self.folder / "relay")]
        return ["derp", *place, *words]

    @property
    def acme(self) -> tuple[str, ...]:
        """A relay that wants a certificate from nobody."""
        return ("--open", "--host", "relay.lan", "--acme", "https://127.0.0.1:1/dir")

    @property
    def mismatch(self) -> tuple[str, ...]:
        """A certificate and the key of another."""
        return ("--cert", str(self.folder / "ca.pem"), "--key", str(self.folder / "key.pem"))

    @property
    def udp(self) -> str:
        """An address that the node has."""
        return f"127.0.0.1:{self.node.status().endpoints[0].port}"

    @property
    def broken(self) -> str:
        """A relay's directory with half a key."""
        folder = self.folder / "broken"
        folder.mkdir()
        (folder / "relay.key.json").write_text('{"PrivateKey": "privkey:4')
        return str(folder)

    def shorten(self, text: str) -> str:
        """What differs from run to run replaced by examples."""
        known = {
            self.town.control.url: "http://127.0.0.1:8080",
            self.web: "http://127.0.0.1:8000",
            self.tls: "https://127.0.0.1:8443",
            self.proxy: "http://127.0.0.1:3128",
        }
        for actual, word in known.items():
            text = text.replace(actual, word).replace(actual.partition("//")[2], word.partition("//")[2])
        text = text.replace(str(self.folder), "DIR")
        text = re.sub(r"process \d+", "process 4242", text)
        text = re.sub(r"hskey-authreq-\S+", "hskey-authreq-ID", text)
        return text.replace(str(self.node.status().endpoints[0].port), "41641").replace("|", "\\|")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


LONG_NAME = "meshnode-laptop-0"
TAKEN, NOT_ALLOWED = "interface's name taken", "interface without CAP_NET_ADMIN"

CASES: list[tuple[str, str, Argv]] = [
    ("wrong key", "up", lambda s: s.up(auth_key="nonsense")),
    ("expired key", "up", lambda s: s.up(auth_key=s.town.control.add_key(expires_s=-60))),
    ("key used up", "up", lambda s: s.up(auth_key=s.used)),
    ("no key", "up", lambda s: s.up(auth_key="")),
    ("key not set", "up --auth-key env:MY_KEY", lambda s: s.up(auth_key="env:MY_KEY")),
    ("nobody there", "up --control-url http://127.0.0.1:1", lambda s: s.up(control_url="http://127.0.0.1:1")),
    ("no control server", "up --control-url http://127.0.0.1:8000", lambda s: s.up(control_url=s.web)),
    ("unknown CA", "up --control-url https://127.0.0.1:8443", lambda s: s.up(control_url=s.tls)),
    ("no scheme", "up --control-url hs.lan", lambda s: s.up(control_url="hs.lan")),
    ("no proxy there", "up --proxy http://127.0.0.1:1", lambda s: s.up(proxy="http://127.0.0.1:1")),
    ("proxy wants a password", "up --proxy http://127.0.0.1:3128", lambda s: s.up(proxy=s.proxy)),
    ("proxy of another kind", "up --proxy socks5://localhost", lambda s: s.up(proxy="socks5://localhost")),
    ("CA file is none", "up --ca-file /dev/null", lambda s: s.up(control_url=s.tls, ca_file="/dev/null")),
    ("UDP port in use", "up --port 41641", lambda s: s.up(port=str(s.node.status().endpoints[0].port))),
    ("SOCKS5 port in use", "up --socks5 127.0.0.1:8000", lambda s: s.up(socks5=s.web.removeprefix("http://"))),
    ("interface named too long", f"up --tun {LONG_NAME}", lambda s: s.up(tun=LONG_NAME)),
    ("no name for an interface", "up --tun mesh/0", lambda s: s.up(tun="mesh/0")),
    (TAKEN, "up --tun lo", lambda s: s.up(tun="lo")),
    (NOT_ALLOWED, "up --tun mesh0", lambda s: s.up(tun="mesh0")),
    ("damaged state", "up --state-dir DIR/damaged", lambda s: s.with_state("damaged", '{"version": 1, "machine_')),
    ("newer state", "up --state-dir DIR/newer", lambda s: s.with_state("newer", '{"version": 2}')),
    ("state is a file", "up --state-dir DIR/file", lambda s: s.up(state_dir=str(s.folder / "file"))),
    ("state in use", "up --state-dir DIR/running", lambda s: s.up(state_dir=s.state)),
    ("unknown setting", "up -c DIR/node.toml", lambda s: s.with_file('[tailscale]\nhostnam = "gpu-1"\n')),
    ("not TOML", "up -c DIR/node.toml", lambda s: s.with_file("[tailscale\n")),
    ("unknown name", "nc othr 80", lambda s: s.ask("nc", "othr", "80")),
    ("nothing listens", "nc other 81", lambda s: s.ask("nc", "other", "81")),
    ("nobody's address", "nc 100.64.9.9 80", lambda s: s.ask("nc", "100.64.9.9", "80")),
    ("no node runs", "status --state-dir DIR/nobody", lambda s: ["status", "--state-dir", str(s.folder / "nobody")]),
    ("nor a map of relays", "netcheck", lambda s: ["netcheck", "--state-dir", str(s.folder / "nobody")]),
    (
        "no relay map there",
        "netcheck --derp-map DIR/none",
        lambda s: ["netcheck", "--derp-map", str(s.folder / "none")],
    ),
    ("no relay map", "netcheck --derp-map DIR/file", lambda s: ["netcheck", "--derp-map", str(s.folder / "file")]),
    ("no page there", "netcheck --derp-map URL", lambda s: ["netcheck", "--derp-map", f"{s.web}/derpmap/default"]),
    ("map's TLS not trusted", "netcheck --derp-map URL", lambda s: ["netcheck", "--derp-map", f"{s.tls}/derpmap"]),
    ("map without TLS", "netcheck --derp-map URL", lambda s: ["netcheck", "--derp-map", "http://derp.example/map"]),
    ("no relay", "netcheck --relay https://relay.lan", lambda s: ["netcheck", "--relay", "https://relay.lan"]),
    ("unknown command", "statsu", lambda _: ["statsu"]),
    ("no such size", "ping --size 5000 other", lambda s: s.ask("ping", "--size", "5000", "other")),
    ("metrics port in use", "up --metrics 127.0.0.1:8000", lambda s: s.up(metrics=s.web.removeprefix("http://"))),
    ("relay for whom", "derp --self-signed", lambda s: s.derp("--self-signed", "--host", "127.0.0.1")),
    ("relay without TLS", "derp --open", lambda s: s.derp("--open")),
    ("relay with two", "derp --open --plain --self-signed", lambda s: s.derp("--open", "--plain", "--self-signed")),
    ("relay of no name", "derp --open --self-signed", lambda s: s.derp("--open", "--self-signed")),
    ("relay's port in use", "derp --listen 127.0.0.1:8000", lambda s: s.derp("--open", "--plain", listen=s.web)),
    ("relay's address is none", "derp --listen relay", lambda s: s.derp("--open", "--plain", listen="relay")),
    ("no certificate", "derp --cert DIR/none.pem", lambda s: s.derp("--open", "--cert", str(s.folder / "none.pem"))),
    ("certificate is none", "derp --cert DIR/file", lambda s: s.derp("--open", "--cert", str(s.folder / "file"))),
    ("no keys file", "derp --allow-keys DIR/none", lambda s: s.derp("--plain", "--allow-keys", str(s.folder / "none"))),
    ("key of another", "derp --cert ca.pem --key key.pem", lambda s: s.derp("--open", *s.mismatch)),
    ("name with a port", "derp --host relay.lan:443", lambda s: s.derp("--open", "--host", "relay.lan:443")),
    ("no verify URL", "derp --verify-url hs.lan", lambda s: s.derp("--plain", "--verify-url", "hs.lan/verify")),
    ("STUN port in use", "derp --stun 127.0.0.1:41641", lambda s: s.derp("--open", "--plain", "--stun", s.udp)),
    ("damaged relay key", "derp --dir DIR/broken", lambda s: s.derp("--open", "--plain", "--dir", s.broken)),
    ("mesh without its key", "derp --mesh 192.0.2.1", lambda s: s.derp("--open", "--plain", "--mesh", "192.0.2.1")),
    ("no ACME server", "derp --acme http://ca.lan", lambda s: s.derp("--open", "--acme", "http://ca.lan")),
    ("HTTP-01 without HTTP", "derp --acme-by http-01", lambda s: s.derp(*s.acme, "--acme-by", "http-01")),
    ("nobody issues", "derp --acme https://127.0.0.1:1/dir", lambda s: s.derp(*s.acme)),
]


WITHOUT_CAPABILITY = ("setpriv", "--bounding-set", "-net_admin") if os.geteuid() == 0 else ()
"""Root with a capability less; others have it not."""


async def run_command(argv: list[str], within: tuple[str, ...] = ()) -> tuple[int, str]:
    """(exit code, standard error) of `meshnode ARGV`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MESHNODE_", "TS_", "TAILSCALE_"))}
    environment["MESHNODE_LOG_LEVEL"] = "off"
    process = await asyncio.create_subprocess_exec(
        *(*within, sys.executable),
        *("-m", "meshnode", *argv),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), BOUND_S)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, said.decode()


async def make_rows(stage: Stage) -> list[str]:
    """The lower table, from life."""
    rows = []
    for what, shown, argv in CASES:
        if what in (TAKEN, NOT_ALLOWED) and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            rows += [row for row in PAGE.read_text().splitlines() if row.startswith(f"| {what} |")]
            continue
        code, said = await run_command(argv(stage), within=WITHOUT_CAPABILITY if what == NOT_ALLOWED else ())
        assert said.startswith("meshnode: ") and said.count("\n") == 1, f"{what}: {said!r}"
        rows.append(f"| {what} | `{shown}` | {stage.shorten(said.removeprefix('meshnode: ').strip())} | {code} |")
    return rows


def error_rows() -> list[str]:
    """The upper table, from the classes."""
    kinds = [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, MeshError)]
    kinds.sort(key=lambda kind: (kind.exit_code, kind.__name__))
    return [f"| {k.exit_code} | `{k.__name__}` | {(k.__doc__ or '').splitlines()[0]} |" for k in kinds]


async def open_stage(stack: AsyncExitStack, folder: Path, certificates: tuple[Path, Path, Path]) -> Stage:
    """Everything the cases need."""
    authority, certificate, key = certificates
    shutil.copy(authority, folder / "ca.pem")
    shutil.copy(key, folder / "key.pem")
    town = await stack.enter_async_context(make_town())

    async def not_found(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nsite")
        writer.close()

    async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=office\r\n\r\n")
        writer.close()

    web = await asyncio.start_server(not_found, "127.0.0.1")
    stack.callback(web.close)
    proxy = await asyncio.start_server(closed, "127.0.0.1")
    stack.callback(proxy.close)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    tls = await asyncio.start_server(not_found, "127.0.0.1", ssl=context)
    stack.callback(tls.close)
    node = await town.join("one", state_dir=folder / "running")
    other = await town.join("other")
    await see_each_other(node, other)
    from meshnode.local.api import LocalApi

    await stack.enter_async_context(LocalApi(node, folder / "running" / "meshnode.sock"))
    used = town.control.add_key(reusable=False)
    await town.join("third", auth_key=used)
    (folder / "file").write_text("x")
    return Stage(
        town=town,
        node=node,
        folder=folder,
        web=f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}",
        tls=f"https://127.0.0.1:{tls.sockets[0].getsockname()[1]}",
        proxy=f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
        used=used,
    )


def test_the_page_says_what_the_commands_say(tmp_path: Path, certificates: tuple[Path, Path, Path]) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            stage = await open_stage(stack, tmp_path, certificates)
            rows = await make_rows(stage)
        page = HEAD + "\n".join(error_rows()) + "\n" + MIDDLE + "\n".join(rows) + "\n"
        if os.environ.get("MESHNODE_WRITE_DOCS"):
            PAGE.write_text(page)
        assert PAGE.read_text().splitlines() == page.splitlines()

    run("asyncio", work, bound_s=240)


def test_every_error_has_a_sentence_and_network_errors_are_built_ins() -> None:
    assert all(row.count("|") == 4 and row.endswith(". |") for row in error_rows())
    for kind, builtin in ((errors.Refused, ConnectionRefusedError), (errors.TimedOut, TimeoutError)):
        assert issubclass(kind, builtin)
    with pytest.raises(OSError):
        raise errors.NameNotFound("x")
