"""A node with a kernel interface, against the real kernel: each story in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.tun_stories import STORIES

BOUND_S = 90.0
ROOT = Path(__file__).resolve().parents[2]


def may_make_interfaces() -> bool:
    """Root, a TUN device, and the commands that look at what was made."""
    has_all = all(shutil.which(word) for word in ("unshare", "ip", "ping"))
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or not has_all:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_make_interfaces(), reason="needs root, /dev/net/tun and namespaces")
@pytest.mark.parametrize("story", STORIES)
def test_with_a_real_kernel(story: str) -> None:
    path = os.pathsep.join((os.environ["PYTHONPATH"], str(ROOT)))
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.e2e.tun_stories", story],
        env=os.environ | {"PYTHONPATH": path, "MESHNODE_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
