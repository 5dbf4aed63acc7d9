"""ARCHITECTURE.md section 2 as a test: who may import whom, what the pure rooms may not touch.

The table is the map of the house: a room may import its own folder and any lower layer.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "meshnode"

LAYERS = {
    "base": 0,
    "wire": 1,
    "netmap": 1,
    "config": 1,
    "core": 2,
    "run": 2,
    "engine": 2,
    "control": 3,
    "underlay": 3,
    "relay": 3,
    "tunnel": 3,
    "dns": 3,
    "state": 3,
    "node": 4,
    "serve": 5,
    "local": 5,
    "cli": 6,
    "demo": 6,
}
SAME_LAYER = {
    ("netmap", "wire"): "no format is parsed outside wire",
    ("engine", "run"): "the engine's shell owns tasks and logs like any other",
    ("demo", "cli"): "the demo shows the commands a person would type",
    ("cli", "demo"): "`meshnode demo` is a command",
}
"""Extra arrows between rooms of one layer, each with its reason."""
PURE = {"base", "wire", "netmap", "config", "core"}
IMPURE = {"asyncio", "time", "socket", "os", "random", "secrets", "threading", "logging"}
IMPURE_ALLOWED = {
    ("config/load.py", "os"): "reads the environment it is handed; os.fspath only",
}
HEAVY = {"aiohttp", "rich", "boto3", "botocore", "dns", "prometheus_client", "pyroute2", "uvloop", "zstandard"}
"""Never imported at module level on the way to `meshnode up`: start-up time and memory are promises."""
HEAVY_HOMES = {"serve"}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    nodes = _run_at_import(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            assert node.module is not None
            yield node.module, node.lineno


def _run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements executed when the module is imported: not function bodies, not TYPE_CHECKING."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if not room:
        return
    assert room in LAYERS, f"{room}/ is not in the table of layers"
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] != "meshnode" or len(parts) < 2:
            continue
        target = parts[1]
        if target == room or target not in LAYERS:
            continue
        lower = LAYERS[target] < LAYERS[room]
        assert lower or (room, target) in SAME_LAYER, f"{path}:{line}: {room} may not import {target}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if room_of(p) in PURE], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_pure_rooms_touch_no_clock_and_no_socket(path: Path) -> None:
    for name, line in imports(path):
        top = name.split(".")[0]
        allowed = (str(path.relative_to(PACKAGE)), top) in IMPURE_ALLOWED
        assert top not in IMPURE or allowed, f"{path}:{line}: {top} has no place in a pure room"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    if room_of(path) in HEAVY_HOMES:
        return
    for name, line in imports(path, top_level_only=True):
        assert name.split(".")[0] not in HEAVY, f"{path}:{line}: import {name} where it is used"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tasks_are_made_in_scope_only(path: Path) -> None:
    if path == PACKAGE / "run" / "scope.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in {"create_task", "ensure_future"}:
            raise AssertionError(f"{path}:{node.lineno}: {node.attr} outside run/scope.py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_opens_with_its_shape(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_importing_the_package_is_cheap() -> None:
    """`import meshnode` loads no event loop, no cipher and no HTTP library."""
    code = "import meshnode, sys; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert not loaded & (HEAVY | {"asyncio", "cryptography", "nacl", "h2", "ssl"})


def test_the_engine_links_no_python() -> None:
    """Only module*.[ch] know CPython, so that every other unit runs in plain C tests."""
    for path in (ROOT / "native").rglob("*.[ch]"):
        if not path.name.startswith("module"):
            assert "Python.h" not in path.read_text(), f"{path} includes Python.h"


@pytest.mark.parametrize("unit", ["mem", "crypto", "ip", "wg", "tcp", "filter", "udp", "bridge", "relay", "engine"])
def test_c_includes_go_down(unit: str) -> None:
    order = {"mem": 0, "crypto": 0, "ip": 1, "wg": 1, "tcp": 2, "filter": 2, "udp": 3, "bridge": 3}
    order |= {"relay": 4, "engine": 5}
    for path in sorted((ROOT / "native" / unit).glob("*.[ch]")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.startswith('#include "') or "/" not in line:
                continue
            target = line.split('"')[1].split("/")[-2]
            if target in order and target != unit:
                same_floor = {unit, target} == {"tcp", "filter"}
                assert order[target] < order[unit] or same_floor, f"{path}:{number}: {unit} may not include {target}"


def test_the_map_of_the_house_names_every_file() -> None:
    """docs/architecture.md section 3: a file a reader meets is on the map."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text[text.index("## 3. The tree") : text.index("## 4.")]
    missing = [str(p.relative_to(ROOT)) for p in modules() if p.name != "__init__.py" and f"{p.name} " not in tree]
    for path in (ROOT / "native").rglob("*.c"):
        if path.relative_to(ROOT / "native").parts[0] not in {"tests", "fuzz", "build"} and f"{path.name} " not in tree:
            missing.append(str(path.relative_to(ROOT)))
    assert not missing, f"not in docs/architecture.md: {missing}"
