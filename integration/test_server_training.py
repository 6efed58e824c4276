"""On every server, training that is killed during a save and a step sees the same examples as without."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.servers.server import Place
from tests.support.kills import train
from tests.support.training import trained_on

STEPS = 40
KILLS = [("Saving input checkpoint for step 10", 0.01), ("step 17", 0.001)]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    model_dir = tmp_path_factory.mktemp("training") / "reference"
    train(model_dir, None, STEPS)
    return trained_on(model_dir)


@pytest.mark.timeout(400)
def test_an_estimator_that_is_killed_and_resumes_sees_the_same_examples(
    place: Place, tmp_path: Path, reference: list[list[int]]
) -> None:
    model_dir = tmp_path / "model"
    for line, seconds in KILLS:
        assert train(
            model_dir, place.uri, STEPS, place.storage_options, kill_at=line, kill_after_seconds=seconds
        )
    train(model_dir, place.uri, STEPS, place.storage_options)
    assert trained_on(model_dir) == reference
