"""A state of any number of batches is put into its iterator completely and in order, or not at all."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional

import pytest
import tensorflow as tf

from input_checkpoint.errors import CorruptCheckpointError, PipelineMismatchError
from input_checkpoint.state import Element, ElementBatch, StoredState
from input_checkpoint.tensorflow import restore_ops
from input_checkpoint.tensorflow.checked_batches import CheckedBatch, check_batches
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number
from input_checkpoint.tensorflow.variants import split_variants

v1 = tf.compat.v1
BUFFER = 700
DRAWS = 50
TIMEOUT = v1.ConfigProto(operation_timeout_in_ms=30_000)
"""TensorFlow waits forever for a vector that is not staged."""
COUNTS = [1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 72, 120, 184, 504, 512, 513, 600]
"""A run parses 8 batches, and joins 8 parts. In the end, 8 parts are left of 120 batches, 9 of 184, and 14 of
504."""


def shuffled(seed: int) -> Any:
    return tf.data.Dataset.range(100 * seed, 10**6).shuffle(BUFFER, seed=seed).batch(2)


class Pipelines:
    """Iterators of one graph in a session."""

    def __init__(self, session: Any, datasets: Sequence[Any]) -> None:
        made = [v1.data.make_initializable_iterator(dataset) for dataset in datasets]
        self.session = session
        self.iterators = GraphIterators(session.graph, external_state_policy_number("fail"))
        self._next = [iterator.get_next() for iterator in made]
        self._sizes = [
            tf.raw_ops.MapSize(dtypes=[tf.variant], shared_name=name) for name in _containers(session.graph)
        ]
        session.run([iterator.initializer for iterator in made])

    def draw(self, count: int = DRAWS) -> list[Any]:
        return [[value.tolist() for value in self.session.run(self._next)] for _ in range(count)]

    def save(self) -> list[list[Element]]:
        snapshot = self.iterators.snapshot(self.session)
        states = [list(state.elements) for state in snapshot.states()]
        snapshot.release()
        return states

    def restore(self, *states: Iterable[ElementBatch], counts: Sequence[int], session: Any = None) -> None:
        names = self.iterators.names
        stored = [
            StoredState(name, count, iter(batches)) for name, count, batches in zip(names, counts, states)
        ]
        self.iterators.restore(session or self.session, stored)

    @property
    def staged(self) -> int:
        """How many vectors are in memory."""
        return int(sum(self.session.run(self._sizes)))


def _containers(graph: Any) -> set[bytes]:
    return {op.get_attr("shared_name") for op in graph.get_operations() if op.type == "MapStage"}


@contextlib.contextmanager
def pipelines(*datasets: Callable[[], Any]) -> Iterator[Pipelines]:
    with v1.Graph().as_default(), v1.Session(config=TIMEOUT) as session:
        yield Pipelines(session, [dataset() for dataset in datasets])


@pytest.fixture(scope="module")
def one() -> Iterator[Pipelines]:
    with pipelines(lambda: shuffled(1)) as made:
        made.draw()
        yield made


def split(elements: Sequence[Element], count: int, seed: Optional[int] = None) -> list[CheckedBatch]:
    """``count`` checked batches of about equal size, in any order."""
    positions = list(range(len(elements)))
    if seed is not None:
        random.Random(seed).shuffle(positions)
    batches = []
    for number in range(count):
        part = positions[number::count]
        whole = ElementBatch(part, [elements[position] for position in part])
        batches += check_batches([whole], batch_bytes=1 << 30)
    assert len(batches) == count
    return batches


class Recording:
    """A session that notes its runs, and may fail at one of them."""

    def __init__(
        self, session: Any, fail_at: Optional[int] = None, error: Optional[Exception] = None
    ) -> None:
        self._session = session
        self._fail_at = fail_at
        self._error = error
        self.feeds: list[dict[Any, Any]] = []

    def run(self, fetches: Any, feeds: Any = None) -> Any:
        self.feeds.append(feeds or {})
        if len(self.feeds) - 1 == self._fail_at:
            assert self._error is not None
            raise self._error
        return self._session.run(fetches, feeds)


@pytest.mark.parametrize("count", COUNTS)
def test_a_state_of_any_number_of_batches_continues_with_the_same_elements(
    one: Pipelines, count: int
) -> None:
    (elements,) = one.save()
    expected = one.draw()
    one.restore(split(elements, count, seed=count), counts=[len(elements)])
    assert one.staged == 0
    assert one.draw() == expected


class Intercepting:
    """A session that encodes what iterators would be restored from, and does not restore them."""

    def __init__(self, session: Any) -> None:
        self._session = session
        operations = session.graph.get_operations()
        self._encoded = {
            op: tf.io.serialize_tensor(op.inputs[1]) for op in operations if op.type == "DeserializeIterator"
        }
        self.elements: list[bytes] = []

    def run(self, fetches: Any, feeds: Any = None) -> Any:
        if not isinstance(fetches, list) or fetches[0] not in self._encoded:
            return self._session.run(fetches, feeds)
        (encoded,) = self._session.run([self._encoded[op] for op in fetches], feeds)
        self.elements = [bytes(element) for element in split_variants(encoded)]
        return [None]


@pytest.mark.parametrize("count", COUNTS)
def test_tensorflow_gets_every_element_at_its_position(one: Pipelines, count: int) -> None:
    """Most iterators find their elements by name, so what they draw does not depend on this."""
    (elements,) = one.save()
    session = Intercepting(one.session)
    one.restore(split(elements, count, seed=count), counts=[len(elements)], session=session)
    assert session.elements == [b"".join(element) for element in elements]
    assert one.staged == 0


def test_an_iterator_is_restored_as_often_as_needed_in_one_session(one: Pipelines) -> None:
    (elements,) = one.save()
    expected = one.draw()
    for count in (3, 20, 20, 3, 600, 8):
        one.restore(split(elements, count, seed=count), counts=[len(elements)])
        assert one.draw() == expected
    assert one.staged == 0


def test_up_to_eight_batches_are_restored_by_one_run(one: Pipelines) -> None:
    (elements,) = one.save()
    for count in (1, restore_ops.WIDTH):
        session = Recording(one.session)
        one.restore(split(elements, count), counts=[len(elements)], session=session)
        assert len(session.feeds) == 1


@pytest.mark.parametrize("count", [9, 64, 65, 600])
def test_the_number_of_runs_follows_the_number_of_batches(one: Pipelines, count: int) -> None:
    (elements,) = one.save()
    session = Recording(one.session)
    one.restore(split(elements, count), counts=[len(elements)], session=session)
    groups = -(-count // restore_ops.WIDTH)
    joins = groups // (restore_ops.WIDTH - 1) + 1
    assert len(session.feeds) <= groups + joins + restore_ops.WIDTH + 1


def test_large_batches_are_parsed_few_at_a_time(one: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight elements of gigabytes would not fit into memory together."""
    (elements,) = one.save()
    expected = one.draw()
    batches = split(elements, 20, seed=4)
    monkeypatch.setattr(restore_ops, "_GROUP_BYTES", 2 * max(batch.memory_bytes for batch in batches))
    session = Recording(one.session)
    one.restore(batches, counts=[len(elements)], session=session)
    fed = [
        sum(len(value) > 100 for value in feeds.values() if isinstance(value, bytes))
        for feeds in session.feeds
    ]
    assert max(fed) <= 3
    assert sum(fed) == 20
    assert one.draw() == expected


def test_one_large_batch_alone_is_restored_by_one_run(
    one: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_ops, "_GROUP_BYTES", 1)
    (elements,) = one.save()
    expected = one.draw()
    session = Recording(one.session)
    one.restore(split(elements, 1, seed=1), counts=[len(elements)], session=session)
    assert len(session.feeds) == 1
    assert one.draw() == expected


def test_the_first_run_waits_for_nine_batches_only(one: Pipelines) -> None:
    """The rest is read from the storage in the meantime."""
    (elements,) = one.save()
    session = Recording(one.session)
    read_before_the_first_run = 0

    def batches() -> Iterator[CheckedBatch]:
        nonlocal read_before_the_first_run
        for batch in split(elements, 200):
            read_before_the_first_run += not session.feeds
            yield batch

    one.restore(batches(), counts=[len(elements)], session=session)
    # The run begins in another thread.
    assert read_before_the_first_run < 60


@pytest.mark.parametrize("counts", [(1, 1), (8, 9), (9, 8), (65, 200), (600, 1)])
def test_several_iterators_of_one_graph_get_their_own_states(counts: tuple[int, int]) -> None:
    with pipelines(lambda: shuffled(1), lambda: shuffled(2)) as both:
        both.draw()
        states = both.save()
        expected = both.draw()
        split_up = [split(state, count, seed=count) for state, count in zip(states, counts)]
        both.restore(*split_up, counts=list(map(len, states)))
        assert both.draw() == expected
        assert both.staged == 0


def test_several_small_states_are_restored_by_one_run_together() -> None:
    with pipelines(lambda: shuffled(1), lambda: shuffled(2), lambda: shuffled(3)) as three:
        states = three.save()
        session = Recording(three.session)
        three.restore(*(split(state, 2) for state in states), counts=list(map(len, states)), session=session)
        assert len(session.feeds) == 1


def refused(
    pipeline: Pipelines, batches: Iterable[ElementBatch], count: int, error: type, session: Any = None
) -> list[Any]:
    """Restore in vain. Nothing stays in memory, and the iterator continues as if nothing had happened.

    Returns:
        What the iterator was going to draw.
    """
    (present,) = pipeline.save()
    expected = pipeline.draw()
    pipeline.restore(split(present, 1), counts=[len(present)])
    with pytest.raises(error):
        pipeline.restore(batches, counts=[count], session=session)
    assert pipeline.staged == 0
    assert pipeline.draw() == expected
    return expected


@pytest.mark.parametrize("count", [1, 8, 9, 65])
class TestAnIncompleteState:
    """It is refused before the iterator changes."""

    def test_a_batch_is_missing(self, one: Pipelines, count: int) -> None:
        (elements,) = one.save()
        batches = split(elements, count + 1)
        refused(one, batches[:-1], len(elements), CorruptCheckpointError)

    def test_a_batch_comes_twice(self, one: Pipelines, count: int) -> None:
        (elements,) = one.save()
        batches = split(elements, count)
        refused(one, [*batches, batches[0]], len(elements), CorruptCheckpointError)

    def test_a_batch_takes_the_place_of_another(self, one: Pipelines, count: int) -> None:
        (elements,) = one.save()
        batches = split(elements[: len(elements) // (count + 1) * (count + 1)], count + 1)
        total = sum(len(batch.positions) for batch in batches)
        refused(one, [*batches[:-1], batches[0]], total, CorruptCheckpointError)

    def test_there_are_more_elements_than_the_state_has(self, one: Pipelines, count: int) -> None:
        (elements,) = one.save()
        refused(one, split(elements, count), len(elements) - 1, CorruptCheckpointError)


def test_a_state_without_elements_is_refused_as_damaged(one: Pipelines) -> None:
    """TensorFlow saves none, and would call it that of another pipeline."""
    refused(one, [], 0, CorruptCheckpointError)


def test_a_state_of_one_element_is_restored() -> None:
    with pipelines(lambda: tf.data.Dataset.range(100)) as numbers:
        numbers.draw(5)
        (elements,) = numbers.save()
        numbers.draw(5)
        numbers.restore(split(elements, len(elements)), counts=[len(elements)])
        assert numbers.draw(1) == [[5]]


@pytest.mark.parametrize("after", [0, 7, 8, 9, 70, 130])
def test_a_storage_that_fails_in_the_middle_changes_nothing(one: Pipelines, after: int) -> None:
    (elements,) = one.save()
    whole = split(elements, 150, seed=2)

    def failing() -> Iterator[CheckedBatch]:
        yield from whole[:after]
        raise OSError("the storage is gone")

    expected = refused(one, failing(), len(elements), OSError)
    one.restore(whole, counts=[len(elements)])
    assert one.draw() == expected


@pytest.mark.parametrize("fail_at", [0, 5, 9, 20, 24])
@pytest.mark.parametrize("error", [tf.errors.AbortedError, tf.errors.ResourceExhaustedError])
def test_a_transient_error_of_any_run_changes_nothing_and_is_left_to_tensorflow(
    one: Pipelines, fail_at: int, error: Any
) -> None:
    (elements,) = one.save()
    whole = split(elements, 150, seed=3)
    session = Recording(one.session, fail_at, error(None, None, "for now"))
    expected = refused(one, whole, len(elements), error, session=session)
    assert len(session.feeds) > fail_at + 1, "the error came at another run, and then memory was freed"
    one.restore(whole, counts=[len(elements)])
    assert one.draw() == expected


@pytest.mark.parametrize("count", [1, 8, 9, 100])
def test_the_state_of_another_pipeline_changes_nothing(one: Pipelines, count: int) -> None:
    with pipelines(lambda: tf.data.Dataset.range(10**6).shuffle(BUFFER).map(lambda n: n + 1)) as other:
        (elements,) = other.save()
        other.draw()
        (elements,) = other.save()
    refused(one, split(elements, count), len(elements), PipelineMismatchError)


def test_if_one_of_two_states_is_damaged_neither_iterator_changes() -> None:
    with pipelines(lambda: shuffled(1), lambda: shuffled(2)) as both:
        both.draw()
        left, right = states = both.save()
        expected = both.draw()
        for first, second in ((100, 100), (2, 100), (100, 2), (2, 2)):
            both.restore(split(left, 1), split(right, 1), counts=list(map(len, states)))
            damaged = split(right, second)[1:]
            with pytest.raises(CorruptCheckpointError):
                both.restore(split(left, first), damaged, counts=list(map(len, states)))
            assert both.staged == 0
            assert both.draw() == expected


@pytest.mark.parametrize("count", [1, 100])
def test_a_closed_session_is_reported_as_such(count: int) -> None:
    with v1.Graph().as_default():
        session = v1.Session(config=TIMEOUT)
        made = Pipelines(session, [shuffled(1)])
        made.draw()
        (elements,) = made.save()
        session.close()
        with pytest.raises(RuntimeError, match="closed Session"):
            made.restore(split(elements, count), counts=[len(elements)])


def test_a_session_that_is_closed_in_the_middle_is_reported_as_such() -> None:
    with v1.Graph().as_default():
        session = v1.Session(config=TIMEOUT)
        made = Pipelines(session, [shuffled(1)])
        made.draw()
        (elements,) = made.save()

        def batches() -> Iterator[CheckedBatch]:
            for number, batch in enumerate(split(elements, 100)):
                if number == 50:
                    session.close()
                yield batch

        with pytest.raises((RuntimeError, tf.errors.CancelledError)):
            made.restore(batches(), counts=[len(elements)])


def test_a_restore_that_fails_frees_no_snapshot(one: Pipelines) -> None:
    """Whoever encodes it would wait forever."""
    (elements,) = one.save()
    snapshot = one.iterators.snapshot(one.session)
    with pytest.raises(CorruptCheckpointError):
        one.restore(split(elements, 100)[1:], counts=[len(elements)])
    assert one.staged == 1
    assert [list(state.elements) for state in snapshot.states()] == [elements]
    snapshot.release()
    assert one.staged == 0


def test_a_restore_into_one_session_leaves_other_sessions_alone() -> None:
    with v1.Graph().as_default() as graph, v1.Session(config=TIMEOUT) as session:
        made = Pipelines(session, [shuffled(1)])
        made.draw()
        (elements,) = made.save()
        expected = made.draw()
        with v1.Session(graph=graph, config=TIMEOUT) as other:
            other.run([op for op in graph.get_operations() if op.type == "MakeIterator"])
            made.restore(split(elements, 100, seed=5), counts=[len(elements)], session=other)
            assert [[v.tolist() for v in other.run(made._next)] for _ in range(DRAWS)] == expected
        made.restore(split(elements, 100, seed=5), counts=[len(elements)])
        assert made.draw() == expected
