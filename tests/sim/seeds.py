"""Runs a test over many seeds. MESHNODE_SIM_FACTOR=10 plays ten times the seeds of an ordinary run."""

from __future__ import annotations

import os
from typing import Final

import pytest

FACTOR: Final = int(os.environ.get("MESHNODE_SIM_FACTOR", "1"))


def seeds(count: int) -> pytest.MarkDecorator:
    """Parametrises `seed`."""
    return pytest.mark.parametrize("seed", range(count * FACTOR))
