"""What lies in a model directory is read under a bound, and only from regular files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from input_checkpoint import InputCheckpointError
from input_checkpoint.format.chunking import digest
from input_checkpoint.tensorflow.model_checkpoints import (
    latest_model_step,
    read_model_checkpoints,
    saved_digest,
    step_of,
)
from input_checkpoint.tensorflow.run_tag_file import read_tag, write_tag
from input_checkpoint.training.run_tag import TAG_NAME, RunTag
from tests.support.memory import peak_memory

MIB = 1 << 20
TAG = RunTag("5f0c", "s3://bucket/run-7/input", "main", lineage=3)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def with_model(folder: Path, step: str = "20") -> Path:
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "model.ckpt-{step}"\nall_model_checkpoint_paths: "model.ckpt-{step}"\n'
    )
    index = folder / f"model.ckpt-{step[:20]}.index"
    index.write_bytes(b"index")
    return index


def test_a_mark_comes_back_as_it_was_written(tmp_path):
    write_tag(str(tmp_path), TAG)
    assert read_tag(str(tmp_path)) == TAG


def test_a_mark_of_gigabytes_counts_as_missing_with_a_warning(tmp_path, caplog):
    sparse(tmp_path / TAG_NAME, 8 << 30)
    assert peak_memory(lambda: read_tag(str(tmp_path))) < MIB
    assert f"{TAG_NAME} is damaged" in caplog.text


def test_a_mark_that_is_not_text_counts_as_missing_with_a_warning(tmp_path, caplog):
    (tmp_path / TAG_NAME).write_bytes(b"\xff\xfe{")
    assert read_tag(str(tmp_path)) is None
    assert f"{TAG_NAME} is damaged" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
def test_something_else_in_place_of_the_mark_counts_as_missing_with_a_warning(tmp_path, caplog, make):
    make(tmp_path / TAG_NAME)
    assert read_tag(str(tmp_path)) is None
    assert "is not a regular file" in caplog.text


def test_a_missing_mark_is_no_reason_to_warn(tmp_path, caplog):
    assert read_tag(str(tmp_path)) is None
    assert caplog.text == ""


def test_the_digest_of_a_model_is_that_of_its_index(tmp_path):
    with_model(tmp_path)
    assert saved_digest(str(tmp_path), 20) == digest(b"index").hex()


def test_a_huge_index_is_digested_in_little_memory(tmp_path):
    sparse(with_model(tmp_path), 64 * MIB)
    assert peak_memory(lambda: saved_digest(str(tmp_path), 20)) < 8 * MIB


def test_a_pipe_in_place_of_an_index_has_no_digest(tmp_path):
    index = with_model(tmp_path)
    index.unlink()
    os.mkfifo(index)
    assert saved_digest(str(tmp_path), 20) is None


@pytest.mark.parametrize("read", [read_model_checkpoints, latest_model_step])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: sparse(path, 8 << 30), id="of gigabytes"),
        pytest.param(os.mkfifo, id="that is a pipe"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), id="that is not text"),
        pytest.param(lambda path: path.write_bytes(b""), id="that is empty"),
    ],
)
def test_a_checkpoint_file_that_cannot_be_read_is_refused(tmp_path, read, make):
    make(tmp_path / "checkpoint")
    with pytest.raises(
        InputCheckpointError, match="checkpoint, which says which model checkpoint is current"
    ):
        read(str(tmp_path))


def test_a_step_of_a_thousand_digits_is_no_step(tmp_path):
    assert step_of(f"/run/model.ckpt-{'9' * 5000}") is None
    assert step_of("/run/model.ckpt-120") == 120
