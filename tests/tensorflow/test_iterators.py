"""The state of a graph's iterators is encoded and decoded in slices of bounded size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import tensorflow as tf

from input_checkpoint.errors import SnapshotLostError
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.tensorflow import iterators
from input_checkpoint.tensorflow.checked_batches import check_batches
from input_checkpoint.tensorflow.iterators import GraphIterators

v1 = tf.compat.v1


def noise(number: Any) -> Any:
    """1600 bytes that do not compress."""
    return tf.random.stateless_uniform([200], [number, 1], None, None, tf.int64)


@contextlib.contextmanager
def session_with_full_buffer() -> Iterator[tuple[Any, GraphIterators, Any]]:
    """Yield a session with a full shuffle buffer, its iterators and the operation that draws an element."""
    with v1.Graph().as_default() as graph:
        dataset = tf.data.Dataset.range(500).map(noise)
        iterator = v1.data.make_initializable_iterator(dataset.shuffle(200, seed=3))
        next_element = iterator.get_next()
        graph_iterators = GraphIterators(graph, iterators.external_state_policy_number(None))
        with v1.Session() as session:
            session.run(iterator.initializer)
            session.run(next_element)
            yield session, graph_iterators, next_element


class RecordingSession:
    """A session that records the sizes of the byte strings that are fed to it."""

    def __init__(self, session: Any, sizes: list[int]) -> None:
        self._session = session
        self._sizes = sizes

    def run(self, fetches: Any, feeds: Any = None) -> Any:
        self._sizes += [len(value) for value in (feeds or {}).values() if isinstance(value, bytes)]
        return self._session.run(fetches, feeds)


def test_a_batch_of_any_size_is_decoded_in_small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of more than 2 GB would kill the process, and a batch may expand to that size."""
    monkeypatch.setattr(iterators, "check_batches", partial(check_batches, batch_bytes=4000))
    with session_with_full_buffer() as (session, graph_iterators, next_element):
        (state,) = [list(state.elements) for state in graph_iterators.snapshot(session).states()]
        expected = [session.run(next_element).tolist() for _ in range(300)]
        whole = ElementBatch(list(range(len(state))), state)
        feeds: list[int] = []
        graph_iterators.restore(
            RecordingSession(session, feeds), [StoredState(graph_iterators.names[0], len(state), [whole])]
        )
        assert [session.run(next_element).tolist() for _ in range(300)] == expected
    assert max(feeds) < 3 * 4000 < sum(len(payload) for _, payload in state) / 10


def test_a_snapshot_that_is_released_while_it_is_encoded_is_lost_and_blocks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This happens when the storage fails during a save while TensorFlow encodes ahead."""
    monkeypatch.setattr(iterators, "_SLICE_BYTES", 4000)
    with session_with_full_buffer() as (session, graph_iterators, _):
        snapshot = graph_iterators.snapshot(session)
        (state,) = snapshot.states()
        elements = iter(state.elements)
        next(elements)
        snapshot.release()
        with pytest.raises(SnapshotLostError, match="released"):
            list(elements)
        snapshot = graph_iterators.snapshot(session)
        assert len([element for state in snapshot.states() for element in state.elements]) > 200
        snapshot.release()
