"""A training process that is killed repeatedly is trained on the same examples as an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.kills import train
from tests.support.training import trained_on

KILLS = [("Saving input checkpoint for step 10", 0.0), ("step 17", 0.001), ("Saving input checkpoint", 0.02)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    model_dir = tmp_path_factory.mktemp("kill") / "reference"
    train(model_dir, None, 40)
    return trained_on(model_dir)


@pytest.mark.parametrize("storage", ["file", "s3"])
def test_training_that_is_killed_during_saves_and_steps_sees_the_same_examples(
    storage: str, tmp_path: Path, reference: list[list[int]], request: pytest.FixtureRequest
) -> None:
    backend, options = str(tmp_path / "input"), {}
    if storage == "s3":
        server: Any = request.getfixturevalue("s3_server")
        backend, options = f"s3://{server.bucket}/{tmp_path.name}/input", server.options
    for line, seconds in KILLS:
        assert train(tmp_path / "model", backend, 40, options, kill_at=line, kill_after_seconds=seconds)
    train(tmp_path / "model", backend, 40, options)
    assert trained_on(tmp_path / "model") == reference
