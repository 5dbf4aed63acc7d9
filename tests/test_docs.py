"""Every command and program in the README and the guides runs, against the embedded control server.

In those pages a fence says what becomes of it: `sh run` and `python run` are executed, in order, one
directory and one shell per page; `text expect` after them must appear in their output, line by line,
with `…` for anything. A plain `sh` fence may only hold what NOT_RUN lists, with its reason. After each shell
fence the runner waits until every node started with `&` has said that it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnode.cli.main import COMMANDS
from tests.e2e.town import make_town

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md", "docs/quickstart.md", "docs/guides/serve.md", "docs/guides/capability.md", "docs/guides/embedding.md",
    "docs/guides/wireguard.md", "docs/guides/relay.md", "docs/guides/paths.md", "docs/guides/proxies.md",
]  # fmt: skip
TUN_PAGE = "docs/guides/tun.md"
"""Run by tests/e2e/test_tun.py in a namespace of its own: it makes a kernel interface."""
TOOLS = {"docs/guides/wireguard.md": ("wg",), "docs/guides/proxies.md": ("tinyproxy",)}
"""What a page's own subject needs beside those of all."""
BOUND_S = 120.0
NOT_RUN = {
    "pip install . && meshnode demo": "the first thing .ci/run does; the demo is tests/e2e/test_demo.py",
    "pip install '.[test]' && pytest": "the second",
    "pip install .": "as above",
    "meshnode netcheck --derp-map https://controlplane.tailscale.com/derpmap/default": "tests/e2e/test_survey.py",
    "meshnode netcheck --derp-map derp.yaml": "the same",
    "meshnode netcheck --relay relay.example.com": "the same",
    "export MESHNODE_CONTROL_URL=https://hs.example.com": "the test sets its own",
    "export HTTPS_PROXY=http://USER:PASSWORD@proxy.example.com:3128": "no such proxy; tests/unit/core/test_proxies.py",
    "export NO_PROXY=localhost,10.0.0.0/8,.example.internal": "as above",
    "export MESHNODE_AUTH_KEY=…    # headscale preauthkeys create --user ID --expiration 1h": "the test sets its own",
}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Fence:
    kind: str
    text: str


def fences(page: str) -> list[Fence]:
    return [Fence(kind.strip(), text) for kind, text in FENCE.findall((ROOT / page).read_text())]


@pytest.mark.parametrize("page", [*PAGES, TUN_PAGE])
def test_no_command_escapes_the_test(page: str) -> None:
    for fence in fences(page):
        assert fence.kind in ("sh", "sh run", "python", "python run", "text", "text expect", "toml"), fence.kind
        if fence.kind == "sh":
            for line in fence.text.strip().splitlines():
                assert line in NOT_RUN, f"{page}: {line!r} is neither run nor excused"


@pytest.mark.parametrize("page", [*PAGES, TUN_PAGE])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_and_say_what_the_page_says(page: str) -> None:
    missing = [tool for tool in ("curl", "openssl", "bash", *TOOLS.get(page, ())) if shutil.which(tool) is None]
    if missing:
        assert not os.environ.get("CI"), f"needs {', '.join(missing)}"
        pytest.skip(f"needs {', '.join(missing)}")

    async def work() -> None:
        async with make_town() as town:
            await asyncio.to_thread(play, page, town.control.url, town.control.add_key())

    asyncio.run(work())


def test_the_units_of_the_relay_run_commands_that_exist() -> None:
    folder = ROOT / "docs" / "deploy"
    service, container = (folder / "meshnode-derp.service").read_text(), (folder / "Containerfile").read_text()
    started = re.findall(r"^ExecStart=/opt/meshnode/bin/meshnode (.*)$", service, re.MULTILINE)
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", container, re.MULTILINE)[0])
    shown = re.findall(r"meshnode-derp (--.*)$", container, re.MULTILINE)
    assert len(started) == len(shown) == 1
    parser = argparse.ArgumentParser()
    COMMANDS["derp"].arguments(parser)
    for words, folder_kept in (
        (started[0].split(), "/var/lib/meshnode-derp"),
        ([*entry[1:], *shown[0].split()], "/data"),
    ):
        assert words[0] == "derp" and parser.parse_args(words[1:]).derp_dir == folder_kept


def test_systemd_takes_the_units_of_the_relay(tmp_path: Path) -> None:
    """Nothing in them is unknown to it, and little is left that the relay could do besides."""
    if shutil.which("systemd-analyze") is None:
        assert not os.environ.get("CI"), "needs systemd-analyze"
        pytest.skip("needs systemd-analyze")
    units = [tmp_path / f"meshnode-derp.{kind}" for kind in ("service", "socket")]
    for unit in units:
        text = (ROOT / "docs" / "deploy" / unit.name).read_text()
        unit.write_text(text.replace("/opt/meshnode/bin/meshnode", "/bin/true"))
    for words in (["verify", *units], ["security", "--offline=true", "--threshold=20", units[0]]):
        done = subprocess.run(["systemd-analyze", "--no-pager", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr + done.stdout


def play(page: str, control_url: str, key: str) -> None:
    """Run the page in one shell, then look for what it promises."""
    with tempfile.TemporaryDirectory(prefix="meshnode-docs-") as place:
        folder = Path(place)
        (folder / "work").mkdir()
        script = folder / "script"
        script.write_text(script_of(page, folder))
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("MESHNODE_", "TS_", "TAILSCALE_", "CAPABILITY_"))
        }
        settings = {"CONTROL_URL": control_url, "AUTH_KEY": key, "PLAIN_RELAYS": "true", "USE_LOOPBACK": "true"}
        environment = kept | {f"MESHNODE_{name}": value for name, value in settings.items()}
        environment["PATH"] = f"{command_folder(folder)}:{environment['PATH']}"
        with open(folder / "out", "wb") as out:
            shell = subprocess.Popen(
                ["bash", "-u", str(script)], cwd=folder / "work", env=environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = shell.wait(BOUND_S)
            finally:
                # The group that this test made: the shell and what it put aside with `&`.
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()
        text = (folder / "out").read_text(errors="replace")
        assert code == 0, f"{page}: exit {code}\n{text}"
        for fence in fences(page):
            if fence.kind == "text expect":
                expect(page, fence.text, text)


def script_of(page: str, folder: Path) -> str:
    """The page's fences as one shell script."""
    wait = (
        "settle() { for _ in $(seq 200); do "
        f"[ $(grep -c '^ready ' {folder}/out) -ge $1 ] && return 0; sleep 0.1; done; "
        "echo 'a node is not ready'; exit 99; }"
    )
    parts, nodes = [wait], 0
    for number, fence in enumerate(fences(page)):
        if fence.kind == "sh run":
            nodes += len(re.findall(r"^meshnode (?:up|capability|derp) .*&$", fence.text, re.MULTILINE))
            parts += [fence.text, f"settle {nodes}"]
        elif fence.kind == "python run":
            program = folder / f"program{number}.py"
            program.write_text(fence.text)
            parts.append(f"{sys.executable} {program} || exit 98")
    return "\n".join(parts) + "\n"


def command_folder(folder: Path) -> Path:
    """A directory with `meshnode`, that of the package under test."""
    place = folder / "bin"
    place.mkdir()
    command = place / "meshnode"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m meshnode "$@"\n')
    command.chmod(0o755)
    return place


def expect(page: str, wanted: str, text: str) -> None:
    """Each wanted line, in this order, somewhere in the output."""
    place = 0
    lines = text.splitlines()
    for line in wanted.strip().splitlines():
        pattern = re.compile(".*".join(re.escape(part) for part in line.strip().split("…")))
        while place < len(lines) and not pattern.search(lines[place]):
            place += 1
        assert place < len(lines), f"{page} promises {line!r}; the output is\n{text}"
        place += 1


def checked_names() -> dict[str, str]:
    """File stem → text of all test files with that stem; packet scripts and benches by the names they go by."""
    texts: dict[str, str] = {}
    for folder in ("native/tests", "native/fuzz", "tests", "interop/scenarios"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".c", ".py", ".pkt"):
                texts.setdefault(path.name if path.suffix == ".pkt" else path.stem, "")
                texts[path.name if path.suffix == ".pkt" else path.stem] += path.read_text()
    return texts | {f"tests.bench.{path.stem}": "" for path in (ROOT / "tests/bench").glob("*.py")}


def rows_of_conformance() -> list[list[str]]:
    """(line, shown by, remark) of every row."""
    page = (ROOT / "docs/protocol/conformance.md").read_text()
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("| ")]
    return [row for row in table if re.fullmatch(r"[A-Z]+-\d\d", row[0])]


def plan_of(page: str) -> str:
    """The checklist of a protocol page."""
    return (ROOT / "docs/protocol" / page).read_text().split("## 11. ")[1].split("\n## ")[0]


def test_the_checklist_of_the_data_plane_has_a_row_for_each_line() -> None:
    asked = set(re.findall(r"\b(?:WG|IO|IP|T|PY|PF|TN)-\d\d\b", plan_of("dataplane.md")))
    assert sorted(line for line, _, _ in rows_of_conformance() if not line.startswith("P-")) == sorted(asked)


def test_the_checklist_of_paths_has_a_row_for_each_line() -> None:
    asked = [f"P-{int(number):02}" for number in re.findall(r"^(\d+)\. ", plan_of("paths.md"), re.MULTILINE)]
    rows = [line for line, _, _ in rows_of_conformance() if line.startswith("P-")]
    assert sorted(rows) == sorted(asked)


def test_the_checklists_name_tests_that_exist() -> None:
    files = checked_names()
    for line, shown, remark in rows_of_conformance():
        assert shown or remark.startswith("not done: "), f"{line}: neither a test nor a reason"
        assert not remark or remark.startswith(("not done: ", "partly: ")), f"{line}: {remark}"
        for group in shown.split(";"):
            stem = ""
            for name in re.findall(r"`([^`]+)`", group):
                function = rf"^(?:static void|(?:async )?def) {re.escape(name)}\("
                if not re.search(function, files.get(stem, ""), re.MULTILINE):
                    assert name in files, f"{line}: no {name} in {stem or 'any file'}"
                    stem = name
