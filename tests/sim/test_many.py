"""Scenarios by seed: a few hundred here, ten thousand by `python -m tests.sim.many`."""

from __future__ import annotations

import pytest

from tests.sim.many import main, play
from tests.sim.scenario import Scenario
from tests.sim.seeds import FACTOR

SEEDS = 200
TOGETHER = 20


@pytest.mark.parametrize("first", range(0, SEEDS * FACTOR, TOGETHER))
def test_scenarios_hold(first: int) -> None:
    failed = [r for r in map(play, range(first, first + TOGETHER)) if r.problem]
    assert not failed, "\n\n".join(f"--seed {r.seed}: {r.words}\n{r.mishaps}\n{r.problem}" for r in failed)


def test_a_seed_is_replayed_to_the_packet() -> None:
    stories = []
    for _ in range(2):
        scenario = Scenario.of(7)
        scenario.is_traced = True
        scenario.play()
        stories.append(scenario.world.story(lines=100_000))
    assert stories[0] == stories[1] and "Ping" in stories[0]


def test_a_failure_is_told_with_its_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.sim.scenario.DIRECT_S", -1e9)
    assert main(["--seeds", "12"]) == 1
    told = capsys.readouterr().out
    assert "not direct at first" in told and "failed seeds:" in told
    seed = told.rpartition("failed seeds:")[2].split()[0]
    assert f"seed {seed}: a: " in told
    assert main(["--seed", seed]) == 1
    assert "not direct at first" in capsys.readouterr().out
