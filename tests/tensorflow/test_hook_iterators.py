"""Which iterators of which graphs the hook saves and restores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.tensorflow.iterators import GraphIterators
from tests.support.hooked_training import train
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted

v1 = tf.compat.v1


def one_iterator() -> Any:
    return v1.data.make_one_shot_iterator(shuffled_ids(seed=1)).get_next()


def two_iterators() -> Any:
    left = one_iterator()
    right = v1.data.make_one_shot_iterator(shuffled_ids(seed=2)).get_next()
    return left + 0 * right


def stored(state: ic.IteratorState) -> StoredState:
    """A saved state as the store returns it."""
    elements = list(state.elements)
    whole = ElementBatch(list(range(len(elements))), elements)
    return StoredState(state.name, len(elements), iter([whole]))


def test_the_state_of_two_iterators_is_refused_by_a_graph_with_one(tmp_path: Path) -> None:
    train(tmp_path / "model", 10, two_iterators)
    with pytest.raises(ic.PipelineMismatchError, match="several iterators"):
        train(tmp_path / "model", 10, one_iterator)


def test_the_state_of_one_iterator_is_refused_by_a_graph_with_two(tmp_path: Path) -> None:
    train(tmp_path / "model", 10, one_iterator)
    with pytest.raises(ic.PipelineMismatchError, match="no state for iterator"):
        train(tmp_path / "model", 10, two_iterators)


def test_tensors_without_values_in_a_buffer_are_restored(tmp_path: Path) -> None:
    def boxes() -> Any:
        examples = tf.data.Dataset.range(300).map(
            lambda number: (number, tf.zeros([0, 4]), tf.zeros([0], tf.string))
        )
        return examples.shuffle(100, seed=7).batch(4).map(lambda numbers, boxes, names: numbers)

    for _ in range(2):
        train(tmp_path / "model", 10, boxes)
    assert trained_on(tmp_path / "model") == uninterrupted(boxes, 20, tmp_path / "reference")


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


def test_a_transformation_that_was_added_is_not_called_a_file_that_is_gone(tmp_path: Path) -> None:
    train(tmp_path / "model", 10)
    with pytest.raises(ic.PipelineMismatchError, match="same order of transformations") as raised:
        train(
            tmp_path / "model",
            10,
            lambda: shuffled_ids().filter(lambda ids: True),
            on_pipeline_change="ignore",
        )
    assert "the state has nothing for Iterator::Root" in str(raised.value)
    assert "Put it back" not in str(raised.value)


def test_an_iterator_that_is_not_initialized_when_it_is_restored_is_named(tmp_path: Path) -> None:
    train(tmp_path / "model", 10)

    with tf.Graph().as_default() as graph:
        v1.data.make_initializable_iterator(shuffled_ids())
        source = GraphIterators(graph, policy=2)
        store = ic.CheckpointStore.open(str(tmp_path / "model-input"))
        message = r"IteratorV2 is not initialized.*Run its initializer"
        with v1.Session(graph=graph) as session, pytest.raises(ic.UnsupportedPipelineError, match=message):
            source.restore(session, store.load(store.newest("main")))


class TestFeedableIterators:
    """Handles are other names for iterators, and are in the graph's collection beside them."""

    @staticmethod
    def graph_with_handle() -> Any:
        with tf.Graph().as_default() as graph:
            data = v1.data.make_one_shot_iterator(tf.data.Dataset.range(9))
            handle = v1.placeholder(tf.string, [])
            following = v1.data.Iterator.from_string_handle(handle, tf.int64, []).get_next()
            return graph, data.string_handle(), handle, following

    def test_the_iterator_behind_a_handle_is_saved_once(self) -> None:
        graph, real, handle, following = self.graph_with_handle()
        source = GraphIterators(graph, policy=2)
        assert source.names == ("OneShotIterator",)
        with v1.Session(graph=graph) as session:
            fed = {handle: session.run(real)}
            assert session.run(following, fed) == 0
            snapshot = source.snapshot(session)
            (state,) = [stored(each) for each in snapshot.states()]
            snapshot.release()
            assert session.run(following, fed) == 1
            source.restore(session, [state])
            assert session.run(following, fed) == 1

    def test_a_graph_that_has_only_handles_has_no_input_to_save(self) -> None:
        with tf.Graph().as_default() as graph:
            handle = v1.placeholder(tf.string, [])
            v1.data.Iterator.from_string_handle(handle, tf.int64, []).get_next()
            with pytest.raises(ValueError, match="no iterator in the graph"):
                GraphIterators(graph, policy=2)
