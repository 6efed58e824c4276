"""Which iterators of which graphs the hook saves and restores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.errors import SnapshotLostError
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.tensorflow import iterators
from input_checkpoint.tensorflow.iterators import GraphIterators
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted

v1 = tf.compat.v1


def one_iterator() -> Any:
    return v1.data.make_one_shot_iterator(shuffled_ids(seed=1)).get_next()


def two_iterators() -> Any:
    left = one_iterator()
    right = v1.data.make_one_shot_iterator(shuffled_ids(seed=2)).get_next()
    return left + 0 * right


def train(model_dir: Path, input_fn: Any, *hooks: Any, **options: Any) -> None:
    estimator = make_estimator(model_dir)
    estimator.train(input_fn, hooks=[ic.CheckpointInputPipelineHook(estimator, **options), *hooks], steps=10)


def stored(state: ic.IteratorState) -> StoredState:
    """A saved state as the store returns it."""
    elements = list(state.elements)
    whole = ElementBatch(list(range(len(elements))), elements)
    return StoredState(state.name, len(elements), iter([whole]))


def test_the_state_of_two_iterators_does_not_fit_a_graph_with_one(tmp_path: Path) -> None:
    train(tmp_path / "model", two_iterators)
    with pytest.raises(ic.PipelineMismatchError, match="several iterators"):
        train(tmp_path / "model", one_iterator)


def test_the_state_of_one_iterator_does_not_fit_a_graph_with_two(tmp_path: Path) -> None:
    train(tmp_path / "model", one_iterator)
    with pytest.raises(ic.PipelineMismatchError, match="no state for iterator"):
        train(tmp_path / "model", two_iterators)


@pytest.mark.timeout(60)
def test_two_hooks_save_one_graph_to_two_places(tmp_path: Path) -> None:
    for _ in range(2):
        estimator = make_estimator(tmp_path / "model")
        second = ic.CheckpointInputPipelineHook(estimator, backend=str(tmp_path / "second"))
        train(tmp_path / "model", shuffled_ids, second)
    assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 20, tmp_path / "reference")
    for place in ("model-input", "second"):
        assert ic.CheckpointStore.open(str(tmp_path / place)).newest("main").step == 20


def test_an_iterator_that_nobody_has_initialised_is_named_as_such(tmp_path: Path) -> None:
    def input_fn() -> Any:
        v1.data.make_initializable_iterator(tf.data.Dataset.range(3))
        return shuffled_ids()

    with pytest.raises(
        ic.UnsupportedPipelineError, match=r"IteratorV2 is not initialized.*Run its initializer"
    ):
        train(tmp_path / "model", input_fn)


def test_a_file_that_the_pipeline_had_open_and_that_is_gone_is_named_as_such(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(map(str, range(500))))

    def input_fn() -> Any:
        lines = tf.data.TextLineDataset(str(text), buffer_size=64)
        return lines.map(tf.strings.to_number).map(lambda number: tf.cast(number, tf.int64)).batch(4)

    train(tmp_path / "model", input_fn)
    text.unlink()
    with pytest.raises(ic.PipelineMismatchError, match=r"no longer exists: .*lines\.txt.*Put it back"):
        train(tmp_path / "model", input_fn)


def test_a_transformation_that_was_added_is_not_called_a_file_that_is_gone(tmp_path: Path) -> None:
    train(tmp_path / "model", shuffled_ids)
    with pytest.raises(ic.PipelineMismatchError, match="same order of transformations") as raised:
        train(tmp_path / "model", lambda: shuffled_ids().filter(lambda ids: True))
    assert "the state has nothing for Iterator::Root" in str(raised.value)
    assert "Put it back" not in str(raised.value)


def test_an_iterator_that_is_not_initialized_when_it_is_restored_is_named(tmp_path: Path) -> None:
    train(tmp_path / "model", shuffled_ids)

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


def test_predict_is_refused_since_its_input_is_not_that_of_the_training(tmp_path: Path) -> None:
    train(tmp_path / "model", shuffled_ids)
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator)
    with pytest.raises(ValueError, match=r"do not pass it to predict\(\)"):
        next(iter(estimator.predict(shuffled_ids, hooks=[hook])))


def test_the_place_beside_the_model_directory_is_never_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    train(Path("."), shuffled_ids)
    assert sorted(os.listdir(tmp_path)) == ["model", "model-input"]
    assert [name for name in os.listdir(tmp_path / "model") if "input" in name] == []


def test_a_piece_of_any_size_is_decoded_a_slice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor of more than 2 GB kills the process, and a piece may expand to that."""
    monkeypatch.setattr(iterators, "_SLICE_BYTES", 4000)
    with _noise_shuffled() as (session, held, following):
        (state,) = [list(state.elements) for state in held.snapshot(session).states()]
        expected = [session.run(following).tolist() for _ in range(300)]
        whole = ElementBatch(list(range(len(state))), state)
        feeds: list[int] = []
        held.restore(_Watched(session, feeds), [StoredState(held.names[0], len(state), [whole])])
        assert [session.run(following).tolist() for _ in range(300)] == expected
    assert max(feeds) < 3 * 4000 < sum(len(payload) for _, payload in state) / 10


def test_a_snapshot_released_while_it_is_encoded_is_lost_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the storage fails in the middle of a save, while TensorFlow encodes ahead."""
    monkeypatch.setattr(iterators, "_SLICE_BYTES", 4000)
    with _noise_shuffled() as (session, held, _):
        snapshot = held.snapshot(session)
        (state,) = snapshot.states()
        elements = iter(state.elements)
        next(elements)
        snapshot.release()
        with pytest.raises(SnapshotLostError, match="released"):
            list(elements)
        snapshot = held.snapshot(session)
        assert len([one for state in snapshot.states() for one in state.elements]) > 200
        snapshot.release()


@contextlib.contextmanager
def _noise_shuffled() -> Iterator[tuple[Any, GraphIterators, Any]]:
    """A session whose shuffle buffer is full, its iterators, and the operation that draws an element."""
    with v1.Graph().as_default() as graph:
        noise = tf.data.Dataset.range(500).map(_noise)
        iterator = v1.data.make_initializable_iterator(noise.shuffle(200, seed=3))
        following = iterator.get_next()
        held = GraphIterators(graph, iterators.external_state_policy_number(None))
        with v1.Session() as session:
            session.run(iterator.initializer)
            session.run(following)
            yield session, held, following


def _noise(number: Any) -> Any:
    """1600 bytes that do not compress."""
    return tf.random.stateless_uniform([200], [number, 1], None, None, tf.int64)


class _Watched:
    """A session, and the sizes of the texts that are fed to it."""

    def __init__(self, session: Any, sizes: list[int]) -> None:
        self._session = session
        self._sizes = sizes

    def run(self, fetches: Any, feeds: Any = None) -> Any:
        self._sizes += [len(value) for value in (feeds or {}).values() if isinstance(value, bytes)]
        return self._session.run(fetches, feeds)
