"""What the model would resume from is kept, whatever else the retention policy removes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.model_retention import KeepForResume
from tests.support.stores import save


def models(folder: Path, current: int, *steps: int) -> str:
    """Return a model directory with checkpoints of these steps, one of which is the current one."""
    paths = {step: str(folder / f"model.ckpt-{step}") for step in steps}
    for path in paths.values():
        Path(f"{path}.index").touch()
    tf.compat.v1.train.update_checkpoint_state(str(folder), paths[current], list(paths.values()))
    return str(folder)


@pytest.mark.parametrize(
    ("current", "kept"), [(20, {5, 18}), (30, {18, 25}), (40, {25})], ids=["back", "further", "newest"]
)
def test_the_current_model_and_the_one_before_count_and_not_those_it_went_back_from(
    current: int, kept: set[int], tmp_path: Path, memory: MemoryBackend
) -> None:
    store = ic.CheckpointStore.open(memory, create=True)
    save(store.begin_run("main"), 5, 18, 25)
    policy = KeepForResume(models(tmp_path, current, 10, 20, 30, 40))
    assert {ref.step for ref in policy.keep(store.checkpoints("main"))} == kept
