"""Trainings with two replicas are killed at random moments. Neither replica misses or repeats an element."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest

from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from tests.support import replicas
from tests.support.replicas import ReplicatedTraining, trained_on_by_replica

STEPS = 120
MODEL_EVERY = 5
KILLS = 4

TRAININGS: dict[str, dict[str, Any]] = {
    "sparse and ragged in tuples": {"structure": "sparse and ragged in tuples"},
    "a dict and labels, saved rarely": {
        "structure": "a dict and labels",
        "options": {"save_steps": 10 * MODEL_EVERY},
    },
    "a lookup table": {"with_table": True},
    "a local_init_op of the user": {"own_local_init": True},
    "an odd number of batches": {"batches": 2 * STEPS - 1},
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", TRAININGS)
def test_no_replica_misses_or_repeats_an_element(kind: str, tmp_path: Path) -> None:
    training = ReplicatedTraining(
        tmp_path / "model",
        str(tmp_path / "store"),
        STEPS,
        model_every=MODEL_EVERY,
        step_seconds=0.01,
        **TRAININGS[kind],
    )
    chance = random.Random(kind)
    kills = sorted(chance.sample(range(MODEL_EVERY + 1, STEPS - 10), KILLS))
    reached = 0
    for step in kills:
        outcome = replicas.kill(training, max(step, reached + 1), chance.uniform(0, 0.05))
        check_resumed(outcome.output, reached)
        reached = latest_model_step(str(training.model_dir)) or 0
    check_resumed(replicas.succeed(training).output, reached)
    reference = dataclasses.replace(training, model_dir=tmp_path / "reference", backend=None)
    # Without the hook, nobody initializes the iterator if the model has a local_init_op of its own.
    replicas.succeed(dataclasses.replace(reference, own_local_init=False))
    assert trained_on_by_replica(training.model_dir) == trained_on_by_replica(reference.model_dir)


def check_resumed(output: str, reached: int) -> None:
    """Check that a training continued from the model that the last one had reached."""
    steps = re.findall(r"^step (\d+)$", output, re.MULTILINE)
    assert int(steps[0]) == reached + 1, output[-4000:]
    assert "Going back" not in output
    assert "seen again" not in output
