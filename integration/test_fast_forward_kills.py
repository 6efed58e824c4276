"""Trainings are killed at random moments, however rarely the input is saved in full. Nothing is lost.

No example is lost or repeated, no step is trained twice but those after the last model checkpoint, and the
`checkpoint` file of the model directory is never edited.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from tests.support.kills import kill_after, succeed
from tests.support.repeatable import PIPELINES, REPEATABLE
from tests.support.train_child import Training
from tests.support.training import trained_on, uninterrupted

STEPS = 150
MODEL_EVERY = 5
KILLS = 4

STORAGE: dict[str, dict[str, Any]] = {
    "fast": {},
    "slow": {"pack_seconds": 0.4},
    "slow, saves are skipped": {"pack_seconds": 0.4, "options": {"when_busy": "skip"}},
}


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("full_every", [1, 3, 10])
def test_no_training_is_lost(tmp_path: Path, full_every: int, storage: str) -> None:
    check_kills(tmp_path, "seeded", full_every, STORAGE[storage], seed=f"{full_every} {storage}")


@pytest.mark.parametrize("pipeline", [name for name in REPEATABLE if name not in ("seeded", "unseeded_once")])
def test_every_repeatable_pipeline_is_exact(tmp_path: Path, pipeline: str) -> None:
    check_kills(tmp_path, pipeline, full_every=10, settings={}, seed=pipeline)


def check_kills(tmp_path: Path, pipeline: str, full_every: int, settings: dict[str, Any], seed: str) -> None:
    model = tmp_path / "model"
    options = {"save_steps": full_every * MODEL_EVERY, **settings.get("options", {})}
    training = Training(
        model,
        str(tmp_path / "store"),
        STEPS,
        options=options,
        model_every=MODEL_EVERY,
        keep_models=2,
        pipeline=pipeline,
        step_seconds=0.01,
        pack_seconds=settings.get("pack_seconds", 0.0),
    )
    chance = random.Random(seed)
    reached = None
    for _ in range(KILLS):
        # Before the first checkpoint is committed, there is nothing that a mark could lean on.
        first = "" if reached else f"checkpoints/main/00000001/{0:012d}.manifest"
        outcome = kill_after(training, chance.uniform(0.05, 0.5), first)
        check_resumed(outcome.output, reached)
        reached = latest_model_step(str(model))
    check_resumed(succeed(training).output, reached)
    assert trained_on(model) == uninterrupted(PIPELINES[pipeline], STEPS, tmp_path / "expected")


def check_resumed(output: str, reached: Any) -> None:
    """Check that a training continued from the model that the last one had reached."""
    steps = re.findall(r"^step (\d+)$", output, re.MULTILINE)
    assert int(steps[0]) == (reached or 0) + 1, output[-4000:]
    assert "Going back" not in output
    assert "seen again" not in output
