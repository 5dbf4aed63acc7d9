"""What is logged, for tests of what an operator is told."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from meshnode.run.log import configure


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(level="info", stream=stream)
    yield stream
    configure(level="off")
