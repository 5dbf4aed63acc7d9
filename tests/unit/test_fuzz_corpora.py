"""What fuzzing once found worth keeping still passes: every kept input and seed through its target."""

import importlib

import pytest

from tests.fuzz.driver import CORPORA, check

NAMES = sorted(path.stem for path in CORPORA.parent.glob("*.py") if path.stem not in {"driver", "__init__"})


def test_every_target_keeps_a_corpus() -> None:
    assert sorted(folder.name for folder in CORPORA.iterdir() if folder.is_dir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_corpus_passes(name: str) -> None:
    module = importlib.import_module(f"tests.fuzz.{name}")
    kept = [path.read_bytes() for path in sorted((CORPORA / name).iterdir())]
    assert kept
    said = [check(module.target, data) for data in [*module.SEEDS, *kept]]
    assert not [text for text in said if "Traceback" in text]  # slowness is judged by fuzzing, not here
