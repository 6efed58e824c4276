"""Which iterators of which graphs the hook saves and restores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import input_checkpoint as ic
from tests.support.hooked_training import train
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted

v1 = tf.compat.v1


def one_iterator() -> Any:
    return v1.data.make_one_shot_iterator(shuffled_ids(seed=1)).get_next()


def two_iterators() -> Any:
    left = one_iterator()
    right = v1.data.make_one_shot_iterator(shuffled_ids(seed=2)).get_next()
    return left + 0 * right


def test_the_state_of_two_iterators_is_refused_by_a_graph_with_one(tmp_path: Path) -> None:
    train(tmp_path / "model", 10, two_iterators)
    with pytest.raises(ic.PipelineMismatchError, match="several iterators"):
        train(tmp_path / "model", 10, one_iterator)


def test_the_state_of_one_iterator_is_refused_by_a_graph_with_two(tmp_path: Path) -> None:
    train(tmp_path / "model", 10, one_iterator)
    with pytest.raises(ic.PipelineMismatchError, match="no state for iterator"):
        train(tmp_path / "model", 10, two_iterators)


@pytest.mark.timeout(60)
def test_two_hooks_save_one_graph_to_two_backends(tmp_path: Path) -> None:
    for _ in range(2):
        estimator = make_estimator(tmp_path / "model")
        second = ic.CheckpointInputPipelineHook(estimator, backend=str(tmp_path / "second"))
        train(tmp_path / "model", 10, hooks=[second])
    assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 20, tmp_path / "reference")
    for folder in ("model-input", "second"):
        assert ic.CheckpointStore.open(str(tmp_path / folder)).newest("main").step == 20


def test_the_error_about_an_uninitialized_iterator_says_to_run_its_initializer(tmp_path: Path) -> None:
    def input_fn() -> Any:
        v1.data.make_initializable_iterator(tf.data.Dataset.range(3))
        return shuffled_ids()

    with pytest.raises(
        ic.UnsupportedPipelineError, match=r"IteratorV2 is not initialized.*Run its initializer"
    ):
        train(tmp_path / "model", 10, input_fn)


def test_the_error_about_a_missing_input_file_names_it(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(map(str, range(500))))

    def input_fn() -> Any:
        lines = tf.data.TextLineDataset(str(text), buffer_size=64)
        return lines.map(tf.strings.to_number).map(lambda number: tf.cast(number, tf.int64)).batch(4)

    train(tmp_path / "model", 10, input_fn)
    text.unlink()
    with pytest.raises(ic.PipelineMismatchError, match=r"no longer exists: .*lines\.txt.*Put it back"):
        train(tmp_path / "model", 10, input_fn)
