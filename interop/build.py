"""Build the real peers that the scenarios run against: `python -m interop.build [NAME…]`.

Owns the cache: `$MESHNODE_PEER_CACHE/bin/<name>-<version>/<command>`. A binary that is there is never
built again; the version is part of the path, so a new pin builds anew. One build at a time.

A peer whose toolchain is absent is skipped with a loud line, except under CI=true, where that is a
failure like any other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD_TIMEOUT_S = 2400


@dataclass(frozen=True)
class Peer:
    """One entry of versions.toml."""

    name: str
    version: str
    language: str
    module: str
    commands: dict[str, str]
    optional: bool
    tags: str

    @property
    def folder(self) -> Path:
        return cache_dir() / "bin" / f"{self.name}-{self.version}"

    def missing(self) -> list[str]:
        return [command for command in self.commands if not (self.folder / command).is_file()]


class ToolchainMissing(Exception):
    """The compiler of this language is not on the machine."""


def cache_dir() -> Path:
    """Where binaries live; MESHNODE_PEER_CACHE moves it."""
    override = os.environ.get("MESHNODE_PEER_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "meshnode-peers"


def load_peers() -> dict[str, Peer]:
    table = tomllib.loads((HERE / "versions.toml").read_text())
    return {
        name: Peer(
            name=name,
            version=entry["version"],
            language=entry["language"],
            module=entry.get("module", name),
            commands=dict(entry["commands"]),
            optional=entry.get("optional", False),
            tags=entry.get("tags", ""),
        )
        for name, entry in table.items()
    }


def binary(name: str, command: str) -> Path:
    """Path of a built command; FileNotFoundError says how to get it."""
    path = load_peers()[name].folder / command
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not built yet; run `python -m interop.build`")
    return path


def build(peer: Peer) -> None:
    """Build what is missing of one peer. Raises ToolchainMissing or CalledProcessError."""
    tool = shutil.which(peer.language) or _usual_place(peer.language)
    if tool is None:
        raise ToolchainMissing(peer.language)
    peer.folder.mkdir(parents=True, exist_ok=True)
    for command in peer.missing():
        if peer.language == "go":
            _build_go(tool, peer, command)
        else:
            _build_cargo(tool, peer, command)


def _usual_place(language: str) -> str | None:
    places = {"go": Path("/usr/local/go/bin/go"), "cargo": Path.home() / ".cargo/bin/cargo"}
    place = places[language]
    return str(place) if place.is_file() else None


def _build_go(tool: str, peer: Peer, command: str) -> None:
    target = peer.folder / command
    partial = target.with_name(f".{command}.{os.getpid()}")
    argv = [tool, "build", "-p", "2", "-mod=mod", "-trimpath", "-tags", peer.tags, "-o", str(partial)]
    # The build runs in a copy: -mod=mod may write go.mod, and the checkout stays as it is.
    copy = peer.folder / ".module"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(HERE / "go" / peer.module, copy)
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    _run([*argv, peer.commands[command]], cwd=copy, environment=environment)
    shutil.rmtree(copy)
    partial.rename(target)


def _build_cargo(tool: str, peer: Peer, command: str) -> None:
    root = peer.folder / ".cargo-root"
    package = peer.commands[command]
    argv = [tool, "install", "-j", "2", "--locked", "--root", str(root), "--version", peer.version, package]
    _run(argv, cwd=peer.folder, environment=dict(os.environ))
    (root / "bin" / command).rename(peer.folder / command)
    shutil.rmtree(root)


def _run(argv: list[str], *, cwd: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise RuntimeError(f"`{' '.join(argv)}` failed with {done.returncode}:\n{tail}")


def main(names: list[str]) -> int:
    """One line per peer. Exit code 1 if a build failed, or was skipped under CI=true."""
    peers = load_peers()
    unknown = [name for name in names if name not in peers]
    if unknown:
        print(f"unknown peer {', '.join(unknown)}; known: {', '.join(peers)}", file=sys.stderr)
        return 2
    wanted = [peers[name] for name in names] or [p for p in peers.values() if not p.optional]
    strict = os.environ.get("CI") == "true"
    failed = False
    for peer in wanted:
        label = f"{peer.name} {peer.version}"
        if not peer.missing():
            print(f"{label}: cached", flush=True)
            continue
        started = time.monotonic()
        try:
            build(peer)
        except ToolchainMissing as missing:
            print(f"{label}: SKIPPED, NO TOOLCHAIN `{missing}` ON THIS MACHINE", flush=True)
            failed = failed or strict
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            print(f"{label}: FAILED: {error}", flush=True)
            failed = True
        else:
            print(f"{label}: built in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
