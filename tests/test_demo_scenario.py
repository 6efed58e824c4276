"""What the demonstration counts as input state in the model directory."""

from pathlib import Path

import pytest

from demo.scenario import input_bytes_in
from input_checkpoint.training.run_tag import TAG_NAME


@pytest.mark.parametrize("name", ["checkpoint", "model.ckpt-8.index", "graph.pbtxt", TAG_NAME])
def test_files_of_the_model_and_the_name_of_the_run_are_not_input_state(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"12345")

    assert input_bytes_in(tmp_path) == 0


@pytest.mark.parametrize("name", ["input.ckpt-8.index", "eval/checkpoint", TAG_NAME + ".tmp"])
def test_any_other_file_is_counted_as_input_state(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"12345")

    assert input_bytes_in(tmp_path) == 5
